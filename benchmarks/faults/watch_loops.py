"""Training loops with and without `eq.watch`: bit-identical ends, no false alarm, nothing raised.

    python benchmarks/faults/watch_loops.py            # all of them, one table
    python benchmarks/faults/watch_loops.py --only sam

Each loop is a recipe: what builds model, optimizers and one training step. It is run twice from one seed, once watched
at every step. Compared are all parameters, buffers, states of optimizers, and the states of the random generators.
"""

import argparse
import contextlib
import copy
import io
import pickle
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint

import equipoise as eq

STEPS = 5


@dataclass
class Loop:
    """What is trained: `step(number)` is one step of the user's loop; `optimizers` are what `eq.watch` is given."""

    model: nn.Module
    optimizers: Any
    step: Callable[[int], Any]
    settings: dict[str, Any] = field(default_factory=dict)  # of eq.watch
    watched: nn.Module | None = None  # what eq.watch is given, if not the model
    finish: Callable[[], Any] = lambda: None  # at the end of the block


Recipe = Callable[[], Loop]
RECIPES: dict[str, Recipe] = {}


def recipe(make: Recipe) -> Recipe:
    """Register a loop under the name of its function."""
    RECIPES[make.__name__] = make
    return make


# ---- models ----


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def deep_linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10, bias=False), nn.Linear(10, 10, bias=False), nn.Linear(10, 3, bias=False))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def batch_normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 12), nn.Linear(12, 3))


class Reshaped(nn.Module):
    def __init__(self, inner: nn.Module, *shape: int):
        super().__init__()
        self.inner, self.shape = inner, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.reshape(len(x), *self.shape))


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(1, 4, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2, padding=1), nn.ReLU()]
    return Reshaped(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)), 1, 2, 3)


class Attention(nn.Module):
    """Self-attention over three tokens, rotated by a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.q, self.k, self.v = nn.Linear(2, 8), *(nn.Linear(8, 8) for _ in range(3))
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("turn", torch.linalg.qr(torch.randn(8, 8)).Q, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x.reshape(len(x), 3, 2))
        scores = (self.q(x) @ self.turn) @ self.k(x).mT / 8**0.5
        return self.head((x + self.out(scores.softmax(-1) @ self.v(x))).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.reshape(len(x), 3, 2))[0][:, -1])


class Embedded(nn.Module):
    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 6, sparse=sparse), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table((x.abs() * 7).long() % 20).mean(1))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant, self.inner, self.dropout = reentrant, perceptron(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            x = checkpoint.checkpoint(layer, x.requires_grad_(), use_reentrant=self.reentrant)
        return self.dropout(x)


class Cast(nn.Module):
    """Autocast begins inside `forward`, as in models that a trainer has prepared."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype):
            return self.inner(x).float()


class HalfInside(nn.Module):
    """Casts of the user's own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu().to(self.dtype)
        x = F.linear(x, self.second.weight.to(self.dtype), self.second.bias.to(self.dtype)).relu()
        return self.third(x.float())


class Noisy(nn.Module):
    """Draws from every global generator in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.1 * torch.randn_like(x) + 0.1 * random.random() + 0.1 * float(np.random.rand()))  # noqa: NPY002


