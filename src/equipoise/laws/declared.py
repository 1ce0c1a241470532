"""What operators that cannot be read compute, as declared by their authors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from equipoise.errors import InputError
from equipoise.graph.walk import operation_name

_DECLARED: ContextVar[Mapping[str, Callable[..., Any]]] = ContextVar("declared", default={})  # noqa: B039


@contextmanager
def acts_like(operator: Any, reference: Callable[..., Any]) -> Iterator[None]:
    """Within the context, laws are derived as if `operator` computed what `reference` does, argument for argument.

    `operator` is a `torch.library` operator such as `torch.ops.mine.linear` (or one of its overloads). Its own
    backward is then checked by the laws of the reference.

    >>> import torch
    >>> from torch import Tensor, nn
    >>> from equipoise.laws import invariances
    >>> @torch.library.custom_op("doc_acts_like::affine", mutates_args=())
    ... def affine(x: Tensor, weight: Tensor) -> Tensor:
    ...     return x @ weight.T
    >>> @affine.register_fake
    ... def _(x: Tensor, weight: Tensor) -> Tensor:
    ...     return x.new_empty(*x.shape[:-1], weight.shape[0])
    >>> class Layer(nn.Linear):
    ...     def forward(self, x):
    ...         return affine(x, self.weight)
    >>> model = nn.Sequential(Layer(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> len(invariances(model, torch.ones(2, 3)))
    0
    >>> with acts_like(affine, torch.nn.functional.linear):
    ...     print(invariances(model, torch.ones(2, 3)))
    0.weight → 2.weight: vertex, 4 conserved

    Raises `InputError` for anything that is not an operator.
    """
    names = {_name(operator): reference}
    token = _DECLARED.set({**_DECLARED.get(), **names})
    try:
        yield
    finally:
        _DECLARED.reset(token)


def declared() -> Mapping[str, Callable[..., Any]]:
    """The declarations in force."""
    return _DECLARED.get()


def _name(operator: Any) -> str:
    overload = getattr(operator, "_opoverload", None) or getattr(operator, "default", operator)
    if not isinstance(overload, torch._ops.OpOverload):
        raise InputError(
            expected="an operator of torch.library",
            found=repr(operator),
            remedy="register it with torch.library.custom_op; an autograd.Function is read through its forward",
        )
    return operation_name(overload)
