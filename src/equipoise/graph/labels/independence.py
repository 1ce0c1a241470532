"""Which rates conserve a quantity of their own: one that is neither constant nor a combination of others.

Most are distinguished by where they act. Only where every parameter that a rate moves is moved by another one as well,
or in another of its roles, may its quantity follow: the bias of a query, say, whose rows and whose columns are scaled.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from equipoise.graph.labels.positions import Positions
from equipoise.graph.propagate import Leaf

_SPARE = 8  # random weights beyond as many as there are quantities
_LARGEST = 2**27  # numbers to draw at most
_DEPENDENT = 1e-9  # of the length of a row of values, what is left of it beyond those before

Rates = Int64[ndarray, " n"]
Kept = Int64[ndarray, " kept"]


def independent(leaves: Sequence[Leaf], positions: Positions, rates: Rates) -> Kept:
    """Those blocks of width 1, of the given ones, whose quantities do not follow from the others, in the same order.

    Args:
        leaves: the roles of the parameters.
        positions: what the blocks move.
        rates: blocks, each with one rate for every position that it moves.
    """
    rivals = _rivals(leaves, positions, rates)
    if not len(rivals):
        return rates
    values, sizes = _values(leaves, positions, rivals)
    kept = _leading(values, sizes) if values.shape[1] > 1 else np.abs(values[:, 0]) > _DEPENDENT * sizes[:, 0]
    return rates[~np.isin(rates, rivals[~kept])]


def _rivals(leaves: Sequence[Leaf], positions: Positions, rates: Rates) -> Kept:
    """Rates that may follow from others; the most numerous kinds come first, so that odd ones follow from them."""
    shapes, first, counts = np.unique(positions.shape[rates], return_index=True, return_counts=True)
    roles = {
        shape: {(leaves[number].parameter, number) for number, _, _ in positions.roles(block)}
        for shape, block in zip(shapes.tolist(), rates[first].tolist(), strict=True)
    }
    alone: set[int] = {-1}
    while alone:
        uses = Counter(name for own in roles.values() for name, _ in own)
        alone = {shape for shape, own in roles.items() if any(uses[name] == 1 for name, _ in own)}
        roles = {shape: own for shape, own in roles.items() if shape not in alone}
    many = dict(zip(shapes.tolist(), counts.tolist(), strict=True))
    order = sorted(roles, key=lambda shape: -many[shape])
    return np.concatenate([np.zeros(0, np.int64), *(rates[positions.shape[rates] == shape] for shape in order)])


def _values(
    leaves: Sequence[Leaf], positions: Positions, rates: Rates
) -> tuple[Float64[ndarray, "n draws"], Float64[ndarray, "n draws"]]:
    """`Σ rate w²` for random weights, and `Σ |rate| w²`; where there are very many weights, of one draw only."""
    moved = [list(positions.roles(block)) for block in rates.tolist()]
    own = {number: leaves[number] for roles in moved for number, _, _ in roles}
    weights = {leaf.parameter: math.prod(leaf.view) for leaf in own.values()}
    draws = len(rates) + _SPARE
    draws = draws if draws * sum(weights.values()) <= _LARGEST else 1
    generator, sums = np.random.default_rng(0), {}
    for name, size in weights.items():  # one parameter at a time: they may be large
        squares = generator.random((size, draws))
        sums |= {number: _summed(leaf, squares) for number, leaf in own.items() if leaf.parameter == name}
    values, sizes = np.zeros((2, len(rates), draws))
    for row, roles in enumerate(moved):
        for number, rate, places in roles:
            total = sums[number][places].sum(0)
            values[row] += rate * total
            sizes[row] += abs(rate) * total
    return values, sizes


def _summed(leaf: Leaf, squares: Float64[ndarray, "weights draws"]) -> Float64[ndarray, "places draws"]:
    """Sums of the squares of a parameter's weights over each place of a role."""
    draws = squares.shape[1]
    rest = tuple(axis for axis in range(len(leaf.view)) if axis not in leaf.axes)
    return squares.reshape(*leaf.view, draws).sum(rest).reshape(-1, draws)


def _leading(values: Float64[ndarray, "n draws"], sizes: Float64[ndarray, "n draws"]) -> Bool[ndarray, " n"]:
    """Rows that are no combination of the rows before, by Gram-Schmidt."""
    basis = np.zeros((0, values.shape[1]))
    kept = np.zeros(len(values), bool)
    for number, row in enumerate(values):
        rest = row - basis.T @ (basis @ row)
        rest -= basis.T @ (basis @ rest)
        length = np.linalg.norm(rest)
        kept[number] = length > _DEPENDENT * np.linalg.norm(sizes[number])
        if kept[number]:
            basis = np.vstack([basis, rest / length])
    return kept