class Counting(nn.Module):
    """Changes attributes, buffers and lists of its own in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls, self.seen = perceptron(), 0, []
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.total += self.calls
        return self.inner(x)


class Willful(nn.Module):
    """Copying it draws random numbers and changes its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Willful":
        torch.randn(3)
        random.random()
        with torch.no_grad():
            self.inner[0].weight.mul_(0.5)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Stubborn(nn.Module):
    """A path that depends on values, which nothing can read."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if float(x.sum()) > -1e9 else x


class Odd(nn.Module):
    """A signature of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, *parts: Any, scale: float = 1.0, **rest: Any) -> dict[str, Tensor]:
        return {"out": self.inner(parts[0]["x"]) * scale}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": perceptron,
    "deep_linear": deep_linear,
    "layer_norm": normalised,
    "batch_norm": batch_normalised,
    "dropout": with_dropout,
    "gelu": smooth,
    "convolution": convolutional,
    "attention": Attention,
    "lstm": Recurrent,
    "embedding": Embedded,
    "weight_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 12)), nn.ReLU(), nn.Linear(12, 3)
    ),
    "spectral_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 12)), nn.ReLU(), nn.Linear(12, 3)
    ),
    "checkpoint": lambda: Checkpointed(reentrant=False),
    "checkpoint_reentrant": lambda: Checkpointed(reentrant=True),
    "bf16_inside": lambda: Cast(perceptron(), torch.bfloat16),
    "fp16_inside": lambda: Cast(perceptron(), torch.float16),
    "bf16_casts": lambda: HalfInside(torch.bfloat16),
    "noisy": Noisy,
    "counting": Counting,
    "willful": Willful,
    "stubborn": Stubborn,
}

# ---- optimizers ----


class Lookalike:
    """Looks like an optimizer, and is none."""

    def __init__(self, parameters: Any, lr: float = 0.05):
        self.param_groups = [{"params": list(parameters), "lr": lr}]

    def zero_grad(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def step(self) -> None:
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad)


class Wrapper:
    """Passes on everything, as apex, deepspeed and accelerate do in one way or another."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)


class Hollow(torch.optim.Optimizer):
    """An `Optimizer` that never was initialised as one, as accelerate's."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)  # type: ignore[assignment]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()


class Lookahead(torch.optim.Optimizer):
    """Slow weights follow the fast ones (Zhang et al. 2019)."""

    def __init__(self, optimizer: torch.optim.Optimizer, every: int = 2):
        super().__init__([p for group in optimizer.param_groups for p in group["params"]], {})
        self.optimizer, self.every, self.count = optimizer, every, 0
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for slow, fast in zip(self.slow, self.param_groups[0]["params"], strict=True):
                fast.copy_(slow.add_(0.5 * (fast - slow)))
        return loss


class ScheduleFree(torch.optim.Optimizer):
    """Gradients at an interpolation of iterate and average (Defazio et al. 2024)."""

    def __init__(self, parameters: Any, lr: float = 0.05, beta: float = 0.9):
        super().__init__(parameters, {"lr": lr, "beta": beta, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            share = 1 / (group["k"] + 1)
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone())
                x = self.state[p].setdefault("x", p.clone())
                z.sub_(group["lr"] * p.grad)
                x.lerp_(z, share)
                p.copy_(x.lerp(z, 1 - group["beta"]))
            group["k"] += 1


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation: the gradient of another point (Foret et al. 2021)."""

    def __init__(self, parameters: Any, lr: float = 0.05, rho: float = 0.05):
        super().__init__(parameters, {"rho": rho})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr)

    @torch.no_grad()
    def first_step(self) -> None:
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad * (self.defaults["rho"] / norm))

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if "old" in self.state[p]:
                    p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        closure = torch.enable_grad()(closure)
        closure()
        self.first_step()
        closure()
        self.second_step()


def accelerated(parameters: Any) -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True).prepare(torch.optim.SGD(list(parameters), lr=0.05))


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "decay": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.01),
    "maximize": lambda p: torch.optim.SGD(p, lr=0.01, maximize=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.05, fused=True),
    "sgd_foreach": lambda p: torch.optim.SGD(p, lr=0.05, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": torch.optim.Adadelta,
    "rprop": torch.optim.Rprop,
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "lookalike": Lookalike,
    "wrapper": lambda p: Wrapper(torch.optim.SGD(p, lr=0.05)),
    "wrapped_twice": lambda p: Wrapper(Wrapper(torch.optim.Adam(p, lr=0.01))),
    "hollow": lambda p: Hollow(torch.optim.SGD(p, lr=0.05)),
    "lookahead": lambda p: Lookahead(torch.optim.SGD(p, lr=0.05)),
    "schedule_free": ScheduleFree,
    "accelerated": accelerated,
}

# ---- ways to train ----


def batch(number: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(size, 6, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0)


def loss_of(model: nn.Module, number: int, size: int = 16) -> Tensor:
    x, y = batch(number, size)
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y)


def plain(
    model: nn.Module,
    optimizer: Any = None,
    *,
    around: Callable[[], Any] = contextlib.nullcontext,
    between: Callable[[nn.Module, Any, int], Any] = lambda model, optimizer, number: None,
    after: Callable[[nn.Module, Any, int], Any] = lambda model, optimizer, number: None,
    **settings: Any,
) -> Loop:
    """zero_grad, forward, backward, step; `between` backward and step, `after` the step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05) if optimizer is None else optimizer

    def step(number: int) -> None:
        optimizer.zero_grad()
        with around():
            loss = loss_of(model, number)
        loss.backward()
        between(model, optimizer, number)
        optimizer.step()
        after(model, optimizer, number)

    return Loop(model, optimizer, step, settings)


