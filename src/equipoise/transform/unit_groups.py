"""Units that may be exchanged or negated without changing the function, found in the graph (docs/theory.md, T9).

The laws of the graph, read as in `equipoise.transform.readings`, hold the weights that each unit carries: blocks of
laws that hold the same elements are one unit, and units whose weights have the same structure form a group. What is
found is a candidate: `equipoise.transform.aligning` tries each on the example.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from equipoise.graph.capture import Captured
from equipoise.graph.interface import Member
from equipoise.graph.propagate import operation_name
from equipoise.laws.law import Law
from equipoise.transform import readings

Places = Int64[Tensor, "units elements"]
HeadPlaces = Int64[Tensor, "groups heads elements"]


@dataclass(frozen=True, eq=False)
class Piece:
    """The elements of one parameter that a block of a law holds: flat positions, and its place among the laws."""

    slot: tuple[int, int, int, tuple[int, ...]]  # law, member, count, and which of the stacked matrices
    name: str
    places: Int64[Tensor, " elements"]

    @property
    def key(self) -> tuple[str, bytes]:
        """The parameter and the set of positions: equal for two laws that mean the same weights."""
        return self.name, self.places.sort().values.numpy().tobytes()


@dataclass(frozen=True, eq=False)
class UnitSlices:
    """The elements of one tensor held by the units of a group: flat positions, one row a unit, in matching order."""

    name: str
    places: Places
    weighs: bool = True  # False for running statistics, which move along


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units of one structure, which a permutation exchanges."""

    name: str
    parts: tuple[UnitSlices, ...]

    @property
    def size(self) -> int:
        """How many units."""
        return len(self.parts[0].places)


@dataclass(frozen=True, eq=False)
class HeadSlices:
    """The elements of one tensor held by the heads of each group, as in `UnitSlices`."""

    name: str
    places: HeadPlaces


@dataclass(frozen=True, eq=False)
class HeadGroup:
    """Groups of heads that share keys and values, and the heads in each: both may be exchanged.

    `shared` is held by a group as a whole, `own` by its heads; a group of one head has all in `shared`.
    """

    name: str
    shared: tuple[UnitSlices, ...]
    own: tuple[HeadSlices, ...]

    @property
    def groups(self) -> int:
        """How many groups."""
        return len(self.shared[0].places)

    @property
    def heads(self) -> int:
        """How many heads a group has."""
        return self.own[0].places.shape[1] if self.own else 1

    @property
    def parts(self) -> list[UnitSlices]:
        """All elements of each group."""
        return [*self.shared, *(UnitSlices(part.name, part.places.flatten(1)) for part in self.own)]


class Holders:
    """Which unit holds an element of a tensor."""

    def __init__(self, parts: Sequence[UnitSlices]):
        self._sorted: dict[str, tuple[Tensor, Tensor]] = {}
        for name in dict.fromkeys(part.name for part in parts):
            places = [part.places for part in parts if part.name == name]
            owners = [torch.arange(len(each))[:, None].expand_as(each).reshape(-1) for each in places]
            values, order = torch.cat([each.reshape(-1) for each in places]).sort()
            self._sorted[name] = values, torch.cat(owners)[order]

    def of(self, name: str, places: Tensor) -> Tensor:
        """The number of the unit that holds each element; -1 where none does."""
        if name not in self._sorted:
            return torch.full_like(places, -1)
        values, owners = self._sorted[name]
        found = torch.searchsorted(values, places.contiguous()).clamp_max(len(values) - 1)
        return torch.where(values[found] == places, owners[found], -1)

    def holds(self, name: str, places: Tensor) -> bool:
        """Whether every element is held by some unit."""
        return bool((self.of(name, places) >= 0).all())


def exchangeable(captured: Captured) -> tuple[list[UnitGroup], list[HeadGroup]]:
    """Groups of neurons, channels and hidden units that a permutation may exchange, and heads of attention; candidates.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    >>> [(group.name, group.size) for group in exchangeable(capture(model, torch.ones(2, 3)))[0]]
    [('0.weight → 2.weight', 4)]
    """
    laws = _of_rates(readings.units(captured))
    found = _units(laws)
    heads = _heads(captured) if readings.attends(captured) else []
    held = Holders([part for group in heads for part in group.parts])
    free = [unit for unit in found if not all(held.holds(piece.name, piece.places) for piece in unit)]
    statistics = _running_statistics(captured)
    apart = _norm_groups(captured)
    return [_group(laws, units, statistics) for units in _alike(free, apart) if len(units) > 1], heads


