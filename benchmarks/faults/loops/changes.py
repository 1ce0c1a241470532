"""Models that change under training: parts replaced, added, frozen, assigned."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loops.base import RECIPES, Loop, loss_of, plain, recipe
from loops.models import perceptron


def _changing(change: Callable[[nn.Module, Any], Any], at: int = 2) -> Loop:
    return plain(perceptron(), after=lambda m, o, n: change(m, o) if n == at else None)


def _replace(model: nn.Module, optimizer: Any) -> None:
    model[2] = nn.Linear(12, 12)
    optimizer.param_groups[0]["params"] = list(model.parameters())


def _widen(model: nn.Module, optimizer: Any) -> None:
    model.append(nn.Linear(3, 3))
    optimizer.add_param_group({"params": list(model[-1].parameters())})


def _assign(model: nn.Module, optimizer: Any) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def _set_activation(model: nn.Module, optimizer: Any) -> None:
    model[1] = nn.Tanh()


RECIPES |= {
    "a module replaced": lambda: _changing(_replace),
    "a module replaced, optimizer not": lambda: _changing(lambda m, o: m.__setitem__(2, nn.Linear(12, 12))),
    "a layer added": lambda: _changing(_widen),
    "a layer removed": lambda: _changing(lambda m, o: m.__delitem__(2)),
    "an activation replaced": lambda: _changing(_set_activation),
    "weights assigned": lambda: _changing(_assign),
    "frozen": lambda: _changing(lambda m, o: m[0].requires_grad_(False)),
    "bias removed": lambda: _changing(lambda m, o: m[0].register_parameter("bias", None)),
    "to double": lambda: _changing(lambda m, o: m.double()),
    "to bfloat16": lambda: _changing(lambda m, o: m.bfloat16()),
}


@recipe
def unfreezing() -> Loop:
    model = perceptron()
    model[0].requires_grad_(False)
    return plain(model, after=lambda m, o, n: m[0].requires_grad_(True) if n == 1 else None)


@recipe
def freezing_in_turn() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        model[0].requires_grad_(number % 2 == 0)
        optimizer.zero_grad()
        loss_of(model, number).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def pruned() -> Loop:
    model = perceptron()
    from torch.nn.utils import prune

    prune.l1_unstructured(model[2], "weight", amount=0.5)
    return plain(model)


@recipe
def old_weight_norm() -> Loop:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 12)), nn.ReLU(), nn.Linear(12, 3))
    return plain(model)


@recipe
def frozen_part() -> Loop:
    model = perceptron()
    model[2].requires_grad_(False)
    return plain(model)


@recipe
def rates_by_group() -> Loop:
    model = perceptron()
    groups = [{"params": layer.parameters(), "lr": 0.01 * (i + 1)} for i, layer in enumerate(model)]
    return plain(model, torch.optim.SGD([group for group in groups if "params" in group], lr=0.1))


@recipe
def hooks_that_look() -> Loop:
    model, seen = perceptron(), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(float(output.detach().mean())))
    loop = plain(model)
    loop.finish = lambda: seen
    return loop