def of(make: Callable[..., Loop], *args: Any, **settings: Any) -> Recipe:
    return lambda: make(*args, **settings)


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
    "evaluation in between": lambda: plain(perceptron(), after=lambda m, o, n: _evaluate(m)),
    "evaluation with dropout": lambda: plain(with_dropout(), after=lambda m, o, n: _evaluate(m)),
    "evaluation with batch norm": lambda: plain(batch_normalised(), after=lambda m, o, n: _evaluate(m)),
    "pickled in between": lambda: plain(perceptron(), after=lambda m, o, n: pickle.loads(pickle.dumps((m, o)))),
    "copied in between": lambda: plain(perceptron(), after=lambda m, o, n: copy.deepcopy((m, o))),
    "state reloaded": lambda: plain(perceptron(), after=lambda m, o, n: m.load_state_dict(m.state_dict())),
    "compiled, eager": lambda: _compiled("eager"),
}


def _evaluate(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model(batch(99, 7)[0])
    model.train()


def _compiled(backend: str) -> Loop:
    model = perceptron()
    called, optimizer = torch.compile(model, backend=backend), torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        loss_of(called, number).backward()
        optimizer.step()

    return Loop(model, optimizer, step, watched=called)


@recipe
def evaluation_first() -> Loop:
    loop = plain(Cast(perceptron(), torch.bfloat16))
    inner = loop.step

    def step(number: int) -> None:
        _evaluate(loop.model)
        inner(number)

    loop.step = step
    return loop


@recipe
def accumulation() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        for part in range(3):
            (loss_of(model, 10 * number + part) / 3).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def several_losses() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        x, y = batch(number)
        out = model(x)
        F.cross_entropy(out, y).backward(retain_graph=True)
        out.square().mean().backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def gradients_by_hand() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        gradients = torch.autograd.grad(loss_of(model, number), list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clamp(-1e-3, 1e-3)
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def closure() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Loop(model, optimizer, lambda number: optimizer.step(_closure(model, optimizer, number)))


@recipe
def lbfgs() -> Loop:
    model = perceptron()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    return Loop(model, optimizer, lambda number: optimizer.step(_closure(model, optimizer, number)))


@recipe
def sam_with_closure() -> Loop:
    model = perceptron()
    optimizer = SAM(model.parameters())
    return Loop(model, optimizer, lambda number: optimizer.step(_closure(model, optimizer, number)))


@recipe
def sam_in_two_steps() -> Loop:
    model = perceptron()
    optimizer = SAM(model.parameters())

    def step(number: int) -> None:
        evaluate = _closure(model, optimizer, number)
        evaluate()
        optimizer.first_step()
        evaluate()
        optimizer.second_step()

    return Loop(model, optimizer, step)


def _closure(model: nn.Module, optimizer: Any, number: int) -> Callable[[], Tensor]:
    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, number)
        loss.backward()
        return loss

    return evaluate


def _scaled(dtype: torch.dtype, make: Callable[[Any], Any]) -> Loop:
    model = perceptron()
    optimizer, scaler = make(model.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)

    def step(number: int) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = loss_of(model, number)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return Loop(model, optimizer, step)


RECIPES["scaler, bf16"] = of(_scaled, torch.bfloat16, lambda p: torch.optim.SGD(p, lr=0.05))
RECIPES["scaler, fp16"] = of(_scaled, torch.float16, lambda p: torch.optim.SGD(p, lr=0.05))
RECIPES["scaler, fused"] = of(_scaled, torch.float16, lambda p: torch.optim.SGD(p, lr=0.05, fused=True))


@recipe
def learning_rates() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    return plain(model, optimizer, after=lambda m, o, n: schedule.step())


@recipe
def averaged() -> Loop:
    model = perceptron()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05)
    return plain(model, optimizer, after=lambda m, o, n: (average.update_parameters(m), schedule.step()))