def negatable(captured: Captured) -> list[UnitGroup]:
    """Groups of units each of which a sign may be taken from, and given to what reads it; candidates.

    Each law is a sign by itself. Where a weight is used in several places, laws that it is in go together.
    """
    laws = _of_rates(readings.signs(captured))
    alone = _units(laws, odd=True, joined_by=set())
    means = {gain: names[:1] for gain, names in _running_statistics(captured).items()}
    groups = [_group(laws, units, means, read_alone=True) for units in _alike(alone)]
    repeated = readings.repeated(captured)
    if repeated:
        known = {_keys(unit) for unit in alone}
        laws = _of_rates(readings.signs_apart(captured))
        together = [
            unit
            for unit in _units(laws, odd=True, joined_by=repeated)
            if any(piece.name in repeated for piece in unit) and _keys(unit) not in known
        ]
        groups += [_group(laws, units, means, read_alone=True) for units in _alike(together)]
    return groups


def blocks_of(law: Law) -> HeadGroup:
    """The blocks of one law as heads: of a linear map that is made of several alike."""
    parts = [UnitSlices(member.parameter, places_of(member)) for member in law.interface.members]
    return HeadGroup(law.name, tuple(parts), ())


# Reading the graph ----------------------------------------------------------------------------------------------------


def _running_statistics(captured: Captured) -> dict[str, list[str]]:
    """The running means and variances that belong to each gain, by parameter."""
    found: dict[str, list[str]] = {}
    for node in captured.graph.nodes:
        if "batch_norm" in operation_name(node.target) and len(node.args) > 4:
            _, gain, _, *statistics = node.args[:5]
            if isinstance(gain, torch.fx.Node) and gain.name in captured.parameters:
                names = [captured.buffers.get(each.name) for each in statistics if isinstance(each, torch.fx.Node)]
                found[captured.parameters[gain.name]] = [name for name in names if name]
    return found


def _of_rates(laws: Sequence[Law]) -> list[Law]:
    return [law for law in laws if law.interface.width == 1]


def _heads(captured: Captured) -> list[HeadGroup]:
    """Units that queries, keys and values of attention are in, those with the heads of a group within the group's."""
    laws = _of_rates(readings.heads(captured))
    units = _units(laws)
    held = [Holders([UnitSlices(piece.name, piece.places[None]) for piece in unit]) for unit in units]
    inside: dict[int, list[int]] = defaultdict(list)
    named: dict[str, set[int]] = defaultdict(set)
    for number, unit in enumerate(units):
        for piece in unit:
            named[piece.name].add(number)
    for small, unit in enumerate(units):
        for large in sorted(set[int]().union(*(named[piece.name] for piece in unit))):
            if any(_within(piece, units[large], held[large]) for piece in unit):
                inside[large].append(small)
    smaller = {small for each in inside.values() for small in each}
    alike: dict[tuple[object, ...], list[tuple[list[Piece], list[list[Piece]]]]] = defaultdict(list)
    for number, unit in enumerate(units):
        heads = [units[small] for small in inside[number]]
        slots = {tuple(piece.slot for piece in head) for head in heads}
        if number not in smaller and len(slots) <= 1:
            alike[tuple(piece.slot for piece in unit), *slots, len(heads)].append((unit, heads))
    found = [_head_group(laws, groups) for groups in alike.values()]
    return [group for group in found if group.groups * group.heads > 1]


def _keys(unit: Sequence[Piece]) -> frozenset[tuple[str, bytes]]:
    return frozenset(piece.key for piece in unit)


def _within(piece: Piece, unit: Sequence[Piece], held: Holders) -> bool:
    """Whether the elements are some of those that a piece of another unit holds."""
    larger = any(each.name == piece.name and len(each.places) > len(piece.places) for each in unit)
    return larger and held.holds(piece.name, piece.places)


def _head_group(laws: Sequence[Law], groups: Sequence[tuple[list[Piece], list[list[Piece]]]]) -> HeadGroup:
    first, heads = groups[0]
    own = [
        HeadSlices(piece.name, torch.stack([torch.stack([head[n].places for head in each]) for _, each in groups]))
        for n, piece in enumerate(heads[0] if heads else [])
    ]
    held = Holders([UnitSlices(part.name, part.places.flatten(1)) for part in own])
    shared = [
        UnitSlices(piece.name, torch.stack([unit[n].places for unit, _ in groups]))
        for n, piece in enumerate(first)
        if not held.holds(piece.name, piece.places)
    ]
    names = dict.fromkeys(part.name for part in (*own, *shared))
    weights = [name for name in names if not name.endswith("bias")] or list(names)
    return HeadGroup(" + ".join(weights), tuple(shared), tuple(own))


