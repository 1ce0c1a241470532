"""Operations that only move elements: labels are moved by the operation itself."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.signal import ZERO, Role, Signal, blank, is_zero, reshaped
from equipoise.graph.ops.operator import Unreadable, matches, rest

aten = torch.ops.aten

# Operations by what they may do to the copies of an element: keep every one, drop some, or make more.
KEEPING = [
    "view",
    "reshape",
    "_unsafe_view",
    "transpose",
    "permute",
    "t",
    "unsqueeze",
    "squeeze",
    "clone",
    "contiguous",
    "alias",
    "flatten",
    "flip",
    "roll",
    "numpy_T",
    "movedim",
    "swapaxes",
    "pixel_shuffle",
    "pixel_unshuffle",
    "unflatten",
    "view_as",
    "lift_fresh_copy",
    "detach_",
    "mT",
]
DROPPING = [
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "chunk",
    "unbind",
    "narrow",
    "diagonal",
    "tensor_split",
    "unsafe_split",
]
COPYING = ["expand", "repeat", "repeat_interleave", "tile", "unfold", "expand_as"]
_LIKE = ["expand_as", "view_as"]
_CASTING = ["_to_copy", "to", "type_as", "positive", "detach"]


def _moved(algebra: Algebra, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run the operation on the labels of its first argument."""
    signal, *others = args
    if name in ("view", "_unsafe_view", "reshape"):
        shape = tuple(torch.empty(signal.shape, device="meta").reshape(others[0]).shape)
        return _relabelled(algebra, signal, lambda labels: reshaped(labels, shape))
    operation = getattr(aten, name)
    others = pytree.tree_map_only(Signal, _plain if name not in _LIKE else _like, others)
    move = lambda labels: operation(labels, *others, **kwargs)  # noqa: E731
    moved = _relabelled(algebra, signal, move, drops=name in (*DROPPING, "unfold"), copies=name in COPYING)
    return replace(moved, alike=_added_axes(signal, moved)) if name in ("expand", "expand_as") else moved


def _added_axes(signal: Signal, expanded: Signal) -> frozenset[int]:
    """The axes that broadcasting adds."""
    sizes = (1,) * (expanded.ndim - signal.ndim) + signal.shape
    return frozenset(axis for axis, size in enumerate(sizes) if size == 1)


def _like(signal: Signal) -> Tensor:
    return torch.empty(signal.shape, device="meta")


def _plain(signal: Signal) -> Tensor:
    """A tensor that says how elements are moved; it must not depend on the data."""
    if signal.value is None:
        raise Unreadable("by the data")
    return signal.value


def _relabelled(
    algebra: Algebra, signal: Signal, move: Callable[[Tensor], Any], *, drops: bool = False, copies: bool = False
) -> Any:
    shapes = move(torch.zeros((), dtype=torch.int64).expand(signal.shape))
    pieces = [shapes] if isinstance(shapes, Tensor) else list(shapes)
    roles: list[list[Role]] = [[] for _ in pieces]
    for role in signal.roles:
        labels, fibres = move(role.coordinates), move(role.fibres)
        pairs = [(labels, fibres)] if isinstance(labels, Tensor) else zip(labels, fibres, strict=True)
        for piece, pair in zip(roles, pairs, strict=True):
            moved = Role(*pair)
            moved = algebra.distinct(moved) if copies else moved
            piece.append(algebra.close(moved) if drops else moved)
    results = [
        Signal(tuple(piece.shape), tuple(own), None, signal.weights) for piece, own in zip(pieces, roles, strict=True)
    ]
    return results[0] if isinstance(shapes, Tensor) else tuple(results)


