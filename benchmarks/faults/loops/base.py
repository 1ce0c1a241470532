"""What a training loop is, and the plainest one."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 5


@dataclass
class Loop:
    """What is trained: `step(number)` is one step of the user's loop; `optimizers` are what `eq.watch` is given."""

    model: nn.Module
    optimizers: Any
    step: Callable[[int], Any]
    settings: dict[str, Any] = field(default_factory=dict)  # of eq.watch
    watched: nn.Module | None = None  # what eq.watch is given, if not the model
    finish: Callable[[], Any] = lambda: None  # what else must be the same at the end
    alarmed: bool = False  # whether its own rules must raise alarms
    strict: bool = False  # whether warnings are errors all along, at the ends of the block as well


Recipe = Callable[[], Loop]
RECIPES: dict[str, Recipe] = {}


def recipe(make: Recipe) -> Recipe:
    """Register a loop under the name of its function."""
    RECIPES[make.__name__] = make
    return make


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


def evaluate(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model(batch(99, 7)[0])
    model.train()
