"""Unknown generators, and everything the operations of a model demand of them.

A *coordinate* is one unknown rate: the generator acts on what it labels by `dx = a x`. Coordinates that may also be
mixed with each other share a *cell*: on it acts a whole matrix `A` (`dx = A x`). Operations only ever restrict:

- `relate`: `a = ratio · b`; a ratio of -1 between cells means the contragredient, `A = -Bᵀ`;
- `split`: a cell falls into smaller cells, down to single coordinates (a diagonal generator);
- `still`: the generator is zero there;
- `balance`: a linear equation between three or more rates.

`solution` then gives the largest set of generators that satisfies all of it (docs/theory.md §1).
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from equipoise.graph.labels.cells import Cells, GrowingArray
from equipoise.graph.labels.ragged import alike, distinct, numbered

STILL = 0  # the coordinate whose rate is zero
STEPS = 8  # that `find` takes up a chain before all chains are shortened


@dataclass(frozen=True, eq=False)
class FreeGenerators:
    """For every coordinate: its root, its ratio to the root, and its cell; and the blocks of free roots.

    A block is an independent family of generators: roots mixed by one matrix, of its `width`, or several roots that
    share one rate in proportions (width one); `skew` if the matrix is antisymmetric. Block by block, `member` lists its
    roots, `component` their places in the matrix, `rate` their rates; `block` says whose they are.
    """

    root: Int64[ndarray, " n"]
    ratio: Float64[ndarray, " n"]
    cell: Int64[ndarray, " n"]
    width: Int64[ndarray, " blocks"]
    skew: Bool[ndarray, " blocks"]
    block: Int64[ndarray, " members"]
    member: Int64[ndarray, " members"]
    component: Int64[ndarray, " members"]
    rate: Float64[ndarray, " members"]


class GeneratorConstraints:
    """The restrictions gathered so far on a growing set of coordinates."""

    def __init__(self):
        self._parent = GrowingArray(np.zeros(1, np.int64))
        self._ratio = GrowingArray(np.ones(1))
        self._alone = GrowingArray(np.zeros(1, bool))  # coordinates that no matrix may mix with others
        self._cells = Cells()
        self._fibres = 0
        self._skew: set[int] = set()
        self._pairs: list[ndarray] = []
        self._equations: set[tuple[tuple[int, float], ...]] = set()

    def fresh(self, count: int) -> Int64[ndarray, " count"]:
        """New coordinates, all in one new cell: any matrix may act on them."""
        return self._free(self._cells.add(count))

    def multiples(self, coordinates: Int64[ndarray, " n"], ratio: float) -> Int64[ndarray, " n"]:
        """New coordinates, each in a cell of its own, whose rates are `ratio` times those of the given ones."""
        found = self._free(self._cells.add_single(len(coordinates)))
        self.relate(found, coordinates, ratio)
        return found

    def _free(self, coordinates: Int64[ndarray, " n"]) -> Int64[ndarray, " n"]:
        """The new coordinates, each its own root."""
        self._parent.extend(coordinates)
        self._ratio.extend(np.ones(len(coordinates)))
        self._alone.extend(np.zeros(len(coordinates), bool))
        return coordinates

    def fibres(self, count: int) -> int:
        """The first of `count` new fibre numbers (a fibre is one vector on which a cell's matrix acts)."""
        self._fibres += count
        return self._fibres - count

    def find(self, coordinates: ndarray) -> tuple[ndarray, ndarray]:
        """The root of each coordinate and its rate relative to it."""
        parent, ratio = self._parent.values, self._ratio.values
        roots, ratios = parent[coordinates], ratio[coordinates]
        for _ in range(STEPS):
            above = parent[roots]
            if np.array_equal(above, roots):
                return np.asarray(roots), np.asarray(ratios)
            roots, ratios = above, ratios * ratio[roots]
        self._flatten()
        return np.asarray(parent[coordinates]), np.asarray(ratio[coordinates])

    def _flatten(self) -> None:
        """Point every coordinate to its root by pointer jumping, in log₂ of the longest chain passes."""
        parent, ratio = self._parent.values, self._ratio.values
        while not np.array_equal(above := parent[parent], parent):
            ratio *= ratio[parent]
            parent[:] = above

    def cells(self, coordinates: ndarray) -> ndarray:
        """The cell of each coordinate."""
        return self._cells.of(coordinates)

    def still(self, coordinates: ndarray) -> None:
        """The rates of these coordinates are zero."""
        self._parent.values[self.find(distinct(coordinates))[0]] = STILL

    def relate(self, left: ndarray, right: ndarray, ratio: float) -> None:
        """`rate(left) = ratio · rate(right)`, pair by pair."""
        pairs = _unique(left, right)
        self._pairs.append(pairs)
        self._join(pairs[0], pairs[1], np.full(pairs.shape[1], ratio))

    def _join(self, left: ndarray, right: ndarray, ratio: ndarray) -> None:
        """`rate(left) = ratio · rate(right)`: the later of two roots follows the earlier one, each once a round."""
        while len(left):
            (roots_a, of_a), (roots_b, of_b) = self.find(left), self.find(right)
            of_b, apart = ratio * of_b, roots_a != roots_b
            self._contradict(roots_a[~apart], of_a[~apart], of_b[~apart])
            earlier, later = np.minimum(roots_a, roots_b), np.maximum(roots_a, roots_b)
            upwards = np.where(later == roots_a, of_b / of_a, of_a / of_b)
            moved, which = np.unique(later[apart], return_index=True)
            which = np.flatnonzero(apart)[which]
            self._parent.values[moved], self._ratio.values[moved] = earlier[which], upwards[which]
            if self._skew:
                self._skew.update(self.find(np.array([*self._skew]))[0].tolist())
            apart[which] = False
            left, right, ratio = left[apart], right[apart], ratio[apart]

    def _contradict(self, roots: ndarray, rates: ndarray, others: ndarray) -> None:
        """`a = -a` leaves the antisymmetric matrices of a cell; any other ratio leaves nothing."""
        wrong = (rates != others) & (roots != STILL)
        opposite = wrong & (rates == -others)
        self._skew.update(roots[opposite].tolist())
        self._parent.values[roots[wrong & ~opposite]] = STILL

    def balance(self, roots: Int64[ndarray, "terms n"], weights: Float64[ndarray, "terms n"]) -> None:
        """`Σ weight · rate(root) = 0` in each column, for roots as given by `find`; one or two terms are settled."""
        order = np.argsort(roots, axis=0, kind="stable")
        roots, weights = np.take_along_axis(roots, order, 0), np.take_along_axis(weights, order, 0)
        for above, below in itertools.pairwise(range(len(roots))):
            same = roots[above] == roots[below]
            weights[below] += np.where(same, weights[above], 0)
            weights[above] = np.where(same, 0, weights[above])
        left = (roots != STILL) & (weights != 0)
        terms = left.sum(0)
        self.still(roots[left & (terms == 1)])
        pairs = left & (terms == 2)
        (a, b), (of_a, of_b) = roots.T[pairs.T].reshape(-1, 2).T, weights.T[pairs.T].reshape(-1, 2).T
        self._join(a, b, -of_b / of_a)
        for column in np.flatnonzero(terms > 2):
            kept = left[:, column]
            found = zip(roots[kept, column].tolist(), weights[kept, column].tolist(), strict=True)
            self._equations.add(tuple(found))

    def unmix(self, coordinates: ndarray) -> None:
        """Some map acts on each of these coordinates by itself, so that no matrix could act on them."""
        self._alone.values[coordinates] = True

    def akin(self, left: ndarray, right: ndarray) -> bool:
        """Whether some pair are different coordinates of one vector, on which a matrix could act."""
        different = (left != right) & self._cells.related(left, right)
        return bool((different & ~self._alone.values[left] & ~self._alone.values[right]).any())

    def wide(self, coordinates: ndarray) -> bool:
        """Whether some of these coordinates share their cell and are not at rest."""
        members = distinct(coordinates)
        moving = members[self.find(members)[0] != STILL]
        return bool((self._cells.size(moving) > 1).any())

    def single(self, coordinates: ndarray) -> None:
        """Each of these coordinates becomes a cell of its own."""
        self._cells.isolate(coordinates)

    def close(self, coordinates: ndarray, fibres: ndarray) -> None:
        """Split cells until every fibre holds all of a cell or nothing of it: only then can a matrix act on it."""
        wide = self._cells.size(coordinates) > 1
        fibre, coordinate = _unique(fibres[wide], coordinates[wide])
        cell, size = self._cells.of(coordinate), self._cells.size(coordinate)
        _, first, counts = np.unique(fibre * self._cells.numbers + cell, return_index=True, return_counts=True)
        broken = distinct(cell[first][counts < size[first]])
        if len(broken):
            inside = np.isin(cell, broken)
            members = self._cells.members(broken)
            owners = np.searchsorted(members, coordinate[inside])
            self._cells.split(members, alike(len(members), owners, fibre[inside]))

    def related(self) -> ndarray:
        """Coordinates tied to others."""
        tied = [pairs.reshape(-1) for pairs in self._pairs]
        bound = np.array([root for equation in self._equations for root, _ in equation], np.int64)
        return distinct(np.concatenate([*tied, bound]))

    def solution(self) -> FreeGenerators:
        """The largest set of generators within all restrictions."""
        root, ratio, ties = self._settle()
        return FreeGenerators(root, ratio, self._cells.of(np.arange(len(self._cells))), *self._blocks(root, ties))

    def _settle(self) -> tuple[ndarray, ndarray, ndarray]:
        """Roots, ratios and ties, after the coarsest split into cells that are tied as a whole.

        Two coordinates stay in one cell only if everything they are tied to does.
        """
        self._reduce()
        self.single(np.array([root for equation in self._equations for root, _ in equation], np.int64))
        while True:
            before = self._cells.occupied
            self._settle_pairs()
            root, ratio = self.find(np.arange(len(self._cells)))
            ties, members = self._ties(root, ratio), self._cells.mixed()
            self._cells.split(members, ties[root[members]])
            if self._cells.occupied == before:
                return root, ratio, ties

    def _settle_pairs(self) -> None:
        """The same for direct partners, which separates members of one cell that end at the same root."""
        pairs = np.concatenate([*self._pairs, np.zeros((2, 0), np.int64)], axis=1)
        source, partner = np.concatenate([pairs, pairs[::-1]], axis=1)
        count = -1
        while count != (count := self._cells.occupied):
            members = self._cells.mixed()
            inside = self._cells.size(source) > 1
            member, cell = _unique(source[inside], self._cells.of(partner[inside]))
            self._cells.split(members, alike(len(members), np.searchsorted(members, member), cell))

    def _reduce(self) -> None:
        """Every equation in the roots of today: one that is settled with two terms may change the roots of others."""
        before = None
        while before != self._equations:
            before, self._equations = self._equations, set()
            by_length = defaultdict(list)
            for equation in before:
                by_length[len(equation)].append(equation)
            for equations in by_length.values():
                coordinates, weights = np.array(equations).T
                roots, ratios = self.find(coordinates.astype(np.int64))
                self.balance(roots, weights * ratios)

    def _ties(self, root: ndarray, ratio: ndarray) -> Int64[ndarray, " n"]:
        """By root, a number for what it is tied to: the cells of its members with their signs; its own if none fits."""
        owner, cell = self._signed_cells(root, ratio)
        owners, place = np.unique(owner, return_inverse=True)
        keys = np.arange(len(root))
        keys[owners] = len(root) + 2 * alike(len(owners), place, cell) + np.isin(owners, [*self._skew])
        return keys

    def _signed_cells(self, root: ndarray, ratio: ndarray) -> tuple[ndarray, ndarray]:
        """Root by root, where a matrix may act: the roots, and the cells of their members, numbered with their signs.

        No matrix but a multiple of the identity fits members of one cell, or of other ratios than 1 and -1.
        """
        cells = self._cells.of(np.arange(len(root)))
        order = np.lexsort((cells, root))
        owner, cell, rate = root[order], cells[order], ratio[order]
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        like = np.repeat(rate[first], np.diff(first, append=len(owner)))
        repeated = (owner[1:] == owner[:-1]) & (cell[1:] == cell[:-1])
        own = np.zeros(len(root), bool)
        own[owner[1:][repeated]] = True
        own[owner[np.abs(rate) != np.abs(like)]] = True
        own[STILL] = True
        fits = ~own[owner]
        return owner[fits], (2 * cell + (rate != like))[fits]

    def _blocks(self, root: ndarray, ties: ndarray) -> tuple[ndarray, ...]:
        """Width and kind of each block, and its members, as in `FreeGenerators`."""
        free = np.ones(len(root), bool)
        free[[STILL, *(r for equation in self._equations for r, _ in equation)]] = False
        roots = root[numbered(root)[1]]
        roots = roots[free[roots]]
        block, first = numbered(ties[roots])
        order = np.argsort(block, kind="stable")
        block, member = block[order], roots[order]
        width = np.bincount(block, minlength=len(first))
        component = np.arange(len(block)) - (np.cumsum(width) - width)[block]
        skews = np.isin(roots[first], [*self._skew])
        kept = ~skews | (width > 1)  # one component has no antisymmetric matrix
        inside, number = kept[block], np.cumsum(kept) - 1
        rows = [{r: Fraction(w) for r, w in each if r not in self._skew} for each in sorted(self._equations)]
        rates = kernel(rows)
        shared = [(int(kept.sum()) + n, r, float(rate)) for n, each in enumerate(rates) for r, rate in each.items()]
        blocks, members, values = (np.array(column) for column in zip(*shared, strict=True)) if shared else [()] * 3
        one = np.ones(len(rates), np.int64)
        return (
            np.concatenate([width[kept], one]),
            np.concatenate([skews[kept], one < 1]),
            np.concatenate([number[block[inside]], np.asarray(blocks, np.int64)]),
            np.concatenate([member[inside], np.asarray(members, np.int64)]),
            np.concatenate([component[inside], np.zeros(len(members), np.int64)]),
            np.concatenate([np.ones(int(inside.sum())), np.asarray(values, np.float64)]),
        )


def _unique(left: ndarray, right: ndarray) -> ndarray:
    """The distinct pairs of two columns of non-negative numbers, sorted."""
    base = int(right.max(initial=0)) + 1
    return np.stack(np.divmod(distinct(left * base + right), base))


def kernel(equations: Sequence[dict[int, Fraction]]) -> list[dict[int, Fraction]]:
    """A sparse basis of the solutions of linear equations: one vector for each unknown that stays free.

    >>> kernel([{1: Fraction(1), 2: Fraction(1), 3: Fraction(-1)}])
    [{1: Fraction(1, 1), 3: Fraction(1, 1)}, {2: Fraction(1, 1), 3: Fraction(1, 1)}]
    """
    parts: dict[int, list[dict[int, Fraction]]] = defaultdict(list)
    for component, equation in reversed([*zip(_components(equations), equations, strict=True)]):
        parts[component].insert(0, equation)
    return [vector for part in parts.values() for vector in _kernel(part)]


def _components(equations: Sequence[dict[int, Fraction]]) -> list[int]:
    """The connected component of each equation, where equations that share an unknown are connected."""
    rows = [row for row, equation in enumerate(equations) for _ in equation]
    unknowns = [unknown for equation in equations for unknown in equation]
    _, columns = np.unique(np.array(unknowns, dtype=np.int64), return_inverse=True)
    size = len(equations) + len(unknowns)
    links = coo_array((np.ones(len(rows)), (rows, len(equations) + columns)), shape=(size, size))
    return connected_components(links, directed=False)[1][: len(equations)].tolist()


def _kernel(equations: Sequence[dict[int, Fraction]]) -> list[dict[int, Fraction]]:
    solved: dict[int, dict[int, Fraction]] = {}
    uses = Counter(unknown for equation in equations for unknown in equation)
    for equation in equations:
        row = _substituted(equation, solved)
        if not row:
            continue
        pivot = min(row, key=lambda unknown: (uses[unknown], -unknown))
        value = {unknown: -weight / row[pivot] for unknown, weight in row.items() if unknown != pivot}
        solved = {unknown: _substituted(rates, {pivot: value}) for unknown, rates in solved.items()} | {pivot: value}
    basis = {unknown: {unknown: Fraction(1)} for unknown in sorted(uses) if unknown not in solved}
    for unknown, rates in solved.items():
        for source, weight in rates.items():
            basis[source][unknown] = weight
    return [dict(sorted(vector.items())) for vector in basis.values()]


def _substituted(row: dict[int, Fraction], values: dict[int, dict[int, Fraction]]) -> dict[int, Fraction]:
    total: dict[int, Fraction] = defaultdict(Fraction)
    for unknown, weight in row.items():
        for source, rate in values.get(unknown, {unknown: Fraction(1)}).items():
            total[source] += weight * rate
    return {unknown: weight for unknown, weight in total.items() if weight}