def _register(name: str) -> None:
    @matches(name)
    def move(algebra: Algebra, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("memory_format", None)
        return _moved(algebra, name, args, kwargs)


for _name in (*KEEPING, *DROPPING, *COPYING):
    _register(_name)


@matches(*_CASTING, "neg", "conj", "_conj", "real")
def cast(algebra: Algebra, signal: Signal, *args: Any, **kwargs: Any) -> Signal:
    """Another dtype or another sign: the same linear action; integers have no gradient and must not move."""
    dtype = kwargs.get("dtype") or next((each for each in args if isinstance(each, torch.dtype)), torch.float64)
    if not (dtype.is_floating_point or dtype.is_complex):
        return rest(algebra, signal.shape, signal)
    return Signal(signal.shape, tuple(algebra.renewed(role) for role in signal.roles), None, signal.weights)


@matches("cat", "stack")
def join(algebra: Algebra, signals: Sequence[Signal], dim: int = 0, *, operation: Any = torch.cat) -> Signal:
    """Tensors side by side; zeros take whatever role the others have."""
    signals = [signal for signal in signals if signal.shape != (0,)]
    count = max((len(signal.roles) for signal in signals), default=0)
    columns = [_roles(signal, count) for signal in signals]
    roles = [
        algebra.distinct(Role(operation([r.coordinates for r in row], dim), operation([r.fibres for r in row], dim)))
        for row in zip(*columns, strict=True)
    ]
    like = operation([torch.empty(signal.shape, device="meta") for signal in signals], dim)
    return Signal(tuple(like.shape), tuple(roles))


@matches("stack")
def stack(algebra: Algebra, signals: Sequence[Signal], dim: int = 0) -> Signal:
    """Tensors along a new axis."""
    return join(algebra, signals, dim, operation=torch.stack)


def paired(left: Signal, right: Signal) -> list[tuple[Role, Role]]:
    """The roles of two tensors that become one, in order; zeros take whatever role the other has."""
    count = max(len(left.roles), len(right.roles))
    return list(zip(_roles(left, count), _roles(right, count), strict=True))


def _roles(signal: Signal, count: int) -> list[Role]:
    missing = [blank(signal.shape, ZERO) if is_zero(signal) else blank(signal.shape)] * (count - len(signal.roles))
    return [*signal.roles, *missing]


@matches("pad", "constant_pad_nd")
def pad(
    algebra: Algebra, signal: Signal, width: Sequence[int], mode: str = "constant", value: float | int | None = None
) -> Signal:
    """Zeros around, which no linear map moves; another constant stays where it is; other modes copy."""
    if mode == "constant" or isinstance(mode, (int, float)):
        constant = value if isinstance(mode, str) else mode
        label = -1 if constant else ZERO
        like = torch.nn.functional.pad(torch.empty(signal.shape, device="meta"), list(width))
        roles = [
            Role(
                torch.constant_pad_nd(role.coordinates, list(width), label),
                torch.constant_pad_nd(role.fibres, list(width)),
            )
            for role in signal.roles
        ]
        cropped = any(side < 0 for side in width)
        return Signal(tuple(like.shape), tuple(algebra.close(role) if cropped else role for role in roles))
    floating = lambda labels: torch.nn.functional.pad(labels.double(), list(width), mode=mode).long()  # noqa: E731
    return _relabelled(algebra, signal, floating, copies=True)


@matches("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def upsample(algebra: Algebra, signal: Signal, size: Any, scales: Any = None, *args: Any) -> Signal:
    """Every element copied over a small square."""
    spatial = signal.ndim - 2
    factor = scales if size is None else None
    copy = lambda labels: torch.nn.functional.interpolate(labels.double(), size, factor).long()  # noqa: E731
    assert spatial > 0
    return _relabelled(algebra, signal, copy, copies=True)


@matches("index")
def index(algebra: Algebra, signal: Signal, indices: Sequence[Signal | None]) -> Signal:
    """Fancy indexing: exact for constant indices; for indices in the data, all that may be picked must move alike."""
    if all(position is None or position.value is not None for position in indices):
        exact = [None if position is None else position.value for position in indices]
        return _relabelled(algebra, signal, lambda labels: aten.index(labels, exact), drops=True, copies=True)
    axes = [axis for axis, position in enumerate(indices) if position is not None]
    zeros = [None if p is None else torch.zeros(p.shape, dtype=torch.int64) for p in indices]
    return _picked(algebra, signal, axes, lambda labels: aten.index(labels, zeros))


@matches("index_select")
def index_select(algebra: Algebra, signal: Signal, dim: int, positions: Signal) -> Signal:
    """Slices along one axis."""
    axis = signal.axis(dim)
    return index(algebra, signal, [None] * axis + [positions])


@matches("gather")
def gather(algebra: Algebra, signal: Signal, dim: int, positions: Signal, **kwargs: Any) -> Signal:
    """Elements along one axis."""
    _one_by_one(algebra, signal, signal.axis(dim), positions)
    zeros = torch.zeros(positions.shape, dtype=torch.int64)
    return _picked(algebra, signal, [signal.axis(dim)], lambda labels: aten.gather(labels, dim, zeros))


def _one_by_one(algebra: Algebra, signal: Signal, axis: int, positions: Signal) -> None:
    """No mixing between elements that come from, or go to, different places along an axis."""
    same_places = positions.constant_axes()
    along = [other == axis or other in same_places for other in range(signal.ndim)]
    sizes = [1 if same else size for same, size in zip(along, signal.shape, strict=True)]
    key = torch.arange(math.prod(sizes)).reshape(sizes).expand(signal.shape)
    for role in signal.roles:
        algebra.separate(role, key)


def _picked(algebra: Algebra, signal: Signal, axes: Sequence[int], pick: Callable[[Tensor], Tensor]) -> Signal:
    alike = [algebra.uniform(role, axes) for role in signal.roles]
    spread = [role.moved(lambda labels: labels.expand(signal.shape)) for role in alike]
    return _relabelled(algebra, signal.with_roles(spread), pick, drops=True, copies=True)


@matches("embedding")
def embedding(
    algebra: Algebra,
    table: Signal,
    positions: Signal,
    padding: int = -1,
    by_frequency: Any = False,
    sparse: Any = False,
) -> Signal:
    """Rows of a table, chosen by the data: no action on the rows, any on the columns.

    Autograd drops the gradient of the row `padding_idx` and divides others by their frequency if asked to: what it
    returns is then not the gradient of the function, and obeys none of its laws.
    """
    if table.weights and (padding >= 0 or by_frequency):
        raise Unreadable(f"padding_idx={padding}" if padding >= 0 else "scale_grad_by_freq")
    for role in table.roles:
        if role.varies(0):
            algebra.pin(role)
    columns = table.with_roles([role for role in table.roles if not role.varies(0)])
    first = columns.with_roles([algebra.uniform(role, [0]) for role in columns.roles])
    shape = (*positions.shape, *table.shape[1:])
    roles = [algebra.expanded(Role(role.coordinates[0], role.fibres[0]), shape) for role in first.roles]
    return Signal(shape, tuple(roles))


@matches("scatter_reduce")
def scatter_reduce(
    algebra: Algebra, target: Signal, dim: int, positions: Signal, source: Signal, reduce: str, **kwargs: Any
) -> Signal:
    """Sums, means or maxima of what the data put into one place."""
    if reduce not in ("sum", "mean", "amax", "amin"):
        return rest(algebra, target.shape, target, source)
    source = algebra.diagonal(source) if reduce.startswith("a") else source
    return scatter_add(algebra, target, dim, positions, source)


@matches("scatter_add")
def scatter_add(
    algebra: Algebra, target: Signal, dim: int, positions: Signal, source: Signal, *args: Any, **kwargs: Any
) -> Signal:
    """Sums into places chosen for each element by itself."""
    _one_by_one(algebra, source, source.axis(dim), positions)
    return scatter(algebra, target, dim, positions, source)


@matches("index_add")
def scatter(
    algebra: Algebra, target: Signal, dim: int, positions: Signal, source: Signal, *args: Any, **kwargs: Any
) -> Signal:
    """Sums into places chosen by the data: everything along that axis must move alike."""
    axis = target.axis(dim)
    alike = [algebra.uniform(role, [axis]) for role in source.roles]
    narrow = [role.moved(lambda labels: _fitted(labels, axis, target.shape)) for role in alike]
    spread = [algebra.expanded(role, target.shape) for role in narrow]
    result = Signal(target.shape, tuple(algebra.renewed(role) for role in spread))
    if not is_zero(target):
        algebra.equal(result, target)
    return result


def _fitted(labels: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Labels with one index along `axis`, cut to the other axes of a shape."""
    for other, size in enumerate(shape):
        if other != axis and labels.shape[other] > size:
            labels = labels.narrow(other, 0, size)
    return labels
