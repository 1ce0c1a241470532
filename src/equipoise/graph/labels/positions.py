"""Which positions of which parameters each block of generators moves: all blocks and parameters in one table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from torch import Tensor

from equipoise.graph.constraints import FreeGenerators
from equipoise.graph.labels.ragged import alike, joined, numbered, places
from equipoise.graph.propagate import Leaf


@dataclass(frozen=True, eq=False)
class Positions:
    """A *slot* holds the positions that one block moves in one role of a parameter, all at one rate.

    Slots are listed block by block, from `first[block]` on, and roles in the order of the leaves; positions slot by
    slot, copy by copy, each in the order of the components of its block. Blocks of equal `shape` have the same roles,
    at the same rates, with equally many copies.
    """

    first: Int64[ndarray, " blocks"]
    slots: Int64[ndarray, " blocks"]  # how many
    shape: Int64[ndarray, " blocks"]
    width: Int64[ndarray, " blocks"]
    leaf: Int64[ndarray, " slots"]
    rate: Float64[ndarray, " slots"]
    start: Int64[ndarray, " slots"]
    count: Int64[ndarray, " slots"]
    position: Int64[ndarray, " moved"]

    @classmethod
    def of(cls, solution: FreeGenerators, leaves: Sequence[Leaf]) -> "Positions":
        """The table of a solution, for the roles `leaves` of its parameters."""
        leaf, position, block, component, rate, copy = _entries(solution, leaves)
        slot, seen = numbered(joined(leaf, rate, block))  # the few values first
        order = np.argsort(block[seen], kind="stable")  # slots by block, in a block as they appear
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        slot, seen = rank[slot], seen[order]
        within = np.lexsort((position, component, copy, slot))
        count = np.bincount(slot, minlength=len(seen))
        own, roles, rates = block[seen], leaf[seen], rate[seen]
        kind = joined(roles, rates, count // solution.width[own])
        slots = np.bincount(own, minlength=len(solution.width))
        return cls(
            first=np.cumsum(slots) - slots,
            slots=slots,
            shape=alike(len(slots), own, kind),
            width=solution.width,
            leaf=roles,
            rate=rates,
            start=np.cumsum(count) - count,
            count=count,
            position=position[within],
        )

    def in_order(self, blocks: Int64[ndarray, " n"]) -> Int64[ndarray, " n"]:
        """Blocks of one shape in the order of the slices of their first member: unit i is neuron i of that layer."""
        slot = self.first[blocks]
        lowest = self.position[self.start[slot][:, None] + np.arange(self.count[slot].max(initial=1))].min(1)
        return blocks[np.argsort(lowest, kind="stable")]

    def roles(self, block: int) -> Iterator[tuple[int, float, Int64[ndarray, " positions"]]]:
        """Of each slot of a block: which leaf, the rate, and the positions."""
        for slot in range(self.first[block], self.first[block] + self.slots[block]):
            start = self.start[slot]
            yield int(self.leaf[slot]), float(self.rate[slot]), self.position[start : start + self.count[slot]]

    def together(self, blocks: Int64[ndarray, " n"]) -> Iterator[tuple[int, float, Int64[Tensor, "n copies width"]]]:
        """The same of several blocks of one shape, one row of positions for each."""
        for number in range(self.slots[blocks[0]]):
            slot = self.first[blocks] + number
            width, count = int(self.width[blocks[0]]), int(self.count[slot[0]])
            index = self.position[self.start[slot][:, None] + np.arange(count)]
            yield (
                int(self.leaf[slot[0]]),
                float(self.rate[slot[0]]),
                torch.from_numpy(index).reshape(len(blocks), count // width, width),
            )


def _entries(solution: FreeGenerators, leaves: Sequence[Leaf]) -> tuple[ndarray, ...]:
    """Every position that a block moves: leaf, position, block, component, rate and copy."""
    sizes = np.array([len(leaf.coordinates) for leaf in leaves], np.int64)
    coordinates = np.concatenate([np.zeros(0, np.int64), *(each.coordinates for each in leaves)])
    element, entry = _moved(solution, coordinates)
    coordinate = coordinates[element]
    leaf = np.repeat(np.arange(len(sizes)), sizes)[element]
    position = places(sizes, np.zeros_like(sizes))[element]
    block = solution.block[entry]
    rate = solution.ratio[coordinate] * solution.rate[entry]
    copy = np.where(solution.width[block] > 1, solution.cell[coordinate], position)
    return leaf, position, block, solution.component[entry], rate, copy


def _moved(solution: FreeGenerators, coordinates: Int64[ndarray, " n"]) -> tuple[ndarray, ndarray]:
    """Pairs of a coordinate's number and a member of a block that it moves with, in the order of the coordinates."""
    order = np.argsort(solution.member, kind="stable")
    count = np.bincount(solution.member, minlength=len(solution.root))
    root = solution.root[coordinates]
    entry = order[places(count[root], (np.cumsum(count) - count)[root])]
    return np.repeat(np.arange(len(coordinates)), count[root]), entry
