"""Hooks on optimizers and on the forward pass, which never change what they are hooked to."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from types import FrameType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from equipoise.graph.precision import narrowest
from equipoise.monitor.context import Example, computed_in

Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]

_WRAPPED = ("optimizer", "base_optimizer", "inner_optimizer", "_optimizer", "optim", "_optim", "opt", "wrapped")
_DEPTH = 8  # of wrappers in wrappers


# Optimizers ---------------------------------------------------------------------------------------------------------


@runtime_checkable
class OptimizerLike(Protocol):
    """An optimizer, or what steps one: not every wrapper is itself a `torch.optim.Optimizer`."""

    def step(self, *args: Any, **kwargs: Any) -> object:
        """Take a step."""
        ...


def hooked_optimizers(optimizer: object) -> list[Optimizer]:
    """The optimizers that run step hooks, the outermost first: this one, and those that it wraps.

    >>> class Wrapper:
    ...     def __init__(self, optimizer):
    ...         self.optimizer, self.step = optimizer, optimizer.step
    >>> inner = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    >>> hooked_optimizers(Wrapper(Wrapper(inner))) == [inner], hooked_optimizers("no optimizer")
    (True, [])
    """
    return [each for each in _chain(optimizer) if isinstance(each, Optimizer) and _runs_hooks(each)]


def held_parameters(optimizer: object) -> set[int]:
    """The `id` of every parameter that an optimizer, or one that it wraps, holds."""
    return {id(each) for one in _chain(optimizer) for each in _parameters(one)}


def in_backward() -> bool:
    """Whether a backward pass is under way, so that an optimizer steps inside it."""
    return torch._C._current_graph_task_id() != -1


def _chain(optimizer: object) -> list[object]:
    chain, layer = [], [optimizer]
    for _ in range(_DEPTH):
        chain += layer
        known = {id(each) for each in chain}
        inner = [_attribute(each, name) for each in layer for name in _WRAPPED]
        layer = [each for each in inner if id(each) not in known and callable(_attribute(each, "step"))]
        layer = list({id(each): each for each in layer}.values())
    return chain


def _attribute(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception:  # a property of somebody else's
        return None


def _runs_hooks(optimizer: Optimizer) -> bool:
    """Whether it was made by `Optimizer.__init__`, which wraps its `step`."""
    made = isinstance(_attribute(optimizer, "_optimizer_step_pre_hooks"), dict)
    return made and bool(_attribute(_attribute(type(optimizer), "step"), "hooked"))


def _parameters(optimizer: object) -> Iterator[Tensor]:
    groups = _attribute(optimizer, "param_groups")
    if not isinstance(groups, (list, tuple)):
        return
    for group in groups:
        inside = group.get("params", ()) if isinstance(group, dict) else ()
        yield from (each for each in inside if isinstance(each, Tensor))


class StepListener(Protocol):
    """Called around the steps of an optimizer, which are counted from 1."""

    def wants(self, step: int) -> bool:
        """Whether `before_step` is to be called."""
        ...

    def skip(self, step: int) -> None:
        """The optimizer will not take this step."""
        ...

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        """Weights and gradients belong together now."""
        ...

    def after_step(self, step: int, optimizer: Optimizer) -> None:
        """The step has been taken."""
        ...

    def stop(self, error: Exception) -> None:
        """Something has failed in a hook."""
        ...


@dataclass
class OptimizerHooks:
    """Step hooks on the optimizer that a user trains with, or on those that it wraps; each step is reported once.

    A step of a wrapped optimizer, or of a base class within the step of a subclass, is part of the outer one. Where
    gradients come with a closure, `before_step` is called after its first evaluation.
    """

    optimizer: object
    listener: StepListener
    step: int = 0
    _stepping: Optimizer | None = None  # whose step is under way
    _frame: FrameType | None = None  # of that step
    _inner: int = 0  # steps of the same optimizer that are under way within it

    def register(self) -> Iterator[RemovableHandle]:
        """Register with the optimizers that run hooks, which may be none; the handles take the hooks away again."""
        for optimizer in hooked_optimizers(self.optimizer):
            yield optimizer.register_step_pre_hook(self._before)
            yield optimizer.register_step_post_hook(self._after)

    def _before(self, optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]) -> Arguments | None:
        try:
            return self._begin(optimizer, args, kwargs)
        except Exception as error:  # nothing that happens here may end a training
            self.listener.stop(error)
            return None

    def _begin(self, optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]) -> Arguments | None:
        if self._stepping is not None and self._stepping is not optimizer and self._is_inside(optimizer):
            return None
        if self._stepping is optimizer and _is_running(self._frame):  # `super().step()` of a subclass runs hooks too
            self._inner += 1
            return None
        self._stepping, self._frame, self._inner = optimizer, _frame_of_step(), 0
        self.step += 1
        if not self.listener.wants(self.step):
            return None
        if _skipped(optimizer):
            self.listener.skip(self.step)
            return None
        itself, *rest = args  # torch passes the optimizer among the arguments
        closure = kwargs.get("closure", rest[0] if rest else None)
        if not callable(closure):
            self.listener.before_step(self.step, optimizer)
            return None
        reporting = _once_after(closure, lambda: self.listener.before_step(self.step, optimizer))
        return ((itself, reporting, *rest[1:]), kwargs) if rest else (args, kwargs | {"closure": reporting})

    def _is_inside(self, optimizer: Optimizer) -> bool:
        """Whether it is wrapped by the one whose step is under way."""
        return any(each is optimizer for each in hooked_optimizers(self._stepping)[1:])

    def _after(self, optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if self._stepping is not optimizer:
            return
        if self._inner:
            self._inner -= 1
            return
        self.listener.after_step(self.step, optimizer)
        self._stepping = self._frame = None


def _frame_of_step() -> FrameType | None:
    """The frame that runs the hooks of a step, and then the step."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return frame


