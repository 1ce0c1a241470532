"""Which optimizers run hooks around their steps, behind whatever wraps them, and what they hold."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_WRAPPED = ("optimizer", "base_optimizer", "inner_optimizer", "_optimizer", "optim", "_optim", "opt", "wrapped")
_DEPTH = 8  # of wrappers in wrappers


def hooked(optimizer: Any) -> list[Optimizer]:
    """The optimizers that run step hooks, the outermost first: this one, and those that it wraps.

    >>> class Wrapper:
    ...     def __init__(self, optimizer):
    ...         self.optimizer, self.step = optimizer, optimizer.step
    >>> inner = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    >>> hooked(Wrapper(Wrapper(inner))) == [inner], hooked("no optimizer")
    (True, [])
    """
    return [each for each in _chain(optimizer) if _runs_hooks(each)]


def _chain(optimizer: Any) -> list[Any]:
    chain, layer = [], [optimizer]
    for _ in range(_DEPTH):
        chain += layer
        known = {id(each) for each in chain}
        inner = [_attribute(each, name) for each in layer for name in _WRAPPED]
        layer = [each for each in inner if id(each) not in known and callable(_attribute(each, "step"))]
        layer = list({id(each): each for each in layer}.values())
    return chain


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # a property of somebody else's
        return None


def _runs_hooks(optimizer: Any) -> bool:
    """Whether it was made by `Optimizer.__init__`, which wraps its `step`."""
    made = isinstance(optimizer, Optimizer) and isinstance(_attribute(optimizer, "_optimizer_step_pre_hooks"), dict)
    return made and bool(_attribute(_attribute(type(optimizer), "step"), "hooked"))


def held(optimizer: Any) -> set[int]:
    """The `id` of every parameter that an optimizer, or one that it wraps, holds."""
    return {id(each) for one in _chain(optimizer) for each in _parameters(one)}


def _parameters(optimizer: Any) -> Iterator[Tensor]:
    groups = _attribute(optimizer, "param_groups")
    if not isinstance(groups, (list, tuple)):
        return
    for group in groups:
        inside = group.get("params", ()) if isinstance(group, dict) else ()
        yield from (each for each in inside if isinstance(each, Tensor))


def in_backward() -> bool:
    """Whether a backward pass is under way, so that an optimizer steps inside it."""
    return torch._C._current_graph_task_id() != -1
