"""A network unrolled from its outputs into a tree with one leaf a path, whose weights are only signs (T5.1)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.decomposition.units import CONSTANT, MAXIMUM, UnitGraph


@dataclass(frozen=True)
class Level:
    """The nodes of a tree at one distance from the outputs.

    `parents` are places in the level above (of the outputs themselves: none), `signs` those of the edges to them,
    `leaves` the number of the leaf or -1, `slopes` as in `UnitGraph`, `units` the unit that a node is a copy of.
    """

    units: np.ndarray
    parents: np.ndarray
    signs: np.ndarray
    leaves: np.ndarray
    slopes: np.ndarray


@dataclass(frozen=True)
class SignTree:
    """`ρ`: a tree of ReLUs, leaky ReLUs and maxima whose weights are the signs of the network's, and nothing else.

    `paths` leaves go in, one value for each output comes out. It is all that training leaves as it is once no sign
    changes any more (T5.2).
    """

    levels: tuple[Level, ...]
    paths: int

    @property
    def outputs(self) -> int:
        """The roots."""
        return len(self.levels[0].units)

    @property
    def depth(self) -> int:
        """Edges on the longest path."""
        return len(self.levels) - 1

    def __call__(self, leaves: Float[Tensor, "n paths"]) -> Float[Tensor, "n outputs"]:
        """From the leaves up, level by level."""
        below = leaves.new_zeros(len(leaves), 0)
        lower: Level | None = None
        for level in reversed(self.levels):
            below, lower = _evaluated(level, lower, below, leaves), level
        return below

    def same_as(self, other: "SignTree") -> bool:
        """Whether two trees are the same network: equal structure and equal signs."""
        pairs = zip(self.levels, other.levels, strict=False)
        return len(self.levels) == len(other.levels) and all(
            np.array_equal(a.units, b.units) and np.array_equal(a.signs, b.signs) for a, b in pairs
        )


@dataclass(frozen=True)
class Leaves:
    """`μ`: for each path its input (0 the constant, then the inputs) and the product of the magnitudes on it."""

    inputs: np.ndarray
    magnitudes: Float[Tensor, " paths"]

    def __call__(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n paths"]:
        """`x_{in(π)} Π_{e∈π} |w_e|`: multilinear in the magnitudes, linear in `x` and the constant."""
        known = torch.cat([x.new_ones(len(x), 1), x], dim=1)
        return known[:, torch.as_tensor(self.inputs)] * self.magnitudes.to(x)


def unroll(graph: UnitGraph) -> tuple[SignTree, Leaves]:
    """The tree and its leaves, by walking every edge from the outputs down; one copy of a unit for each path to it."""
    levels, inputs, magnitudes, count = [], [], [], 0
    for level, products in _levels(graph):
        ends = level.leaves >= 0
        levels.append(Level(level.units, level.parents, level.signs, _numbered(ends, count), level.slopes))
        inputs.append(level.units[ends])
        magnitudes.append(products[ends])
        count += int(ends.sum())
    return SignTree(tuple(levels), count), Leaves(np.concatenate(inputs), torch.from_numpy(np.concatenate(magnitudes)))


def _levels(graph: UnitGraph) -> Iterator[tuple[Level, np.ndarray]]:
    """Level by level, with the product of magnitudes from each node to its output; `leaves` marks the ends by 0."""
    units, parents = graph.outputs, np.full(len(graph.outputs), -1)
    signs, products = np.ones(len(units)), np.ones(len(units))
    while len(units):
        ends = np.where((units == CONSTANT) | ((units <= graph.inputs) & (units > 0)), 0, -1)
        yield Level(units, parents, signs, ends, graph.slopes[units]), products
        fan = np.where(ends >= 0, 0, graph.fan_in(units))
        parents = np.repeat(np.arange(len(units)), fan)
        first = np.repeat(graph.starts[units], fan)
        edges = first + np.arange(len(first)) - np.repeat(np.cumsum(fan) - fan, fan)
        products = products[parents] * np.abs(graph.weights[edges])
        units, signs = graph.sources[edges], np.where(graph.weights[edges] < 0, -1.0, 1.0)


def _numbered(ends: np.ndarray, first: int) -> np.ndarray:
    return np.where(ends, first + np.cumsum(ends) - 1, -1)


def _evaluated(level: Level, lower: Level | None, below: Tensor, leaves: Tensor) -> Tensor:
    """The values of one level from those of the next one down and from its own leaves."""
    values = leaves.new_zeros(len(leaves), len(level.units))
    if lower is not None and len(lower.units):
        values = _gathered(values, level, lower, below)
    slopes = torch.as_tensor(np.where(np.isfinite(level.slopes), level.slopes, 1.0)).to(leaves)
    values = torch.where(values > 0, values, slopes * values)
    ends = torch.as_tensor(level.leaves >= 0)
    values[:, ends] = leaves[:, torch.as_tensor(level.leaves[level.leaves >= 0])]
    return values


def _gathered(values: Tensor, level: Level, lower: Level, below: Tensor) -> Tensor:
    parents = torch.as_tensor(lower.parents)
    terms = below * torch.as_tensor(lower.signs).to(below)
    summed = values.index_add(1, parents, terms)
    if not (level.slopes == MAXIMUM).any():
        return summed
    lows = torch.full_like(values, -torch.inf)
    largest = lows.scatter_reduce(1, parents.expand_as(terms), terms, "amax")
    return torch.where(torch.as_tensor(level.slopes == MAXIMUM), largest, summed)