def _is_running(frame: FrameType | None) -> bool:
    """Whether a frame is among those that led here; a step that raised is not."""
    above = inspect.currentframe()
    while above is not None and above is not frame:
        above = above.f_back
    return above is not None


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler has found an overflow, so that a fused optimizer will not take its step."""
    found = _attribute(optimizer, "found_inf")
    return found is not None and bool(found)


def _once_after(closure: Callable[..., object], report: Callable[[], None]) -> Callable[..., object]:
    """The closure, with a report after its first evaluation: there weights and gradients belong together."""
    pending = [report]

    @wraps(closure)
    def reporting(*args: object, **kwargs: object) -> object:
        loss = closure(*args, **kwargs)
        while pending:
            pending.pop()()
        return loss

    return reporting


# Forward pass -------------------------------------------------------------------------------------------------------


class ForwardRecord:
    """Hooks on a model's `forward` that record one call with gradients, and go; copies of the model get inert ones.

    `see` is given each call until then: an `Example` of its arguments, and the dtypes it computed in once it has ended.
    """

    def __init__(self, model: nn.Module, see: Callable[[Example], None]):
        self.see, self.example = see, Example(None)
        self.handles: list[RemovableHandle] = []
        try:
            self.handles.append(model.register_forward_pre_hook(_Inert(self._before), with_kwargs=True))
            self.handles.append(model.register_forward_hook(_Inert(self._after)))
        except Exception as error:  # a ScriptModule knows no keywords
            self.remove()
            see(Example(None, unread=f"the calls of a {type(model).__name__} cannot be seen ({type(error).__name__})"))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _before(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        try:
            self.example = Example.of_call(module, args, kwargs)
        except Exception as error:  # of any arguments, the training goes on
            reason = f"the arguments of the model could not be read ({type(error).__name__}: {error})"
            self.example = Example(None, unread=f"{reason}; pass example_inputs=")
        self.see(self.example)

    def _after(self, module: nn.Module, args: object, output: object) -> None:
        with suppress(Exception):  # unknown then: judged by the dtypes of the weights
            if torch.is_grad_enabled():
                self.remove()
                precision = narrowest(self.example.precision, computed_in(output))
                self.see(dataclasses.replace(self.example, precision=precision))


class _Inert:
    """A hook that copies and pickles as one that does nothing."""

    def __init__(self, hook: Callable[..., None]):
        self.hook = hook

    def __call__(self, *args: object) -> None:
        self.hook(*args)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _inert, ()


def _inert() -> Callable[..., None]:
    return _ignore


def _ignore(*args: object) -> None:
    return None
