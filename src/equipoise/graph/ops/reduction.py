"""Sums, means, maxima and pools: what is reduced must move alike."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.signal import ZERO, Role, Signal
from equipoise.graph.ops.operator import matches
from equipoise.graph.ops.pointwise import add

Axes = int | Sequence[int] | None


def _axes(signal: Signal, dim: Axes) -> list[int]:
    if dim is None or isinstance(dim, bool) or (not isinstance(dim, int) and len(dim) == 0):
        return list(range(signal.ndim))
    return [dim] if isinstance(dim, int) else list(dim)


@matches("sum", "mean", "nansum")
def linear_reduction(algebra: Algebra, signal: Signal, dim: Axes = None, keepdim: Any = False, **kwargs: Any) -> Signal:
    """Sums and means keep whatever acts alike on all summands."""
    return algebra.total(signal, _axes(signal, dim), keep=bool(keepdim))


@matches("amax", "amin")
def extremum(algebra: Algebra, signal: Signal, dim: Axes = None, keepdim: Any = False) -> Signal:
    """The largest of elements that all scale alike."""
    return algebra.total(algebra.diagonal(signal), _axes(signal, dim), keep=bool(keepdim))


@matches("kthvalue")
def kth_value(algebra: Algebra, signal: Signal, k: int, dim: int = -1, keepdim: Any = False) -> Any:
    """The k-th smallest of elements that all scale alike, and its place."""
    return extremum_with_place(algebra, signal, dim, keepdim)


@matches("max", "min", "median", "nanmedian", "mode")
def extremum_with_place(algebra: Algebra, signal: Signal, dim: Any = None, keepdim: Any = False) -> Any:
    """`max` of a tensor, along an axis (with the place of the maximum), or of two tensors."""
    if isinstance(dim, Signal):
        sides = algebra.broadcast(algebra.diagonal(signal), algebra.diagonal(dim))
        return add(algebra, *sides)  # they must move alike, as summands do
    value = extremum(algebra, signal, dim, keepdim)
    return value if dim is None else (value, Signal(value.shape))


@matches("maximum", "minimum", "fmax", "fmin")
def larger(algebra: Algebra, left: Signal, right: Signal) -> Signal:
    """The larger of two tensors that scale alike."""
    return extremum_with_place(algebra, left, right)


@matches("linalg_vector_norm", "norm")
def vector_norm(
    algebra: Algebra, signal: Signal, order: Any = 2, dim: Axes = None, keepdim: Any = False, **kwargs: Any
) -> Signal:
    """A norm is homogeneous of degree one; the number of elements that are not zero is no norm."""
    if order == 0:
        algebra.still(signal)
    if order == 2:
        algebra.turns(signal, _axes(signal, dim))
    return extremum(algebra, signal, dim, keepdim)


@matches("std")
def deviation(
    algebra: Algebra, signal: Signal, dim: Axes = None, unbiased: Any = True, keepdim: Any = False, **kwargs: Any
) -> Signal:
    """A standard deviation; see `variance` for its square."""
    algebra.turns(signal, _axes(signal, dim))
    return extremum(algebra, signal, dim, keepdim)


@matches("var")
def variance(
    algebra: Algebra, signal: Signal, dim: Axes = None, unbiased: Any = True, keepdim: Any = False, **kwargs: Any
) -> Signal:
    """A variance is homogeneous of degree two."""
    algebra.turns(signal, _axes(signal, dim))
    return algebra.scaled(extremum(algebra, signal, dim, keepdim), Fraction(2))


@matches("cumsum")
def cumulative_sum(algebra: Algebra, signal: Signal, dim: int, **kwargs: Any) -> Signal:
    """Partial sums along an axis."""
    axis = [signal.axis(dim)]
    for role in signal.roles:
        algebra.merges(role, axis)
    roles = [algebra.uniform(role, axis) for role in signal.roles]
    return signal.with_roles([algebra.expanded(role, signal.shape) for role in roles])


@matches("max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices")
@matches("max_pool3d_with_indices")
def max_pool(
    algebra: Algebra,
    signal: Signal,
    kernel: Sequence[int],
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
) -> Signal:
    """The largest of a window whose elements scale alike (over units: one rate for each connected component)."""
    return _pool(algebra, algebra.diagonal(signal), kernel, stride, padding, dilation, ceil_mode)


@matches("avg_pool1d", "avg_pool2d", "avg_pool3d")
def average_pool(
    algebra: Algebra,
    signal: Signal,
    kernel: Sequence[int],
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: Any = False,
    *args: Any,
) -> Signal:
    """The mean of a window that moves alike."""
    return _pool(algebra, signal, kernel, stride, padding, 1, ceil_mode)


@matches("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d")
def adaptive_average(algebra: Algebra, signal: Signal, size: Sequence[int]) -> Signal:
    """Means over parts of a plane on which everything moves alike."""
    count = len(size)
    axes = list(range(signal.ndim - count, signal.ndim))
    pooled = algebra.total(signal, axes, keep=True)
    shape = (*signal.shape[:-count], *(signal.shape[a] if s is None else s for a, s in zip(axes, size, strict=True)))
    return Signal(shape, tuple(algebra.expanded(role, shape) for role in pooled.roles))


@matches("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_maximum(algebra: Algebra, signal: Signal, size: Sequence[int]) -> Any:
    """Maxima over parts of a plane on which everything scales alike."""
    pooled = adaptive_average(algebra, algebra.diagonal(signal), size)
    return pooled, Signal(pooled.shape)


@matches("upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d", "upsample_bicubic2d")
def interpolated(algebra: Algebra, signal: Signal, size: Any, align: Any = False, scales: Any = None) -> Signal:
    """Weighted means of neighbours that move alike."""
    axes = range(2, signal.ndim)
    new = size or [int(signal.shape[axis] * scale) for axis, scale in zip(axes, scales, strict=True)]
    return adaptive_average(algebra, signal, list(new))


def _pool(
    algebra: Algebra, signal: Signal, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> Signal:
    count = len(kernel)
    settings = [_each(value, count) for value in (kernel, stride or kernel, padding, dilation)]
    axes = range(signal.ndim - count, signal.ndim)
    shape = list(signal.shape)
    roles = [(role.coordinates, role.fibres) for role in signal.roles]
    for axis, window, step, pad, spread in zip(axes, *settings, strict=True):
        shape[axis] = _pooled_size(shape[axis], window, step, pad, spread, bool(ceil_mode))
        roles = [_pool_axis(algebra, Role(*role), axis, shape[axis], window, step, pad, spread) for role in roles]
        roles = [(role.coordinates, role.fibres) for role in roles]
    return Signal(tuple(shape), tuple(algebra.renewed(Role(*role)) for role in roles))


def _each(value: Any, count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value) * (count // len(value))


def _pooled_size(size: int, window: int, step: int, pad: int, spread: int, ceil_mode: bool) -> int:
    reach = size + 2 * pad - spread * (window - 1) - 1
    count = -(-reach // step) + 1 if ceil_mode else reach // step + 1
    return count - 1 if ceil_mode and (count - 1) * step >= size + pad else count


def _pool_axis(
    algebra: Algebra, role: Role, axis: int, size: int, window: int, step: int, pad: int, spread: int
) -> Role:
    """The role of windows along one axis: all that a window holds moves like the first element in it."""
    length = role.coordinates.shape[axis]
    places = torch.arange(size)[:, None] * step - pad + torch.arange(window) * spread
    inside = (places >= 0) & (places < length)
    first = torch.where(inside, places, length).min(1).values
    pooled = role.moved(lambda labels: labels.index_select(axis, first))
    if bool((role.compact == ZERO).any()):
        pooled = _first_moving(role, axis, places, inside)
    for tap in range(window):
        valid = inside[:, tap]
        other = role.moved(lambda labels, tap=tap, valid=valid: labels.index_select(axis, places[valid, tap]))
        algebra.agree(other, pooled.moved(lambda labels, valid=valid: _kept(labels, axis, valid)), 1)
    return pooled


def _first_moving(role: Role, axis: int, places: Tensor, inside: Tensor) -> Role:
    """Of each window the first element that is not a zero."""
    chosen: Role | None = None
    for tap in reversed(range(places.shape[1])):
        place = torch.where(inside[:, tap], places[:, tap], 0)
        own = role.moved(lambda labels, place=place: labels.index_select(axis, place))
        chosen = own if chosen is None else chosen
        better = (own.coordinates != ZERO) & inside[:, tap].reshape(-1, *([1] * (own.coordinates.ndim - 1 - axis)))
        chosen = Role(
            torch.where(better, own.coordinates, chosen.coordinates), torch.where(better, own.fibres, chosen.fibres)
        )
    assert chosen is not None
    return chosen


def _kept(labels: Tensor, axis: int, valid: Tensor) -> Tensor:
    return labels.index_select(axis, torch.nonzero(valid)[:, 0])
