"""Custom operators, as declared by their authors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from equipoise.errors import InputError
from equipoise.graph.ops import operation_name

Reference = Callable[..., object]
_OPERATORS: dict[str, Reference] = {}
_FUNCTIONS: dict[type[torch.autograd.Function], Reference] = {}


class acts_like:
    """From now on, or within a `with` block, laws are derived as if `operator` computed what `reference` does.

    `operator` is a `torch.library` operator such as `torch.ops.mine.linear` (or one of its overloads), or a subclass of
    `torch.autograd.Function`, whose `apply` is replaced while a model is read. The reference takes the same arguments.
    The operator's own backward is then checked by the laws of the reference. A `Function` that is not declared is read
    through its forward, as far as `torch.export` can follow it.

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

    def __init__(self, operator: object, reference: Reference):
        self._registry, self._key = _place(operator)
        self._before = self._registry.get(self._key)
        self._registry[self._key] = reference

    def __enter__(self) -> "acts_like":
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del self._registry[self._key]
        else:
            self._registry[self._key] = self._before


def declared() -> Mapping[str, Reference]:
    """The operators declared so far, by the name they have in a graph."""
    return dict(_OPERATORS)


@contextmanager
def functions_read_as_declared() -> Iterator[None]:
    """`apply` of every declared `autograd.Function` is its reference in here."""
    with ExitStack() as stack:
        for function, reference in _FUNCTIONS.items():
            stack.enter_context(patch.object(function, "apply", staticmethod(reference)))
        yield


def _place(operator: object) -> tuple[dict[Any, Reference], Any]:
    """The registry that an operator belongs to, and its key there."""
    if isinstance(operator, type) and issubclass(operator, torch.autograd.Function):
        return _FUNCTIONS, operator
    overload = getattr(operator, "_opoverload", None) or getattr(operator, "default", operator)
    if isinstance(overload, torch._ops.OpOverload):
        return _OPERATORS, operation_name(overload)
    raise InputError(
        expected="an operator of torch.library or a subclass of torch.autograd.Function",
        found=repr(operator),
        remedy="register it with torch.library.custom_op",
    )
