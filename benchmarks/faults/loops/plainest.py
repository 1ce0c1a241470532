"""Every model, every optimizer, and what is done to gradients and weights around a step."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loops.base import RECIPES, Loop, evaluate, loss_of, plain
from loops.models import MODELS, batch_normalised, perceptron, with_dropout
from loops.optimizers import OPTIMIZERS

for _name, _model in MODELS.items():
    RECIPES[f"model: {_name}"] = lambda make=_model: plain(make())
    if _name not in ("lstm", "stubborn", "willful", "noisy", "checkpoint_reentrant"):  # not all CPUs have the first
        RECIPES[f"bf16 autocast: {_name}"] = lambda make=_model: plain(
            make(), around=lambda: torch.autocast("cpu", torch.bfloat16)
        )
for _name, _optimizer in OPTIMIZERS.items():
    RECIPES[f"optimizer: {_name}"] = lambda make=_optimizer: (lambda m: plain(m, make(m.parameters())))(perceptron())


def _clip(limit: float) -> Callable[..., Any]:
    return lambda model, optimizer, number: nn.utils.clip_grad_value_(model.parameters(), limit)


@torch.no_grad()
def _add_noise(model: nn.Module, optimizer: Any, number: int) -> None:
    for parameter in model.parameters():
        parameter.grad += 0.01 * torch.randn_like(parameter)


@torch.no_grad()
def _signs(model: nn.Module, optimizer: Any, number: int) -> None:
    for parameter in model.parameters():
        parameter.grad = parameter.grad.sign()


RECIPES |= {
    "double precision": lambda: plain(perceptron().double()),
    "bfloat16 weights": lambda: plain(perceptron().bfloat16()),
    "fp16 autocast": lambda: plain(perceptron(), around=lambda: torch.autocast("cpu", torch.float16)),
    "clip by norm": lambda: plain(perceptron(), between=lambda m, o, n: nn.utils.clip_grad_norm_(m.parameters(), 0.1)),
    "clip by value": lambda: plain(perceptron(), between=_clip(1e-3)),
    "clip by value, adam": lambda: (lambda m: plain(m, torch.optim.Adam(m.parameters()), between=_clip(1e-3)))(
        perceptron()
    ),
    "gradient noise": lambda: plain(perceptron(), between=_add_noise),
    "gradient signs": lambda: plain(perceptron(), between=_signs),
    "weights clipped after the step": lambda: plain(
        perceptron(), after=lambda m, o, n: [p.data.clamp_(-0.2, 0.2) for p in m.parameters()]
    ),
    "evaluation in between": lambda: plain(perceptron(), after=lambda m, o, n: evaluate(m)),
    "evaluation with dropout": lambda: plain(with_dropout(), after=lambda m, o, n: evaluate(m)),
    "evaluation with batch norm": lambda: plain(batch_normalised(), after=lambda m, o, n: evaluate(m)),
    "pickled in between": lambda: plain(perceptron(), after=lambda m, o, n: pickle.loads(pickle.dumps((m, o)))),
    "copied in between": lambda: plain(perceptron(), after=lambda m, o, n: copy.deepcopy((m, o))),
    "state reloaded": lambda: plain(perceptron(), after=lambda m, o, n: m.load_state_dict(m.state_dict())),
    "compiled, eager": lambda: _compiled("eager"),
}


def _compiled(backend: str) -> Loop:
    model = perceptron()
    called, optimizer = torch.compile(model, backend=backend), torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        loss_of(called, number).backward()
        optimizer.step()

    return Loop(model, optimizer, step, watched=called)
