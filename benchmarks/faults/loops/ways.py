"""Ways to train: accumulation, closures, scalers, schedules, several optimizers, steps within backward()."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loops.base import RECIPES, Loop, batch, evaluate, loss_of, of, plain, recipe
from loops.models import Cast, perceptron
from loops.optimizers import SAM


@recipe
def evaluation_first() -> Loop:
    loop = plain(Cast(perceptron(), torch.bfloat16))
    inner = loop.step

    def step(number: int) -> None:
        evaluate(loop.model)
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
        backward = _closure(model, optimizer, number)
        backward()
        optimizer.first_step()
        backward()
        optimizer.second_step()

    return Loop(model, optimizer, step)


def _closure(model: nn.Module, optimizer: Any, number: int) -> Callable[[], Tensor]:
    def backward() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, number)
        loss.backward()
        return loss

    return backward


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
