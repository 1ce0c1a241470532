"""Operations that only move elements, or convert them: labels are moved by the operation itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.relations import selection
from equipoise.graph.labels.shift_groups import Groups, Rows, dense, pull, spread
from equipoise.graph.labels.signal import ZERO, Role, Signal, blank, is_zero, reshaped
from equipoise.graph.ops import rules
from equipoise.graph.ops.operator import (
    Movement,
    Operator,
    Regularity,
    Site,
    Sources,
    Summands,
    SymmetryRule,
    Trait,
    Unreadable,
    declare,
    element_numbers,
    operator_of,
    rest,
)

aten = torch.ops.aten
Moved: TypeAlias = Signal | tuple[Signal, ...]

# Symmetries -----------------------------------------------------------------------------------------------------------


def _moves(name: str, movement: Movement) -> SymmetryRule:
    """Run the operation on the labels of its first argument."""
    operation = getattr(aten, name)
    sample = {"expand_as", "view_as"}

    def rule(algebra: Algebra, signal: Signal, *others: object, **kwargs: object) -> Moved:
        kwargs.pop("memory_format", None)
        as_tensors = pytree.tree_map_only(Signal, _shaped_like if name in sample else known_value, others)
        move = lambda labels: operation(labels, *as_tensors, **kwargs)  # noqa: E731
        return relabelled(
            algebra,
            signal,
            move,
            drops=movement is Movement.DROPPED or name == "unfold",
            copies=movement is Movement.COPIED,
        )

    return rule


def _viewed(algebra: Algebra, signal: Signal, size: Sequence[int], **kwargs: object) -> Moved:
    """The same elements in the same order; axes along which nothing changes stay so."""
    shape = tuple(torch.empty(signal.shape, device="meta").reshape(size).shape)
    return relabelled(algebra, signal, lambda labels: reshaped(labels, shape))


def _broadcasts(name: str) -> SymmetryRule:
    rule = _moves(name, Movement.COPIED)

    def expanded(algebra: Algebra, signal: Signal, *others: object, **kwargs: object) -> Moved:
        moved = rule(algebra, signal, *others, **kwargs)
        assert isinstance(moved, Signal)
        return replace(moved, alike=_added_axes(signal, moved))

    return expanded


def _added_axes(signal: Signal, expanded: Signal) -> frozenset[int]:
    """The axes that broadcasting adds."""
    sizes = (1,) * (expanded.ndim - signal.ndim) + signal.shape
    return frozenset(axis for axis, size in enumerate(sizes) if size == 1)


def _shaped_like(signal: Signal) -> Tensor:
    return torch.empty(signal.shape, device="meta")


def known_value(signal: Signal) -> Tensor:
    """A tensor that says how elements are moved; raises `Unreadable` if it depends on the data."""
    if signal.value is None:
        raise Unreadable("by the data")
    return signal.value


def relabelled(
    algebra: Algebra,
    signal: Signal,
    move: Callable[[Tensor], Tensor | Sequence[Tensor]],
    *,
    drops: bool = False,
    copies: bool = False,
) -> Moved:
    """The roles of a tensor after an operation that moves labels as it moves elements."""
    shapes = move(torch.zeros((), dtype=torch.int64).expand(signal.shape))
    pieces = [shapes] if isinstance(shapes, Tensor) else list(shapes)
    roles: list[list[Role]] = [[] for _ in pieces]
    for role in signal.roles:
        labels, fibres = move(role.coordinates), move(role.fibres)
        pairs = [(labels, fibres)] if isinstance(labels, Tensor) else zip(labels, fibres, strict=True)
        for piece, pair in zip(roles, pairs, strict=True):
            moved = Role(*pair)  # pyright: ignore[reportArgumentType]
            moved = algebra.distinct(moved) if copies else moved
            piece.append(algebra.close(moved) if drops else moved)
    results = [
        Signal(tuple(piece.shape), tuple(own), None, signal.weights) for piece, own in zip(pieces, roles, strict=True)
    ]
    return results[0] if isinstance(shapes, Tensor) else tuple(results)


def cast(algebra: Algebra, signal: Signal, *args: object, **kwargs: object) -> Signal:
    """Another dtype or another sign: the same linear action; integers have no gradient and must not move."""
    dtypes = [each for each in (kwargs.get("dtype"), *args) if isinstance(each, torch.dtype)]
    if dtypes and not (dtypes[0].is_floating_point or dtypes[0].is_complex):
        return rest(algebra, signal.shape, signal)
    return Signal(signal.shape, tuple(algebra.renewed(role) for role in signal.roles), None, signal.weights)


def as_complex(algebra: Algebra, signal: Signal) -> Signal:
    """Pairs along the last axis as complex numbers: real and imaginary parts must move alike."""
    for role in signal.roles:
        algebra.merges(role, [signal.ndim - 1])
    roles = [algebra.uniform(role, [signal.ndim - 1]) for role in signal.roles]
    flat = [algebra.renewed(role.moved(lambda labels: labels.squeeze(-1))) for role in roles]
    return Signal(signal.shape[:-1], tuple(flat), None, signal.weights)


def as_real(algebra: Algebra, signal: Signal) -> Signal:
    """Real and imaginary parts along a new last axis: both move as the complex number does."""
    shape = (*signal.shape, 2)
    roles = [algebra.expanded(role.moved(lambda labels: labels.unsqueeze(-1)), shape) for role in signal.roles]
    return Signal(shape, tuple(roles), None, signal.weights)


def join(
    algebra: Algebra,
    signals: Sequence[Signal],
    dim: int = 0,
    *,
    operation: Callable[[list[Tensor], int], Tensor] = torch.cat,
) -> Signal:
    """Tensors side by side; zeros take the role that the others have."""
    signals = [signal for signal in signals if signal.shape != (0,)]
    count = max((len(signal.roles) for signal in signals), default=0)
    columns = [_roles(signal, count) for signal in signals]
    roles = [
        algebra.distinct(Role(operation([r.coordinates for r in row], dim), operation([r.fibres for r in row], dim)))
        for row in zip(*columns, strict=True)
    ]
    like = operation([torch.empty(signal.shape, device="meta") for signal in signals], dim)
    return Signal(tuple(like.shape), tuple(roles))


def stack(algebra: Algebra, signals: Sequence[Signal], dim: int = 0) -> Signal:
    """Tensors along a new axis."""
    return join(algebra, signals, dim, operation=torch.stack)


def paired(left: Signal, right: Signal) -> list[tuple[Role, Role]]:
    """The roles of two tensors that become one, in order; zeros take the role that the other has."""
    count = max(len(left.roles), len(right.roles))
    return list(zip(_roles(left, count), _roles(right, count), strict=True))


def _roles(signal: Signal, count: int) -> list[Role]:
    missing = [blank(signal.shape, ZERO) if is_zero(signal) else blank(signal.shape)] * (count - len(signal.roles))
    return [*signal.roles, *missing]


def pad(
    algebra: Algebra,
    signal: Signal,
    width: Sequence[int],
    mode: str | float | int = "constant",
    value: float | int | None = None,
) -> Moved:
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
    return relabelled(algebra, signal, floating, copies=True)


def upsample(
    algebra: Algebra,
    signal: Signal,
    size: Sequence[int] | None,
    scales: Sequence[float | int] | None = None,
    *args: object,
) -> Moved:
    """Every element copied over a small square."""
    factor = list(scales) if size is None and scales is not None else None
    copy = lambda labels: torch.nn.functional.interpolate(labels.double(), size, factor).long()  # noqa: E731
    return relabelled(algebra, signal, copy, copies=True)  # pyright: ignore[reportArgumentType]


# Shifts ---------------------------------------------------------------------------------------------------------------


def _shift_of_moved(site: Site, groups: Groups | Rows) -> Sources:
    """Element numbers, moved by the operation itself, say where every element comes from."""
    source, labels = site.source(), dense(groups, site.shape)
    yield source, None if labels is None else pull(labels, _numbers(site), site.shape_of(source))


def _shift_of_broadcast(site: Site, groups: Groups | Rows) -> Sources:
    """All copies of an element move alike."""
    source = site.source()
    yield source, spread(groups, site.shape_of(source), site.shape)


def _numbers(site: Site) -> Tensor:
    """The number in the source of each element of the result."""
    (numbers,) = _part_numbers(site)
    return numbers


def _part_numbers(site: Site) -> Sequence[Tensor]:
    """The same for each part of the result."""
    found = site.node.target(element_numbers(site.shape_of(site.source())), *site.plain(site.args[1:]))  # pyright: ignore[reportCallIssue]
    return [found] if isinstance(found, Tensor) else list(found)


def shift_of_same_order(site: Site, groups: Groups | Rows) -> Sources:
    """The same elements in the same order, in another shape or type."""
    source = site.source()
    if isinstance(groups, Rows):
        yield source, groups
    else:
        numbers = element_numbers(site.shape_of(source)).reshape(site.shape)
        yield source, pull(groups, numbers, site.shape_of(source))


def _shift_of_turned(site: Site, groups: Groups | Rows) -> Sources:
    """Axes in another order."""
    source = site.source()
    turned = _rows_turned(site, groups, site.shape_of(source)) if isinstance(groups, Rows) else None
    if turned is not None:
        yield source, turned
    else:
        yield from _shift_of_moved(site, groups)


def _rows_turned(site: Site, rows: Rows, before: tuple[int, ...]) -> Rows | None:
    if (rows_after := rows.on(site.shape)) is None:
        return None
    sizes = range(2, 2 + len(before))  # each of its own size
    turned = site.node.target(torch.empty(tuple(sizes), device="meta"), *site.args[1:], **site.node.kwargs).shape  # pyright: ignore[reportCallIssue]
    origin = [turned.index(size) for size in sizes]
    labelled = [axis for axis in range(len(before)) if origin[axis] in rows_after.axes]
    order = [rows_after.axes.index(origin[axis]) for axis in labelled]
    return Rows(rows_after.labels.permute(order), tuple(labelled), before)


def _shift_of_part(site: Site, groups: Groups | Rows) -> Sources:
    """One of several results: of an operation that splits, elements of what it reads; of others the first."""
    source, place = site.source(), site.integer(1)
    if operator_of(source).is_a(Trait.SPLITTING):
        split = replace(site, node=source)
        whole, labels = split.source(), dense(groups, site.shape)
        shape = site.shape_of(whole)
        yield whole, None if labels is None else pull(labels, _part_numbers(split)[place], shape)
    elif place == 0:
        yield source, groups


def _shift_of_joined(site: Site, groups: Groups | Rows) -> Sources:
    """Each of several tensors side by side."""
    parts = [part for part in pytree.tree_leaves(site.args[0]) if isinstance(part, fx.Node)]
    labels = dense(groups, site.shape)
    if labels is None:
        return
    shapes = [site.shape_of(part) for part in parts]
    for place, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
        numbers = [torch.full(other, -1) for other in shapes]
        numbers[place] = element_numbers(shape)
        joined = site.node.target(numbers, *site.args[1:])  # pyright: ignore[reportCallIssue]
        yield part, pull(labels, joined, shape)


def _shift_of_padded(site: Site, groups: Groups | Rows) -> Sources:
    """A constant around, which does not move."""
    source, labels = site.source(), dense(groups, site.shape)
    mode = site.args[2] if len(site.args) > 2 else "constant"
    if labels is not None and (mode == "constant" or not isinstance(mode, str)):
        shape = site.shape_of(source)
        yield source, pull(labels, torch.constant_pad_nd(element_numbers(shape), site.integers(1), -1), shape)


# Combinations ---------------------------------------------------------------------------------------------------------


def _size(site: Site, node: fx.Node) -> int:
    return math.prod(site.shape_of(node))


def _moved_elements(site: Site) -> Summands:
    source = site.source()
    yield source, selection(_numbers(site).reshape(-1).numpy(), _size(site, source))


def same_elements(site: Site) -> Summands:
    """Each element of the first argument at its place."""
    source, numbers = site.source(), np.arange(math.prod(site.shape))
    if site.node.meta["val"].is_floating_point():
        yield source, selection(numbers, _size(site, source))


def _negated_elements(site: Site) -> Summands:
    for source, matrix in same_elements(site):
        yield source, -matrix


def _elements_of_part(site: Site) -> Summands:
    source, place = site.source(), site.integer(1)
    if operator_of(source).is_a(Trait.SPLITTING):
        split = replace(site, node=source)
        numbers = _part_numbers(split)[place].reshape(-1).numpy()
        yield split.source(), selection(numbers, _size(site, split.source()))


def _joined_elements(site: Site) -> Summands:
    parts = [part for part in pytree.tree_leaves(site.args[0]) if isinstance(part, fx.Node)]
    for place, part in enumerate(parts):
        numbers = [torch.full(site.shape_of(other), -1) for other in parts]
        numbers[place] = element_numbers(site.shape_of(part))
        joined = site.node.target(numbers, *site.args[1:])  # pyright: ignore[reportCallIssue]
        yield part, selection(joined.reshape(-1).numpy(), _size(site, part))


def _padded_elements(site: Site) -> Summands:
    """Zeros around."""
    source, filling = site.source(), [*site.args[2:], *site.node.kwargs.values()]
    if all(each in ("constant", 0, None) for each in filling):
        numbers = torch.constant_pad_nd(element_numbers(site.shape_of(source)), site.integers(1), -1)
        yield source, selection(numbers.reshape(-1).numpy(), _size(site, source))


# Degrees --------------------------------------------------------------------------------------------------------------


def _of_padded(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    """Zeros around have every degree, other numbers 0."""
    filling = next((each for each in (*node.args[2:], *node.kwargs.values()) if isinstance(each, (int, float))), 0)
    return of.agreed([of(node.args[0])] + [0] * bool(filling))


# Sums over paths ------------------------------------------------------------------------------------------------------


def _lifted_negative(
    algebra: rules.PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    return algebra.scaled(args[0], -1.0)


# Declarations ---------------------------------------------------------------------------------------------------------

_MOVING = Operator(
    exchange=rules.passed,
    combination=_moved_elements,
    degree=rules.kept,
    regularity=Regularity.MOVES,
    lift=rules.lifted_moves,
)


def _declare_movements(names: str, movement: Movement, operator: Operator) -> None:
    for name in names.split():
        declare(name, replace(operator, symmetry=_moves(name, movement), movement=movement))


_ORDERED = replace(_MOVING, shift=shift_of_same_order, combination=same_elements, movement=Movement.ORDERED)
declare("view _unsafe_view reshape", replace(_ORDERED, symmetry=_viewed))
_declare_movements("flatten unflatten unsqueeze squeeze view_as lift_fresh_copy contiguous", Movement.ORDERED, _ORDERED)
_declare_movements("clone alias", Movement.ORDERED, replace(_ORDERED, traits=Trait.CHANNELWISE))
declare("_to_copy to type_as", replace(_ORDERED, symmetry=cast, traits=Trait.CASTING))
declare("positive", replace(_ORDERED, symmetry=cast))
_TURNED = replace(_MOVING, shift=_shift_of_turned)
_declare_movements("t transpose permute movedim swapaxes numpy_T mT", Movement.TURNED, _TURNED)
_ELSEWHERE = replace(_MOVING, shift=_shift_of_moved)
_declare_movements("flip roll pixel_shuffle pixel_unshuffle detach_", Movement.KEPT, _ELSEWHERE)
_declare_movements("select slice narrow diagonal", Movement.DROPPED, _ELSEWHERE)
_SPLIT = replace(_ELSEWHERE, shift=None, combination=None, traits=Trait.SPLITTING)
_declare_movements("split split_with_sizes chunk unbind tensor_split unsafe_split", Movement.DROPPED, _SPLIT)
declare(
    "getitem",
    replace(_MOVING, movement=Movement.DROPPED, shift=_shift_of_part, combination=_elements_of_part),
)
_declare_movements("repeat repeat_interleave tile unfold", Movement.COPIED, _ELSEWHERE)
for _name in ("expand", "expand_as"):
    declare(
        _name, replace(_ELSEWHERE, symmetry=_broadcasts(_name), shift=_shift_of_broadcast, movement=Movement.COPIED)
    )

declare(
    "neg",
    Operator(
        symmetry=cast,
        shift=shift_of_same_order,
        exchange=rules.negated_rates,
        combination=_negated_elements,
        degree=rules.kept,
        regularity=Regularity.LINEAR,
        lift=_lifted_negative,
        traits=Trait.CASTING,
    ),
)
declare(
    "detach",
    Operator(symmetry=cast, shift=shift_of_same_order, exchange=rules.passed, traits=Trait.RESTING),
)
_COMPLEX = Operator(degree=rules.kept, regularity=Regularity.LINEAR)
declare("conj _conj", replace(_COMPLEX, symmetry=cast))
declare("real imag", replace(_COMPLEX, symmetry=cast))
declare("view_as_complex", replace(_COMPLEX, symmetry=as_complex))
declare("view_as_real", replace(_COMPLEX, symmetry=as_real))

_JOINED = replace(
    _MOVING,
    shift=_shift_of_joined,
    exchange=rules.joined_rates,
    combination=_joined_elements,
    degree=rules.joined,
)
declare("cat", replace(_JOINED, symmetry=join, lift=rules.lifted_join))
declare("stack", replace(_JOINED, symmetry=stack, lift=rules.lifted_join))
declare(
    "pad constant_pad_nd",
    Operator(
        symmetry=pad,
        shift=_shift_of_padded,
        combination=_padded_elements,
        degree=_of_padded,
        regularity=Regularity.MOVES,
    ),
)
declare("upsample_nearest2d", Operator(symmetry=upsample, degree=rules.kept, regularity=Regularity.LINEAR))
declare("upsample_nearest1d upsample_nearest3d", Operator(symmetry=upsample, degree=rules.kept))
declare("im2col tril triu", Operator(degree=rules.kept, regularity=Regularity.MOVES))
