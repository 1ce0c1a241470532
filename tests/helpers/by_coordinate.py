"""How laws are derived, coordinate by coordinate and block by block: the slow twin of `equipoise.graph`."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from equipoise.graph.constraints import STILL, FreeGenerators, GeneratorConstraints, _unique, kernel
from equipoise.graph.interface import Interface, Member
from equipoise.graph.labels.cells import Cells
from equipoise.graph.precision import moved_in, narrow_nodes, narrowest
from equipoise.graph.propagate import Leaf, SymmetryPropagation


@dataclass(frozen=True)
class Block:
    """An independent family of generators: `width` roots mixed by one matrix, or one rate shared in proportions.

    `rates` maps a root coordinate to its place in the matrix and its rate; for a block of width one there may be
    several roots, each moving at its own rate.
    """

    width: int
    rates: dict[int, tuple[int, Fraction]]
    skew: bool = False


_EMPTY = np.zeros(0, np.int64)
_NO_ARRAYS = (_EMPTY, _EMPTY > 0, _EMPTY, _EMPTY, _EMPTY, _EMPTY / 1)


@dataclass(frozen=True, eq=False)
class SlowSolution(FreeGenerators):
    """With a list of blocks in place of arrays."""

    blocks: tuple[Block, ...] = ()


class SlowCells(Cells):
    """Every question answered by going through all coordinates, one at a time."""

    def all(self) -> list[int]:
        return self.of(np.arange(len(self))).tolist()

    @property
    def occupied(self) -> int:
        return len(set(self.all()))

    def size(self, coordinates: ndarray) -> ndarray:
        sizes = Counter(self.all())
        return np.array([sizes[cell] for cell in self.of(coordinates).reshape(-1).tolist()]).reshape(coordinates.shape)

    def members(self, cells: ndarray) -> ndarray:
        return np.array([member for member, cell in enumerate(self.all()) if cell in cells], np.int64)

    def mixed(self) -> ndarray:
        return np.flatnonzero(self.size(np.arange(len(self))) > 1)


class SlowConstraints(GeneratorConstraints):
    """The restrictions, settled one coordinate at a time."""

    def __init__(self):
        super().__init__()
        self._cells = SlowCells()

    def relate(self, left: ndarray, right: ndarray, ratio: float) -> None:
        pairs = _unique(left, right)
        self._pairs.append(pairs)
        for a, b in pairs.T.tolist():
            self._relate(a, b, ratio)

    def _relate(self, a: int, b: int, ratio: float) -> None:
        root_a, of_a = self._climb(a)
        root_b, of_b = self._climb(b)
        if root_a < root_b:
            root_a, root_b, of_a, of_b, ratio = root_b, root_a, of_b, of_a, 1 / ratio
        if root_a != root_b:
            self._parent.values[root_a], self._ratio.values[root_a] = root_b, ratio * of_b / of_a
            if root_a in self._skew:
                self._skew.add(root_b)
        elif root_a != STILL and of_a == -ratio * of_b:
            self._skew.add(root_a)
        elif root_a != STILL and of_a != ratio * of_b:
            self._parent.values[root_a] = STILL

    def _climb(self, coordinate: int) -> tuple[int, float]:
        ratio = 1.0
        while (above := int(self._parent.values[coordinate])) != coordinate:
            ratio *= float(self._ratio.values[coordinate])
            coordinate = above
        return coordinate, ratio

    def balance(self, roots: ndarray, weights: ndarray) -> None:
        for terms in zip(roots.T.tolist(), weights.T.tolist(), strict=True):
            self._balance(list(zip(*terms, strict=True)))

    def _balance(self, terms: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
        """The equation if more than two terms are left; it is settled otherwise."""
        total: Counter[int] = Counter()
        for root, weight in terms:
            total[root] += weight  # pyright: ignore[reportArgumentType]
        left = tuple(sorted((root, weight) for root, weight in total.items() if root != STILL and weight != 0))
        if len(left) == 1:
            self.still(np.array([left[0][0]]))
        elif len(left) == 2:
            (a, of_a), (b, of_b) = left
            self._relate(a, b, -of_b / of_a)
        elif left:
            self._equations.add(left)
            return left
        return ()

    def _reduced(self, equation: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
        found = [(*self._climb(coordinate), weight) for coordinate, weight in equation]
        return self._balance([(root, ratio * weight) for root, ratio, weight in found])

    def close(self, coordinates: ndarray, fibres: ndarray) -> None:
        seen: dict[int, list[int]] = defaultdict(list)
        held: dict[tuple[int, int], set[int]] = defaultdict(set)
        cells = self._cells.all()
        for fibre, coordinate in sorted(set(zip(fibres.tolist(), coordinates.tolist(), strict=True))):
            seen[coordinate].append(fibre)
            held[fibre, cells[coordinate]].add(coordinate)
        sizes = Counter(cells)
        broken = sorted({cell for (_, cell), found in held.items() if len(found) < sizes[cell]})
        members = self._cells.members(np.array(broken))
        self._split(members, [tuple(seen.get(member, ())) for member in members.tolist()])

    def _split(self, members: ndarray, keys: Iterable[Hashable]) -> None:
        """Split cells so that only members with equal keys stay together."""
        numbers: dict[Hashable, int] = {}
        self._cells.split(members, np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64))

    def solution(self) -> SlowSolution:
        """The largest set of generators within all restrictions."""
        self._settle()
        root, ratio = self.find(np.arange(len(self._cells)))
        return SlowSolution(root, ratio, np.array(self._cells.all()), *_NO_ARRAYS, tuple(self._blocks(root)))

    def _settle(self) -> None:
        """The coarsest cells in which two coordinates stay together only if everything they are tied to does."""
        while (found := {rows for each in [*self._equations] if (rows := self._reduced(each))}) != self._equations:
            self._equations = found  # one that is settled may change the roots of others
        self.single(np.array([root for equation in self._equations for root, _ in equation], np.int64))
        count = -1
        while count != (count := self._cells.occupied):
            self._settle_pairs()
            root, ratio = self.find(np.arange(len(self._cells)))
            keys = self._ties(root, ratio)
            members = self._cells.mixed()
            self._split(members, [keys[r] for r in root[members].tolist()])

    def _settle_pairs(self) -> None:
        """The same for direct partners, which tells apart members of one cell that end at the same root."""
        pairs = np.concatenate([*self._pairs, np.zeros((2, 0), np.int64)], axis=1)
        source, partner = np.concatenate([pairs, pairs[::-1]], axis=1)
        count = -1
        while count != (count := self._cells.occupied):
            members = self._cells.mixed()
            inside = np.isin(source, members)
            links = _unique(source[inside], self.cells(partner[inside]))
            beside: dict[int, list[int]] = defaultdict(list)
            for member, cell in links.T.tolist():
                beside[member].append(cell)
            self._split(members, [tuple(beside.get(member, ())) for member in members.tolist()])

    def _ties(self, root: ndarray, ratio: ndarray) -> dict[int, Hashable]:
        """What a root is tied to: the cells of its members with their signs; itself where no matrix fits."""
        cells = np.array(self._cells.all())
        order = np.lexsort((cells, root))
        members: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for r, cell, rate in zip(root[order].tolist(), cells[order].tolist(), ratio[order].tolist(), strict=True):
            members[r].append((cell, rate))
        return {r: self._tie(r, ties) for r, ties in members.items()}

    def _tie(self, root: int, ties: list[tuple[int, float]]) -> Hashable:
        if root == STILL:
            return "still"
        cells = [cell for cell, _ in ties]
        first = ties[0][1]
        signs = tuple(rate / first for _, rate in ties)
        if len(set(cells)) < len(cells) or any(abs(sign) != 1 for sign in signs):
            return root
        return (root in self._skew, tuple(cells), signs)

    def _blocks(self, root: ndarray) -> Iterator[Block]:
        bound = {r for equation in self._equations for r, _ in equation}
        ties = self._ties(root, self.find(np.arange(len(self._cells)))[1])
        together: dict[Hashable, list[int]] = defaultdict(list)
        roots, first = np.unique(root, return_index=True)
        for r in roots[np.argsort(first)].tolist():
            if r != STILL and r not in bound:
                together[ties[r]].append(r)
        for members in together.values():
            skew = members[0] in self._skew
            if not skew or len(members) > 1:
                yield Block(len(members), {r: (place, Fraction(1)) for place, r in enumerate(members)}, skew)
        rows = [{r: Fraction(w) for r, w in each if r not in self._skew} for each in sorted(self._equations)]
        for rates in kernel(rows):
            yield Block(1, {r: (0, rate) for r, rate in rates.items()})


def slow_interfaces(walk: SymmetryPropagation) -> list[Interface]:
    """Block by block."""
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


def _in_order(blocks, key):
    leaf, degree, _ = key[2][0]
    return sorted(blocks, key=lambda block: min(position for *_, position in block[1][leaf, degree]))


def _places(solution: SlowSolution, leaves: Sequence[Leaf]) -> dict[int, Slots]:
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


def _breaks(walk: SymmetryPropagation, solution: SlowSolution) -> Mapping[int, list[tuple[str, float]]]:
    found: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for absorbed in walk.algebra.absorbed:
        for root in np.unique(solution.root[absorbed.coordinates]).tolist():
            if root != STILL and absorbed.eps:
                found[root].append((absorbed.place, absorbed.eps))
    return found


def _read(walk: SymmetryPropagation, solution: SlowSolution) -> set[int]:
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
