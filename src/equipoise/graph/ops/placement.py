"""Parts of a tensor written over, rows of a table summed, elements put in order."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.signal import Role, Signal
from equipoise.graph.ops.contraction import dotted, einsum
from equipoise.graph.ops.movement import embedding, paired
from equipoise.graph.ops.operator import MATCHERS, Unreadable, matches
from equipoise.graph.ops.pointwise import add

aten = torch.ops.aten


def _written(algebra: Algebra, target: Signal, source: Signal, write: Callable[[Tensor, Tensor], Tensor]) -> Signal:
    """A part of the target replaced by the source: labels are replaced by the operation itself."""
    roles = [
        algebra.close(algebra.distinct(Role(write(a.coordinates, b.coordinates), write(a.fibres, b.fibres))))
        for a, b in paired(target, source)
    ]
    return Signal(target.shape, tuple(roles))


@matches("slice_scatter")
def slice_scatter(algebra: Algebra, target: Signal, source: Signal, *args: Any) -> Signal:
    """A slice of the target replaced."""
    return _written(algebra, target, source, lambda a, b: aten.slice_scatter(a, b, *args))


@matches("select_scatter")
def select_scatter(algebra: Algebra, target: Signal, source: Signal, *args: Any) -> Signal:
    """One index along an axis of the target replaced."""
    return _written(algebra, target, source, lambda a, b: aten.select_scatter(a, b, *args))


@matches("index_put")
def put(
    algebra: Algebra, target: Signal, indices: Sequence[Signal | None], source: Signal, accumulate: Any = False
) -> Signal:
    """Entries at known places replaced."""
    if accumulate or any(place is not None and place.value is None for place in indices):
        raise Unreadable("at places in the data")
    places = [None if place is None else place.value for place in indices]
    return _written(algebra, target, source, lambda a, b: aten.index_put(a, places, b))


@matches("copy")
def copied(algebra: Algebra, target: Signal, source: Signal, *args: Any, **kwargs: Any) -> Signal:
    """The whole target replaced."""
    return Signal(target.shape, tuple(algebra.expanded(role, target.shape) for role in source.roles))


@matches("lerp")
def interpolated(algebra: Algebra, start: Signal, end: Signal, weight: Any) -> Signal:
    """`start + weight (end - start)`: both must move alike."""
    if not isinstance(weight, Signal):
        return add(algebra, start, end)
    algebra.still(weight)
    fixed = weight.with_roles([])
    return add(algebra, algebra.product(start, fixed), algebra.product(end, fixed))


@matches("tensordot")
def tensordot(algebra: Algebra, left: Signal, right: Signal, over: Sequence[int], onto: Sequence[int]) -> Signal:
    """A product summed over these axes of the factors."""
    terms, output = dotted([left.ndim, right.ndim], over, onto)
    return einsum(algebra, f"{','.join(terms)}->{output}", [left, right])


@matches("sort")
def in_order(algebra: Algebra, signal: Signal, dim: int = -1, descending: Any = False, **kwargs: Any) -> Any:
    """Elements that scale alike, in their order along an axis, and their places."""
    axis = [signal.axis(kwargs.get("dim", dim))]
    alike = [algebra.uniform(role, axis) for role in algebra.diagonal(signal).roles]
    return signal.with_roles([algebra.expanded(role, signal.shape) for role in alike]), Signal(signal.shape)


@matches("topk")
def largest(algebra: Algebra, signal: Signal, count: int, dim: int = -1, *args: Any) -> Any:
    """The first of these."""
    values, _ = in_order(algebra, signal, dim)
    kept = MATCHERS["narrow"](algebra, replace(values, value=None), dim, 0, count)
    return kept, Signal(kept.shape)


@matches("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(
    algebra: Algebra,
    table: Signal,
    positions: Signal,
    offsets: Signal,
    by_frequency: Any = False,
    mode: int = 0,
    sparse: Any = False,
    weights: Signal | None = None,
    last_offset: Any = False,
    padding: int | None = -1,
) -> tuple[Signal, ...]:
    """Sums, means or maxima of rows of a table, chosen by the data."""
    if weights is not None:
        algebra.still(weights)
    rows = embedding(algebra, table, positions, -1 if padding is None else padding, by_frequency)
    rows = algebra.diagonal(rows) if mode == 2 else rows
    bags = (offsets.shape[0] - bool(last_offset), table.shape[1])
    found = [algebra.expanded(algebra.uniform(role, [0]), bags) for role in rows.roles]
    return Signal(bags, tuple(found)), *(Signal(offsets.shape) for _ in range(3))
