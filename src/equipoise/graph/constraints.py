"""Unknown generators, and everything the operations of a model demand of them.

A *coordinate* is one unknown rate: the generator acts on what it labels by `dx = a x`. Coordinates that may also be
mixed with each other share a *cell*: on it acts a whole matrix `A` (`dx = A x`). Operations only ever restrict:

- `relate`: `a = ratio · b`; a ratio of -1 between cells means the contragredient, `A = -Bᵀ`;
- `split`: a cell falls into smaller cells, down to single coordinates (a diagonal generator);
- `still`: the generator is zero there;
- `balance`: a linear equation between three or more rates.

`solution` then gives the largest set of generators that satisfies all of it (docs/theory.md §1).
"""

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
        for root in distinct(self.find(distinct(coordinates))[0]).tolist():
            self._parent.values[root] = STILL

    def relate(self, left: ndarray, right: ndarray, ratio: float) -> None:
        """`rate(left) = ratio · rate(right)`, pair by pair."""
        pairs = _unique(left, right)
        self._pairs.append(pairs)
        if not self._relate_all(pairs[0], pairs[1], ratio):
            for a, b in pairs.T.tolist():
                self._relate(a, b, ratio)

    def _relate_all(self, left: ndarray, right: ndarray, ratio: float) -> bool:
        """All pairs at once, where none of them changes what another one finds; says whether it has done so."""
        (roots_a, of_a), (roots_b, of_b) = self.find(left), self.find(right)
        apart = roots_a != roots_b
        if (~apart & (roots_a != STILL) & (of_a != ratio * of_b)).any():
            return False
        moved, onto = roots_a[apart], roots_b[apart]
        if (moved == STILL).any() or np.isin(roots_b, moved).any() or len(distinct(moved)) < len(moved):
            return False
        self._parent.values[moved], self._ratio.values[moved] = onto, ratio * of_b[apart] / of_a[apart]
        if self._skew:
            self._skew.update(b for a, b in zip(moved.tolist(), onto.tolist(), strict=True) if a in self._skew)
        return True

    def _relate(self, a: int, b: int, ratio: float) -> None:
        root_a, of_a = self._climb(a)
        root_b, of_b = self._climb(b)
        if root_a == root_b:
            if root_a != STILL and of_a != ratio * of_b:
                self._contradict(root_a, of_a, ratio * of_b)
        elif root_a == STILL:
            self._parent.values[root_b] = STILL
        else:
            self._parent.values[root_a], self._ratio.values[root_a] = root_b, ratio * of_b / of_a
            if root_a in self._skew:
                self._skew.add(root_b)

    def _contradict(self, root: int, rate: float, other: float) -> None:
        """`a = -a` leaves the antisymmetric matrices of a cell; any other ratio leaves nothing."""
        if rate == -other:
            self._skew.add(root)
        else:
            self._parent.values[root] = STILL

    def _climb(self, coordinate: int) -> tuple[int, float]:
        parent, rates = self._parent.values, self._ratio.values
        ratio, path = 1.0, []
        while (above := int(parent[coordinate])) != coordinate:
            path.append(coordinate)
            ratio *= float(rates[coordinate])
            coordinate = above
        remaining = ratio
        for step in path:
            parent[step], own = coordinate, float(rates[step])
            rates[step], remaining = remaining, remaining / own
        return coordinate, ratio

    def balance(self, terms: Sequence[tuple[int, float]]) -> None:
        """`Σ weight · rate(root) = 0` for roots as given by `find`; one or two terms are settled at once."""
        total: Counter[int] = Counter()
        for root, weight in terms:
            total[root] += weight  # pyright: ignore[reportArgumentType]
        left = sorted((root, weight) for root, weight in total.items() if root != STILL and weight != 0)
        if len(left) == 1:
            self.still(np.array([left[0][0]]))
        elif len(left) == 2:
            (a, of_a), (b, of_b) = left
            self._relate(a, b, -of_b / of_a)
        elif left:
            self._equations.add(tuple(left))

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
        self._settle()
        root, ratio = self.find(np.arange(len(self._cells)))
        return FreeGenerators(root, ratio, self._cells.of(np.arange(len(self._cells))), *self._blocks(root, ratio))

    def _settle(self) -> None:
        """The coarsest cells in which two coordinates stay together only if everything they are tied to does."""
        self._reduce()
        self.single(np.array([root for equation in self._equations for root, _ in equation], np.int64))
        count = -1
        while count != (count := self._cells.occupied):
            self._settle_pairs()
            root, ratio = self.find(np.arange(len(self._cells)))
            members = self._cells.mixed()
            self._cells.split(members, self._ties(root, ratio)[root[members]])

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
            before = self._equations
            self._equations = {rows for equation in before if (rows := self._reduced(equation))}

    def _reduced(self, equation: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
        """An equation in the roots of today, settled if two terms or fewer are left."""
        total: dict[int, float] = defaultdict(float)
        for coordinate, weight in equation:
            root, ratio = self._climb(coordinate)
            total[root] += weight * ratio
        left = tuple(sorted((root, weight) for root, weight in total.items() if root != STILL and weight != 0))
        if 0 < len(left) <= 2:
            self.balance(left)
            return ()
        return left

    def _ties(self, root: ndarray, ratio: ndarray) -> Int64[ndarray, " n"]:
        """By root, a number for what it is tied to: the cells of its members with their signs; its own if none fits.

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
        skew = np.zeros(len(root), np.int64)
        skew[list(self._skew)] = 1
        owners, place = np.unique(owner[fits], return_inverse=True)
        keys = np.arange(len(root))
        keys[owners] = len(root) + 2 * alike(len(owners), place, 2 * cell[fits] + (rate != like)[fits]) + skew[owners]
        return keys

    def _blocks(self, root: ndarray, ratio: ndarray) -> tuple[ndarray, ...]:
        """Width and kind of each block, and its members, as in `FreeGenerators`."""
        free = np.ones(len(root), bool)
        free[[STILL, *(r for equation in self._equations for r, _ in equation)]] = False
        roots = root[numbered(root)[1]]
        roots = roots[free[roots]]
        skew = np.zeros(len(root), bool)
        skew[list(self._skew)] = True
        block, first = numbered(self._ties(root, ratio)[roots])
        order = np.argsort(block, kind="stable")
        block, member = block[order], roots[order]
        width = np.bincount(block, minlength=len(first))
        component = np.arange(len(block)) - (np.cumsum(width) - width)[block]
        skews = skew[roots[first]]
        kept = ~skews | (width > 1)  # one component has no antisymmetric matrix
        inside, number = kept[block], np.cumsum(kept) - 1
        rows = [{r: Fraction(w) for r, w in equation if r not in self._skew} for equation in self._equations]
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
