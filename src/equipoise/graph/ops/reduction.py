"""Sums, means, maxima and pools: what is reduced must move alike."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, fx
from torch.fx.node import Argument
from torch.utils import _pytree as pytree

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.shift_groups import Groups, Rows, along, dense
from equipoise.graph.labels.signal import ZERO, Role, Signal
from equipoise.graph.ops import rules
from equipoise.graph.ops.arithmetic import add, ignored_by_centring
from equipoise.graph.ops.movement import Moved
from equipoise.graph.ops.operator import (
    OPERATORS,
    CombinationRule,
    Operator,
    Regularity,
    Site,
    Sources,
    Summands,
    Trait,
    declare,
    element_numbers,
)
from equipoise.graph.ops.pointwise import larger_of, smaller_of
from equipoise.graph.piecewise import Largest, Piecewise, Pooled

Axes: TypeAlias = int | Sequence[int] | None
Sizes: TypeAlias = int | Sequence[int]

# Symmetries -----------------------------------------------------------------------------------------------------------


def _axes(signal: Signal, dim: Axes) -> list[int]:
    if dim is None or isinstance(dim, bool) or (not isinstance(dim, int) and len(dim) == 0):
        return list(range(signal.ndim))
    return [dim] if isinstance(dim, int) else list(dim)


def linear_reduction(
    algebra: Algebra, signal: Signal, dim: Axes = None, keepdim: object = False, **kwargs: object
) -> Signal:
    """Sums and means keep what acts alike on all summands."""
    return algebra.total(signal, _axes(signal, dim), keep=bool(keepdim))


def extremum(algebra: Algebra, signal: Signal, dim: Axes = None, keepdim: object = False) -> Signal:
    """The largest of elements that all scale alike."""
    return algebra.total(algebra.diagonal(signal), _axes(signal, dim), keep=bool(keepdim))


def kth_value(algebra: Algebra, signal: Signal, k: int, dim: int = -1, keepdim: object = False) -> Moved:
    """The k-th smallest of elements that all scale alike, and its place."""
    return extremum_with_place(algebra, signal, dim, keepdim)


def extremum_with_place(algebra: Algebra, signal: Signal, dim: Axes | Signal = None, keepdim: object = False) -> Moved:
    """`max` of a tensor, along an axis (with the place of the maximum), or of two tensors."""
    if isinstance(dim, Signal):
        return larger(algebra, signal, dim)
    value = extremum(algebra, signal, dim, keepdim)
    return value if dim is None else (value, Signal(value.shape))


def larger(algebra: Algebra, left: Signal, right: Signal) -> Signal:
    """The larger of two tensors, which scale alike as summands do."""
    return add(algebra, *algebra.broadcast(algebra.diagonal(left), algebra.diagonal(right)))


def vector_norm(
    algebra: Algebra, signal: Signal, order: object = 2, dim: Axes = None, keepdim: object = False, **kwargs: object
) -> Signal:
    """A norm is homogeneous of degree one; the number of elements that are not zero is no norm."""
    if order == 0:
        algebra.still(signal)
    if order == 2:
        algebra.turns(signal, _axes(signal, dim))
    return extremum(algebra, signal, dim, keepdim)


def deviation(
    algebra: Algebra,
    signal: Signal,
    dim: Axes = None,
    unbiased: object = True,
    keepdim: object = False,
    **kwargs: object,
) -> Signal:
    """A standard deviation; see `variance` for its square."""
    algebra.turns(signal, _axes(signal, dim))
    return extremum(algebra, signal, dim, keepdim)


def variance(
    algebra: Algebra,
    signal: Signal,
    dim: Axes = None,
    unbiased: object = True,
    keepdim: object = False,
    **kwargs: object,
) -> Signal:
    """A variance is homogeneous of degree two."""
    algebra.turns(signal, _axes(signal, dim))
    return algebra.scaled(extremum(algebra, signal, dim, keepdim), Fraction(2))


def cumulative_sum(algebra: Algebra, signal: Signal, dim: int, **kwargs: object) -> Signal:
    """Partial sums along an axis."""
    axis = [signal.axis(dim)]
    for role in signal.roles:
        algebra.merges(role, axis)
    roles = [algebra.uniform(role, axis) for role in signal.roles]
    return signal.with_roles([algebra.expanded(role, signal.shape) for role in roles])


def in_order(
    algebra: Algebra, signal: Signal, dim: int | bool | None = -1, *args: object, **kwargs: object
) -> tuple[Signal, Signal]:
    """Elements that scale alike, in their order along an axis, and their places."""
    named = kwargs.get("dim", dim)
    axis = [signal.axis(named if isinstance(named, int) else -1)]
    for role in signal.roles:  # `I + t 11ᵀ` passes too
        algebra.merges(role, axis)
    alike = [algebra.uniform(role, axis) for role in algebra.diagonal(signal).roles]
    return signal.with_roles([algebra.expanded(role, signal.shape) for role in alike]), Signal(signal.shape)


def largest(algebra: Algebra, signal: Signal, count: int, dim: int = -1, *args: object) -> tuple[Signal, Signal]:
    """The first of these."""
    values, _ = in_order(algebra, signal if count == signal.shape[dim] else algebra.diagonal(signal), dim)
    narrow = OPERATORS["narrow"].symmetry
    assert narrow is not None
    kept = narrow(algebra, replace(values, value=None), dim, 0, count)
    assert isinstance(kept, Signal)
    return kept, Signal(kept.shape)


def max_pool(
    algebra: Algebra,
    signal: Signal,
    kernel: Sequence[int],
    stride: Sizes = (),
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: object = False,
) -> Signal:
    """The largest of a window whose elements scale alike (over units: one rate for each connected component)."""
    return _pool(algebra, algebra.diagonal(signal), kernel, stride, padding, dilation, ceil_mode)


def average_pool(
    algebra: Algebra,
    signal: Signal,
    kernel: Sequence[int],
    stride: Sizes = (),
    padding: Sizes = 0,
    ceil_mode: object = False,
    *args: object,
) -> Signal:
    """The mean of a window that moves alike."""
    return _pool(algebra, signal, kernel, stride, padding, 1, ceil_mode)


def adaptive_average(algebra: Algebra, signal: Signal, size: Sequence[int]) -> Signal:
    """Means over parts of a plane on which everything moves alike."""
    count = len(size)
    axes = list(range(signal.ndim - count, signal.ndim))
    pooled = algebra.total(signal, axes, keep=True)
    shape = (*signal.shape[:-count], *(signal.shape[a] if s is None else s for a, s in zip(axes, size, strict=True)))
    return Signal(shape, tuple(algebra.expanded(role, shape) for role in pooled.roles))


def adaptive_maximum(algebra: Algebra, signal: Signal, size: Sequence[int]) -> Moved:
    """Maxima over parts of a plane on which everything scales alike."""
    pooled = adaptive_average(algebra, algebra.diagonal(signal), size)
    return pooled, Signal(pooled.shape)


def interpolated(
    algebra: Algebra,
    signal: Signal,
    size: Sequence[int] | None,
    align: object = False,
    scales: Sequence[float | int] | None = None,
) -> Signal:
    """Weighted means of neighbours that move alike."""
    axes = range(2, signal.ndim)
    new = size or [int(signal.shape[axis] * scale) for axis, scale in zip(axes, scales or (), strict=True)]
    return adaptive_average(algebra, signal, list(new))


def _pool(
    algebra: Algebra,
    signal: Signal,
    kernel: Sequence[int],
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: object,
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


def _each(value: Sizes, count: int) -> list[int]:
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


# Shifts ---------------------------------------------------------------------------------------------------------------


def _ignored_by_variance(site: Site) -> Sources:
    source = site.source()
    shape = site.shape_of(source)
    yield source, along(shape, site.integers(1) or range(len(shape)))


def _shift_of_total(site: Site, groups: Groups | Rows) -> Sources:
    """A sum or a mean: its groups move with one summand of each."""
    source, labels = site.source(), dense(groups, site.shape)
    shape = site.shape_of(source)
    axes = [axis % len(shape) for axis in site.integers(1) or range(len(shape))]
    if labels is not None and not site.node.kwargs:
        kept = labels.reshape([1 if axis in axes else size for axis, size in enumerate(shape)])
        summand = element_numbers([size if axis in axes else 1 for axis, size in enumerate(shape)])
        yield source, torch.where(kept >= 0, kept * summand.numel() + summand, kept)


# Combinations ---------------------------------------------------------------------------------------------------------


def _totals(*, mean: bool) -> CombinationRule:
    """Sums over axes, or means."""

    def rule(site: Site) -> Summands:
        source = site.source()
        shape = site.shape_of(source)
        axes = [axis % len(shape) for axis in site.integers(1) or range(len(shape))]
        kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
        total = element_numbers(kept).expand(shape).reshape(-1).numpy()
        count = math.prod(shape)
        share = math.prod(kept) / count if mean else 1.0
        matrix = csr_array((np.full(count, share), (total, np.arange(count))), shape=(math.prod(kept), count))
        yield source, matrix

    return rule


# Degrees --------------------------------------------------------------------------------------------------------------


def _of_larger(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    """Along an axis, or of two tensors."""
    return of.agreed([of(side) for side in node.args[:2] if isinstance(side, fx.Node)])


def _twice(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    return 2 * of(node.args[0])


# Kinks ----------------------------------------------------------------------------------------------------------------


def _max_pooled(axes: int) -> Callable[[fx.Node], Piecewise | None]:
    def read(node: fx.Node) -> Piecewise | None:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        kernel = _per_axis(given["kernel_size"], axes)
        plain = set(_per_axis(given.get("dilation", 1), axes)) == {1} and not given.get("ceil_mode", False)
        if not plain:
            return None
        return Pooled(kernel, _per_axis(given.get("stride") or kernel, axes), _per_axis(given.get("padding", 0), axes))

    return read


def _largest_of(node: fx.Node) -> Piecewise:
    axes, kept, *_ = (*node.args[1:], (), False)
    return Largest(tuple(pytree.tree_leaves(axes)), bool(kept))


def _per_axis(value: Argument, axes: int) -> tuple[int, ...]:
    values = tuple(pytree.tree_leaves(value))
    return values * axes if len(values) == 1 else values


def _max(z: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    return z.amax() if dim is None else (z.amax(dim, keepdim), z.argmax(dim, keepdim))


def _min(z: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    return -(-z).amax() if dim is None else (-(-z).amax(dim, keepdim), z.argmin(dim, keepdim))


def _amin(z: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    return -torch.amax(-z, dim, keepdim)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _adaptive_max_pool(z: Tensor, sizes: int | Sequence[int]) -> object:
    """Where windows are of one size, their maxima; the places of these are of no use here."""
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    shape = z.shape[-len(sizes) :]
    if any(length % size for length, size in zip(shape, sizes, strict=True)):
        return NotImplemented
    for axis, size in enumerate(sizes, -len(sizes)):
        z = z.unflatten(axis, (size, -1)).amax(axis)
    return z, torch.zeros_like(z, dtype=torch.int64)


# Sums over paths ------------------------------------------------------------------------------------------------------


def _lifted_mean(
    algebra: rules.PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    return algebra.mean(args[0], args[1:])


def _lifted_windows(
    algebra: rules.PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    """A maximum as a sum."""
    return algebra.window_sums(args[0], args[1:])


def _lifted_average(
    algebra: rules.PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    """A mean as a sum of equal edges."""
    sizes = pytree.tree_leaves(args[1])
    count = sizes[0] * sizes[-1]
    return algebra.scaled(algebra.window_sums(args[0], args[1:]), 1 / count)


def _lifted_global_average(
    algebra: rules.PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    """Of a whole plane; of parts of one None."""
    return algebra.mean(args[0], ((-2, -1), True)) if pytree.tree_leaves(args[1]) == [1, 1] else None


# Declarations ---------------------------------------------------------------------------------------------------------

_TOTAL = Operator(
    symmetry=linear_reduction,
    shift=_shift_of_total,
    degree=rules.kept,
    regularity=Regularity.LINEAR,
    traits=Trait.TOTAL,
)
declare("sum", replace(_TOTAL, combination=_totals(mean=False), lift=rules.lifted_moves))
declare(
    "mean",
    replace(
        _TOTAL,
        ignores=ignored_by_centring,
        exchange=rules.passed,
        combination=_totals(mean=True),
        lift=_lifted_mean,
        traits=Trait.TOTAL | Trait.CENTRE,
    ),
)
declare("nansum", Operator(symmetry=linear_reduction, degree=rules.kept))
declare("cumsum", Operator(symmetry=cumulative_sum, degree=rules.kept, regularity=Regularity.LINEAR))

_EXTREMUM = Operator(
    symmetry=extremum,
    ignores=ignored_by_centring,
    degree=rules.kept,
    regularity=Regularity.BENT,
    traits=Trait.CENTRE,
)
declare("amax", replace(_EXTREMUM, piecewise=_largest_of))
declare("amin", replace(_EXTREMUM, decompositions={"default": _amin}))
_WITH_PLACE = Operator(symmetry=extremum_with_place, degree=_of_larger, regularity=Regularity.BENT)
declare("max", replace(_WITH_PLACE, decompositions={"default": _max, "dim": _max, "other": larger_of}))
declare("min", replace(_WITH_PLACE, decompositions={"default": _min, "dim": _min, "other": smaller_of}))
declare("median nanmedian mode", Operator(symmetry=extremum_with_place, degree=rules.kept))
declare("kthvalue", Operator(symmetry=kth_value, degree=rules.kept))
_LARGER = Operator(symmetry=larger, degree=_of_larger, regularity=Regularity.BENT)
declare("maximum", replace(_LARGER, decompositions={"default": larger_of}))
declare("minimum", replace(_LARGER, decompositions={"default": smaller_of}))
declare("fmax", replace(_LARGER, regularity=None, decompositions={"default": larger_of}))
declare("fmin", replace(_LARGER, regularity=None, decompositions={"default": smaller_of}))
declare("sort", Operator(symmetry=in_order, degree=rules.kept))
declare("topk", Operator(symmetry=largest, degree=rules.kept))

_NORM = Operator(
    symmetry=vector_norm, degree=rules.kept, regularity=Regularity.SMOOTH, traits=Trait.NORM | Trait.ROTATABLE
)
declare("linalg_vector_norm norm", _NORM)
declare(
    "std", Operator(symmetry=deviation, ignores=_ignored_by_variance, degree=rules.kept, regularity=Regularity.SMOOTH)
)
declare("var", Operator(symmetry=variance, ignores=_ignored_by_variance, degree=_twice, regularity=Regularity.SMOOTH))
declare("var_mean prod", Operator(regularity=Regularity.SMOOTH))

_MAX_POOL = Operator(symmetry=max_pool, degree=rules.kept, regularity=Regularity.BENT, traits=Trait.POOLING)
declare("max_pool1d", replace(_MAX_POOL, piecewise=_max_pooled(1)))
declare(
    "max_pool2d",
    replace(_MAX_POOL, piecewise=_max_pooled(2), lift=_lifted_windows, traits=Trait.POOLING | Trait.CHANNELWISE),
)
declare("max_pool3d", _MAX_POOL)
declare(
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices",
    Operator(symmetry=max_pool, degree=rules.kept),
)
_AVERAGE_POOL = Operator(
    symmetry=average_pool,
    ignores=ignored_by_centring,
    degree=rules.kept,
    regularity=Regularity.LINEAR,
    traits=Trait.POOLING | Trait.CENTRE,
)
declare("avg_pool1d avg_pool3d", _AVERAGE_POOL)
declare(
    "avg_pool2d",
    replace(_AVERAGE_POOL, lift=_lifted_average, traits=_AVERAGE_POOL.traits | Trait.CHANNELWISE),
)
_ADAPTIVE = Operator(symmetry=adaptive_average, degree=rules.kept, regularity=Regularity.LINEAR, traits=Trait.POOLING)
declare("adaptive_avg_pool1d adaptive_avg_pool3d _adaptive_avg_pool2d", _ADAPTIVE)
declare("adaptive_avg_pool2d", replace(_ADAPTIVE, lift=_lifted_global_average))
_ADAPTIVE_MAX = Operator(symmetry=adaptive_maximum, degree=rules.kept, regularity=Regularity.BENT, traits=Trait.POOLING)
declare(
    "adaptive_max_pool1d adaptive_max_pool2d", replace(_ADAPTIVE_MAX, decompositions={"default": _adaptive_max_pool})
)
declare("adaptive_max_pool3d", _ADAPTIVE_MAX)
_INTERPOLATED = Operator(symmetry=interpolated, degree=rules.kept)
declare("upsample_linear1d upsample_trilinear3d upsample_bicubic2d", _INTERPOLATED)
declare("upsample_bilinear2d", replace(_INTERPOLATED, regularity=Regularity.LINEAR))
