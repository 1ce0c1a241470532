"""Interfaces: where producers write a vector, a map acts on it, and consumers read the result (docs/theory.md §1)."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from equipoise.graph.precision import moved_in, narrow_nodes, narrowest
from equipoise.graph.symmetry import STILL, Block, Solution
from equipoise.graph.walk import Leaf, Walk


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter at an interface: which of its slices carry which component, and with which degree.

    `parameter.reshape(view)`, its `axes` brought to the front and flattened, is indexed by `index`: one row of slices
    for each block, copy and component. The generator acts on the slices by `degree · A` (a producer) or, for negative
    degree, by `-|degree| · Aᵀ` (a consumer). `directions`, where given, are combinations of the components to see the
    slices through, in place of all of them. `precision` is the narrowest dtype in which the graph computes between
    this member and the others, where that is narrower than the weights.
    """

    parameter: str
    view: tuple[int, ...]
    axes: tuple[int, ...]
    index: Int64[Tensor, "blocks copies width"]
    degree: float
    directions: Float[Tensor, "width k"] | None = None
    precision: torch.dtype | None = None

    @property
    def label(self) -> str:
        """The parameter, and which of its slices if not all of one axis."""
        low, high = int(self.index.min()), int(self.index.max()) + 1
        if len(self.index.unique()) == self.lines:
            return self.parameter
        part = f"{low}:{high}" if high - low == self.index.numel() else f"{low}…{high - 1}"
        before = ":, " * self.axes[-1] if len(self.axes) == 1 else ""
        return f"{self.parameter}[{before}{part}]"

    def slices(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "blocks copies _ rest"]:
        """The slices of a tensor shaped like the parameter; a view of it where the memory allows."""
        rows = self._rows(tensor)
        if isinstance(self.places, slice):
            stretch = rows if len(rows) == self.index.numel() else rows[self.places]
            slices = stretch.reshape(*self.index.shape, rows.shape[1])
        else:
            slices = rows[self.places.to(tensor.device)].unflatten(0, self.index.shape)
        return slices if self.directions is None else self.directions.to(slices).mT @ slices

    def _rows(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "slices rest"]:
        viewed = tensor.reshape(self.view)
        if self.axes == (0,):
            return viewed.flatten(1) if viewed.ndim > 1 else viewed[:, None]
        if self.axes == (1,) and viewed.ndim == 2:
            return viewed.mT
        front = viewed.movedim(self.axes, tuple(range(len(self.axes))))
        return front.reshape(math.prod(front.shape[: len(self.axes)]), -1)

    @cached_property
    def single(self) -> bool:
        """Whether each slice is one number, and they stand in their order."""
        return self.lines == math.prod(self.view) and list(self.axes) == sorted(self.axes)

    @cached_property
    def lines(self) -> int:
        """How many slices there are to choose from."""
        return math.prod(self.view[axis] for axis in self.axes)

    @cached_property
    def covers(self) -> bool:
        """Whether the slices are all of the parameter, each once."""
        whole = self.lines
        return self.directions is None and self.index.numel() == whole == len(self.index.unique())

    @cached_property
    def ordered(self) -> bool:
        """Whether the slices follow each other as in the parameter, without copies."""
        return isinstance(self.places, slice) and self.index.shape[1] == 1

    @cached_property
    def places(self) -> slice | Int64[Tensor, " slices"]:
        """The index in a row: a slice where it runs through one stretch without gaps."""
        flat = self.index.reshape(-1)
        run = bool((flat[1:] - flat[:-1] == 1).all())
        return slice(int(flat[0]), int(flat[-1]) + 1) if run else flat


@dataclass(frozen=True, eq=False)
class Interface:
    """Producers and consumers of one vector, and how much of the matrices on it commutes with the map in between.

    There are `blocks` independent pieces of `width` components; on each acts every `width × width` matrix (`full`),
    only the antisymmetric ones, or the complex numbers. `breaks` names normalisations whose `eps` breaks the symmetry
    by a little.
    """

    members: tuple[Member, ...]
    blocks: int
    width: int
    symmetry: Literal["full", "antisymmetric", "complex"] = "full"
    breaks: tuple[tuple[str, float], ...] = ()

    @property
    def producers(self) -> tuple[str, ...]:
        """Parameters that write into the vector."""
        return tuple(dict.fromkeys(member.parameter for member in self.members if member.degree > 0))

    @property
    def consumers(self) -> tuple[str, ...]:
        """Parameters that read from it."""
        return tuple(dict.fromkeys(member.parameter for member in self.members if member.degree < 0))