@recipe
def in_backward() -> Loop:
    model = perceptron()
    optimizers = {p: torch.optim.SGD([p], lr=0.05) for p in model.parameters()}

    def hook(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    return Loop(model, list(optimizers.values()), lambda number: loss_of(model, number).backward())


@recipe
def adversaries() -> Loop:
    """Two networks, each with an optimizer; the gradients of one accumulate in the other."""
    model = nn.ModuleDict({"g": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), "d": perceptron()})
    first, second = (torch.optim.SGD(model[name].parameters(), lr=0.05) for name in ("g", "d"))

    def step(number: int) -> None:
        x, y = batch(number)
        second.zero_grad()
        F.cross_entropy(model["d"](model["g"](x).detach()), y).backward()
        second.step()
        first.zero_grad()
        (-F.cross_entropy(model["d"](model["g"](x)), y)).backward()
        first.step()

    return Loop(model, [first, second], step, {"example_inputs": None})


class Composed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
        self.upper = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.upper(self.lower(x))


@recipe
def gradients_that_nobody_takes() -> Loop:
    """Of parameters that no optimizer holds: they accumulate."""
    model = Composed()
    return plain(model, torch.optim.SGD(model.upper.parameters(), lr=0.05))


@recipe
def two_optimizers_in_turn() -> Loop:
    model = Composed()
    both = [torch.optim.SGD(part.parameters(), lr=0.05) for part in (model.lower, model.upper)]

    def step(number: int) -> None:
        loss_of(model, number).backward()
        both[number % 2].step()
        both[number % 2].zero_grad()

    return Loop(model, both, step)


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
def scripted() -> Loop:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain(torch.jit.script(perceptron()))


@recipe
def odd_signature() -> Loop:
    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        x, y = batch(number)
        F.cross_entropy(model({"x": x}, "unused", scale=2.0, more=None)["out"], y).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def nested_input() -> Loop:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        x = batch(number)[0]
        nested = torch.nested.nested_tensor([x[:3], x[3:]], layout=torch.jagged)
        model(nested).values().square().mean().backward()
        optimizer.step()

    return Loop(model, optimizer, step)


class Dequantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.dequantize())


@recipe
def quantised_input() -> Loop:
    model = Dequantised()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        x, y = batch(number)
        F.cross_entropy(model(torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)), y).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def sparse_gradients() -> Loop:
    return plain(Embedded(sparse=True))


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


