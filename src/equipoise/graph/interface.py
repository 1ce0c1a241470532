"""Interfaces: where producers write a vector, a map acts on it, and consumers read the result (docs/theory.md §1)."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray
from torch import Tensor

from equipoise.graph.constraints import STILL, FreeGenerators
from equipoise.graph.labels.independence import independent
from equipoise.graph.labels.positions import Positions
from equipoise.graph.labels.ragged import alike, joined, numbered
from equipoise.graph.precision import moved_in, narrow_nodes, narrowest
from equipoise.graph.propagate import Leaf, SymmetryPropagation


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
        """Whether each slice is one number, in the order of the parameter."""
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
        with torch.inference_mode(False):  # it is kept, and may be differentiated through later
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


def find_interfaces(propagation: SymmetryPropagation) -> list[Interface]:
    """Every interface with a symmetry, in the order in which the model uses its first producer.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = find_interfaces(SymmetryPropagation(capture(model, torch.ones(2, 3))))
    >>> [(i.producers, i.consumers, i.blocks, i.width) for i in found]
    [(('0.weight', '0.bias'), ('2.weight',), 4, 1)]
    """
    order = {name: place for place, name in enumerate(propagation.captured.parameters.values())}
    leaves = sorted(propagation.leaves, key=lambda leaf: order[leaf.parameter])
    solution = propagation.algebra.symmetry.solution()
    positions = Positions.of(solution, leaves)
    computed_in = moved_in(
        solution, propagation.signals, narrow_nodes(propagation.captured.graph, propagation.captured.parameters)
    )
    breaks, sets = _breaks(propagation, solution)
    stated = np.flatnonzero(_stated(propagation, solution, positions, leaves))
    kind = numbered(joined(solution.width, solution.skew, positions.shape, breaks)[stated])[0]
    groups = np.split(stated[np.argsort(kind, kind="stable")], np.cumsum(np.bincount(kind))[:-1])
    found = [
        Interface(
            tuple(_members(solution, positions, leaves, blocks, computed_in)),
            len(blocks),
            int(solution.width[blocks[0]]),
            "antisymmetric" if solution.skew[blocks[0]] else "full",
            sets[int(breaks[blocks[0]])],
        )
        for blocks in map(positions.in_order, groups)
        if len(blocks)
    ]
    return sorted(found, key=lambda interface: [order[member.parameter] for member in interface.members])


def _members(
    solution: FreeGenerators,
    positions: Positions,
    leaves: Sequence[Leaf],
    blocks: Int64[ndarray, " n"],
    computed_in: Mapping[int, torch.dtype],
) -> Iterator[Member]:
    """The members that some blocks of one shape move; the first counts once."""
    roots = solution.member[np.isin(solution.block, blocks)].tolist() if computed_in else []
    precision = narrowest(*map(computed_in.get, roots))
    unit = float(positions.rate[positions.first[blocks[0]]])
    for number, rate, index in positions.together(blocks):
        leaf = leaves[number]
        yield Member(leaf.parameter, leaf.view, leaf.axes, index, rate / unit, precision=precision)


def _stated(
    propagation: SymmetryPropagation, solution: FreeGenerators, positions: Positions, leaves: Sequence[Leaf]
) -> Bool[ndarray, " blocks"]:
    """Whether a block has a law worth stating: it moves what an operation reads, and its quantity is its own."""
    absorbed = [absorbed.coordinates for absorbed in propagation.algebra.absorbed]
    read = np.zeros(len(solution.root), bool)
    read[solution.root[np.concatenate([propagation.algebra.symmetry.related(), *absorbed])]] = True
    stated = solution.skew.copy()
    stated[solution.block[read[solution.member]]] = True
    stated &= positions.slots > 0
    rates = np.flatnonzero(stated & (solution.width == 1))
    stated[rates] = False
    stated[independent(leaves, positions, rates)] = True
    return stated


Breaks = tuple[tuple[str, float], ...]


def _breaks(
    propagation: SymmetryPropagation, solution: FreeGenerators
) -> tuple[Int64[ndarray, " blocks"], Mapping[int, Breaks]]:
    """By block, a number for the set of normalisations whose `eps` breaks its symmetry; and these sets."""
    softened = [absorbed for absorbed in propagation.algebra.absorbed if absorbed.eps]
    notes = sorted({(absorbed.place, absorbed.eps) for absorbed in softened})
    blocks, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for absorbed in softened:
        touched = np.zeros(len(solution.root), bool)
        touched[solution.root[absorbed.coordinates]] = True
        touched[STILL] = False
        blocks.append(np.unique(solution.block[touched[solution.member]]))
        numbers.append(np.full(len(blocks[-1]), notes.index((absorbed.place, absorbed.eps))))
    pairs = np.unique(np.stack([np.concatenate(blocks), np.concatenate(numbers)]), axis=1)
    found = alike(len(solution.width), *pairs)
    sets: dict[int, list[int]] = defaultdict(list)
    kinds, first = np.unique(found, return_index=True)
    kept = np.isin(pairs[0], first)
    for block, note in pairs[:, kept].T.tolist():
        sets[int(found[block])].append(note)
    return found, {kind: tuple(notes[note] for note in sets[kind]) for kind in kinds.tolist()}