# Units ----------------------------------------------------------------------------------------------------------------


def places_of(member: Member) -> Places:
    """The flat positions in a parameter of the slices of each block, in the order of copies and components."""
    shape = torch.Size(member.view)
    numbers = torch.arange(shape.numel(), dtype=torch.float64).reshape(shape)
    return member.slices(numbers).flatten(1).long()


def _units(laws: Sequence[Law], odd: bool = False, joined_by: set[str] | None = None) -> list[list[Piece]]:
    """The pieces of each unit: those of all blocks of laws that hold the same elements.

    With `odd` those of odd degree alone. With `joined_by` blocks go together by elements of these parameters only;
    elements of others that two of them hold change twice, and so not at all.
    """
    held = [pieces for number, law in enumerate(laws) for pieces in _pieces(number, law, odd) if pieces]
    parent, owner = list(range(len(held))), dict[tuple[str, bytes], int]()
    for number, pieces in enumerate(held):
        for piece in pieces:
            if joined_by is None or piece.name in joined_by:
                _join(parent, number, owner.setdefault(piece.key, number))
    units: dict[int, dict[tuple[str, bytes], Piece]] = defaultdict(dict)
    for number, pieces in enumerate(held):
        unit = units[_root(parent, number)]
        for piece in pieces:
            if joined_by is not None and piece.name not in joined_by and piece.key in unit:
                del unit[piece.key]
            else:
                unit.setdefault(piece.key, piece)
    return [list(unit.values()) for unit in units.values() if unit]


def _alike(units: Sequence[list[Piece]], apart: Mapping[str, int] | None = None) -> list[list[list[Piece]]]:
    """Units of the same structure together; those of different groups of a normalisation apart."""
    groups: dict[tuple[object, ...], list[list[Piece]]] = defaultdict(list)
    for unit in units:
        held = [int(piece.places[0]) // apart[piece.name] for piece in unit if apart and piece.name in apart]
        groups[tuple(piece.slot for piece in unit), *held].append(unit)
    return list(groups.values())


def _norm_groups(captured: Captured) -> dict[str, int]:
    """How many channels are normalised together, by the gain of a group normalisation."""
    found: dict[str, int] = {}
    for node in captured.graph.nodes:
        if operation_name(node.target) == "group_norm" and len(node.args) > 2:
            _, groups, gain, *_ = node.args
            if isinstance(gain, torch.fx.Node) and gain.name in captured.parameters:
                found[captured.parameters[gain.name]] = max(gain.meta["val"].numel() // int(groups), 1)
    return found


def _pieces(number: int, law: Law, odd: bool) -> Iterator[list[Piece]]:
    members = [
        (place, member, places_of(member))
        for place, member in enumerate(law.interface.members)
        if not odd or member.degree % 2 == 1
    ]
    for block in range(law.interface.blocks):
        yield [
            Piece((number, place, places.shape[1], _context(member, block)), member.parameter, places[block])
            for place, member, places in members
        ]


def _group(
    laws: Sequence[Law], units: list[list[Piece]], statistics: Mapping[str, list[str]], read_alone: bool = False
) -> UnitGroup:
    """Units side by side, with running statistics where a gain is held; if asked, where the gain reads the unit alone.

    There a sign that is taken from the unit is taken from its running mean.
    """
    parts = []
    for slot, first in enumerate(units[0]):
        places = torch.stack([unit[slot].places for unit in units])
        parts.append(UnitSlices(first.name, places))
        if not read_alone or laws[first.slot[0]].interface.members[first.slot[1]].degree < 0:
            parts += [UnitSlices(buffer, places, weighs=False) for buffer in statistics.get(first.name, [])]
    return UnitGroup(laws[units[0][0].slot[0]].name, tuple(parts))


def _context(member: Member, block: int) -> tuple[int, ...]:
    """Which of the stacked matrices of a parameter (groups of a convolution, heads) the slices of a block lie in.

    Units of different ones cannot be exchanged, unless each matrix belongs to one unit as in a depthwise convolution.
    """
    width = member.view[member.axes[-1]]
    if len(member.axes) == 1 or width == 1:
        return ()
    return tuple((member.index[block] // width).flatten().tolist())


def _join(parent: list[int], left: int, right: int) -> None:
    parent[_root(parent, left)] = _root(parent, right)


def _root(parent: list[int], unit: int) -> int:
    while parent[unit] != unit:
        parent[unit] = parent[parent[unit]]
        unit = parent[unit]
    return unit