def _warnings_as_errors(loop: Loop) -> Loop:
    inner = loop.step

    def step(number: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inner(number)

    loop.step = step
    return loop


class Raises:
    """As an observer, a sink, a rule, and what is told of alarms."""

    name = "raises"

    def init(self, scene: Any) -> Any:
        return {}

    def observe(self, scene: Any, memory: Any, snapshot: Any) -> Any:
        raise KeyError("observer")

    def write(self, records: Any) -> None:
        raise OSError("disk full")

    def close(self) -> None:
        raise OSError("disk full")

    def __call__(self, record: Any) -> None:
        raise ValueError("rule")


RECIPES |= {
    "warnings are errors": lambda: _warnings_as_errors(plain(perceptron(), alarms=[Raises()])),
    "an observer raises": lambda: plain(perceptron(), observe=[Raises(), eq.Spectrum()]),
    "a sink raises": lambda: plain(perceptron(), sinks=[Raises()]),
    "a rule raises": lambda: plain(perceptron(), alarms=[Raises()]),
    "full looks": lambda: plain(perceptron(), full=True),
    "all observers": lambda: plain(
        with_dropout(),
        observe=[eq.Spectrum(), eq.Alignment(), eq.Drift(), eq.Residual(), eq.Activity(batch(1)[0]), eq.Signs()],
    ),
    "probes that draw": lambda: plain(Noisy(), observe=[eq.Activity(batch(1)[0]), eq.Margin(batch(1))]),
}

# ---- the campaign ----


@dataclass
class Outcome:
    """What became of one loop."""

    identical: bool
    alarms: list[str]
    raised: str
    off: dict[str, str]
    notes: list[str]


def run(make: Recipe, watched: bool, every: int = 1) -> tuple[Any, Any]:
    """The state at the end, and the log."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    loop = make()
    log = None
    with contextlib.ExitStack() as stack:
        if watched:
            model = loop.model if loop.watched is None else loop.watched
            given = {"quiet": True, "every": every} | loop.settings
            log = stack.enter_context(eq.watch(model, loop.optimizers, **given))
        for number in range(STEPS):
            loop.step(number)
    return list(_state(loop)), log


def _state(loop: Loop) -> Iterator[Any]:
    yield {name: value.detach().clone() for name, value in loop.model.state_dict().items()}
    for optimizer in loop.optimizers if isinstance(loop.optimizers, list) else [loop.optimizers]:
        if hasattr(optimizer, "state_dict"):
            yield optimizer.state_dict()
    yield [getattr(loop.model, name, None) for name in ("calls", "seen")], loop.finish()
    yield torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def outcome(make: Recipe, every: int = 1) -> Outcome:
    """Run it both ways, and compare."""
    alone, _ = run(make, watched=False)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore", eq.TrainingAlarm)
            watched, log = run(make, watched=True, every=every)
    except Exception as error:  # the one thing that must not happen
        return Outcome(False, [], f"{type(error).__name__}: {error}", {}, [])
    return Outcome(same(alone, watched), [str(alarm) for alarm in log.alarms], "", log.off, log.notes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="loops with this in their name")
    parser.add_argument("--verbose", action="store_true", help="print what is off, and the notes")
    asked = parser.parse_args()
    chosen = {name: make for name, make in RECIPES.items() if asked.only in name}
    begun, bad, alarmed, raised = time.perf_counter(), 0, 0, 0
    for name, make in chosen.items():
        found = outcome(make)
        bad, alarmed, raised = bad + (not found.identical), alarmed + bool(found.alarms), raised + bool(found.raised)
        said = [*([] if found.identical else ["DIFFERS"]), *found.alarms, *([found.raised] if found.raised else [])]
        if asked.verbose:
            said += [f"off: {what} ({why[:90]})" for what, why in found.off.items()] + found.notes
        if said or asked.verbose:
            print(f"{name:36} {'; '.join(said) or 'identical'}", flush=True)
    print(f"\n{'loops':>8}{'identical':>12}{'with alarms':>14}{'raised':>9}{'seconds':>10}")
    print(f"{len(chosen):8}{len(chosen) - bad:12}{alarmed:14}{raised:9}{time.perf_counter() - begun:10.0f}")


if __name__ == "__main__":
    main()