def find_interfaces(walk: Walk) -> list[Interface]:
    """Every interface with a symmetry, in the order in which the model uses its first producer.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = find_interfaces(Walk(capture(model, torch.ones(2, 3))))
    >>> [(i.producers, i.consumers, i.blocks, i.width) for i in found]
    [(('0.weight', '0.bias'), ('2.weight',), 4, 1)]
    """
    order = {name: place for place, name in enumerate(walk.captured.parameters.values())}
    leaves = sorted(walk.leaves, key=lambda leaf: order[leaf.parameter])
    solution = walk.algebra.symmetry.solution()
    places = _places(solution, leaves)
    breaks, read = _breaks(walk, solution), _read(walk, solution)
    computed_in = moved_in(solution, walk.signals, narrow_nodes(walk.captured.graph, walk.captured.parameters))
    groups: dict[tuple, list[tuple[Block, dict]]] = defaultdict(list)
    for number, block in enumerate(solution.blocks):
        slots = places.get(number, {})
        if slots and (block.skew or not read.isdisjoint(block.rates)) and not _idle(leaves, block, slots):
            shape = tuple((leaf, degree, len(found) // block.width) for (leaf, degree), found in slots.items())
            lost = tuple(sorted({note for root in block.rates for note in breaks.get(root, ())}))
            groups[block.width, block.skew, shape, lost].append((block, slots))
    found = [_interface(leaves, key, _in_order(blocks, key), computed_in) for key, blocks in groups.items()]
    return sorted(found, key=lambda interface: [order[member.parameter] for member in interface.members])


Slots = dict[tuple[int, float], list[tuple[int, int, int]]]


def _in_order(blocks: list[tuple[Block, Slots]], key: tuple) -> list[tuple[Block, Slots]]:
    """Blocks in the order of the slices that they move of the first member: unit i is neuron i of that layer."""
    leaf, degree, _ = key[2][0]
    return sorted(blocks, key=lambda block: min(position for *_, position in block[1][leaf, degree]))


def _places(solution: Solution, leaves: Sequence[Leaf]) -> dict[int, Slots]:
    """For each block, which positions of which leaf it moves: `(leaf, degree) -> [(copy, component, position)]`."""
    of_root: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
    for number, block in enumerate(solution.blocks):
        for root, (component, rate) in block.rates.items():
            of_root[root].append((number, component, float(rate)))
    places: dict[int, Slots] = defaultdict(lambda: defaultdict(list))
    for number, leaf in enumerate(leaves):
        columns = (array[leaf.coordinates].tolist() for array in (solution.root, solution.ratio, solution.cell))
        for position, (root, ratio, cell) in enumerate(zip(*columns, strict=True)):
            for block, component, rate in of_root.get(root, ()):
                copy = cell if solution.blocks[block].width > 1 else position
                places[block][number, ratio * rate].append((copy, component, position))
    return places


def _idle(leaves: Sequence[Leaf], block: Block, slots: "Slots") -> bool:
    """Whether a rate moves no parameter, because its roles on each cancel: anything satisfies such a law."""
    roles: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, degree in slots:
        roles[leaves[number].parameter].append((number, degree))
    if block.width > 1 or any(len({degree > 0 for _, degree in each}) < 2 for each in roles.values()):
        return False
    return all(not bool(_rates(leaves, each, slots).any()) for each in roles.values())


def _rates(leaves: Sequence[Leaf], roles: Sequence[tuple[int, float]], slots: "Slots") -> Tensor:
    """The rate at which each element of a parameter moves, all its roles together."""
    total = torch.zeros(())
    for number, degree in roles:
        leaf = leaves[number]
        sizes = [size if axis in leaf.axes else 1 for axis, size in enumerate(leaf.view)]
        rates = torch.zeros(math.prod(sizes))
        for *_, position in slots[number, degree]:
            rates[position] += degree
        total = total + rates.reshape(sizes).expand(leaf.view).reshape(-1)
    return total


def _breaks(walk: Walk, solution: Solution) -> Mapping[int, list[tuple[str, float]]]:
    found: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for absorbed in walk.algebra.absorbed:
        for root in np.unique(solution.root[absorbed.coordinates]).tolist():
            if root != STILL and absorbed.eps:
                found[root].append((absorbed.place, absorbed.eps))
    return found


def _read(walk: Walk, solution: Solution) -> set[int]:
    """Roots that some operation reads; what a slice leaves out has no law worth stating."""
    absorbed = [absorbed.coordinates for absorbed in walk.algebra.absorbed]
    touched = np.concatenate([walk.algebra.symmetry.related(), *absorbed])
    return set(np.unique(solution.root[touched]).tolist())


def _interface(
    leaves: Sequence[Leaf], key: tuple, blocks: list[tuple[Block, Slots]], computed_in: Mapping[int, torch.dtype]
) -> Interface:
    width, skew, shape, breaks = key
    unit = next(degree for _, degree, _ in shape)
    precision = narrowest(*(computed_in.get(root) for block, _ in blocks for root in block.rates))
    members = tuple(replace(member, precision=precision) for member in _members(leaves, shape, blocks, unit))
    return Interface(members, len(blocks), width, "antisymmetric" if skew else "full", breaks)


def _members(leaves: Sequence[Leaf], shape: tuple, blocks: list[tuple[Block, Slots]], unit: float) -> Iterator[Member]:
    for number, degree, copies in shape:
        positions = [position for _, slots in blocks for *_, position in sorted(slots[number, degree])]
        index = torch.tensor(positions).reshape(len(blocks), copies, blocks[0][0].width)
        leaf = leaves[number]
        yield Member(leaf.parameter, leaf.view, leaf.axes, index, degree / unit)
