"""Laws with a rate for each component, all of them at once: one pass over every parameter, planned beforehand.

For them products by element are enough: `Σ degree · x y` over the slices of each unit. Whatever laws a parameter takes
part in, it is multiplied once, and summed once along each of its axes that some law asks for. Vectors, each number of
which stands for itself, are joined into one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from equipoise.graph.interface import Member
from equipoise.laws.law import Law, fitting
from equipoise.laws.panel import Figures, Sides, in_a_row, starts
from equipoise.laws.reductions import Matrix
from equipoise.laws.scratch import Scratch
from equipoise.linalg import wide

Named = Mapping[str, Tensor]
Starts = Int64[np.ndarray, " _"]


def by_unit(law: Law) -> bool:
    """Whether each component has a rate of its own."""
    return law.interface.width == 1 and law.kind not in ("shift", "antisymmetric")


@dataclass(frozen=True)
class Stretch:
    """Laws that follow each other and add up equally many terms: those at `places`, `degrees` times.

    `units` are the first columns of the laws.
    """

    places: Int64[np.ndarray, "terms units"]
    degrees: Float[np.ndarray, "terms units"]
    units: Starts


@dataclass(frozen=True, eq=False)
class Units:
    """Laws for which `by_unit` holds, read together; and vectors that only lie `beside` them."""

    laws: tuple[Law, ...]
    beside: tuple[Member, ...] = ()

    # The plan --------------------------------------------------------------------------------------------------------

    @cached_property
    def _members(self) -> dict[str, list[Member]]:
        """By parameter, a member for each choice of axes that stay; it sums along the others. Vectors come last."""
        found: dict[str, dict[tuple[object, ...], Member]] = defaultdict(dict)
        for member in (*(member for law in self.laws for member in law.interface.members), *self.beside):
            found[member.parameter].setdefault((member.view, member.axes), member)
        each = {name: list(mine.values()) for name, mine in found.items()}
        return dict(sorted(each.items(), key=lambda item: _is_vector(item[1])))

    @cached_property
    def _matrices(self) -> list[Matrix]:
        return [Matrix(tuple(mine), self._scratch) for mine in self._members.values() if not _is_vector(mine)]

    @cached_property
    def _vectors(self) -> list[Member]:
        return [mine[0] for mine in self._members.values() if _is_vector(mine)]

    @cached_property
    def _starts(self) -> dict[tuple[object, ...], int]:
        """Where the sums along each choice of axes begin, in the order of `sums`."""
        members = [member for mine in self._members.values() for member in mine]
        begin = starts([member.lines for member in members]).tolist()
        return {_reduction(member): start for member, start in zip(members, begin, strict=True)}

    @cached_property
    def _stretches(self) -> list[Stretch]:
        return [self._stretch(list(laws)) for _, laws in groupby(self.laws, key=_terms)]

    def _stretch(self, laws: Sequence[Law]) -> Stretch:
        places, degrees = [], []
        for law in laws:
            members = law.interface.members
            places.append([self._starts[_reduction(each)] + each.index[..., 0].numpy().T for each in members])
            along = np.repeat(law.degrees, [each.index.shape[1] for each in members])
            degrees.append(along[:, None].repeat(law.interface.blocks, 1))
        units = starts([law.interface.blocks for law in laws])
        return Stretch(np.concatenate([np.concatenate(mine) for mine in places], 1), np.concatenate(degrees, 1), units)

    @cached_property
    def _copies(self) -> Starts:
        """The first term of each member of each law."""
        return starts([member.index.shape[1] for law in self.laws for member in law.interface.members])

    @cached_property
    def _sides(self) -> Sides:
        return Sides.of([law.degrees for law in self.laws])

    @cached_property
    def _units(self) -> Starts:
        """The first unit of each law."""
        return starts([law.interface.blocks for law in self.laws])

    @cached_property
    def _scratch(self) -> Scratch:
        return Scratch()

    # The pass --------------------------------------------------------------------------------------------------------

    def sums(self, weights: Named, gradients: Named | None) -> Float[Tensor, "pairs sums"]:
        """Sums of squares of weights; with gradients also of gradients times weights, and of squares of gradients."""
        squares: list[Tensor] = []
        products: list[Tensor] = []
        of_gradients: list[Tensor] = []
        for matrix in self._matrices:
            w = matrix.of(weights)
            squares += matrix.squares(w)
            if gradients is not None:
                g = matrix.of(gradients)
                products += matrix.products(g, w)
                of_gradients += matrix.squares(g)
        if self._vectors:
            w = self._joined(weights)
            squares.append(w * w)
            if gradients is not None:
                g = self._joined(gradients)
                products.append(g * w)
                of_gradients.append(g * g)
        self._scratch.trim()
        return in_a_row([*squares, *products, *of_gradients]).view(1 if gradients is None else 3, -1)

    def _joined(self, tensors: Named) -> Float[Tensor, " numbers"]:
        """All vectors in a row, in float32 at least."""
        return wide(in_a_row([fitting(member, tensors).reshape(-1) for member in self._vectors]))

    def figures(self, sums: Float[np.ndarray, "rows sums"], instants: Sequence[int]) -> list[Figures]:
        """What the laws say at each of the instants, from the sums of all processes, so many rows of them each."""
        told = [self._added(sums, stretch) for stretch in self._stretches]
        units, terms = told[0] if len(told) == 1 else (np.concatenate(kind, axis=1) for kind in zip(*told, strict=True))
        squares = np.add.reduceat(terms, self._copies, axis=1)
        ends = list(accumulate(instants))
        rows = [slice(end - count, end) for end, count in zip(ends, instants, strict=True)]
        return [self._told(units[mine], squares[mine]) for mine in rows]

    def _added(self, sums: Float[np.ndarray, "rows sums"], stretch: Stretch) -> tuple[np.ndarray, np.ndarray]:
        """What each unit of some laws adds up to; and each term of each of the laws, over its units."""
        taken = sums.take(stretch.places, axis=1)  # (rows, terms, units)
        terms = np.add.reduceat(taken, stretch.units, axis=2).swapaxes(1, 2)
        taken *= stretch.degrees
        return np.add.reduce(taken, axis=1), terms.reshape(len(sums), -1)

    def _told(self, units: Float[np.ndarray, "pairs units"], squares: Float[np.ndarray, "pairs members"]) -> Figures:
        sizes = self._sides.totals(squares[0])
        if len(units) == 1:
            return Figures(units, sizes, None, None)
        defects = np.sqrt(np.add.reduceat(units[1] * units[1], self._units))
        return Figures(units[::2], sizes, defects, self._sides.totals(np.sqrt(squares[0] * squares[2])))

    def squares(self, sums: Float[np.ndarray, " sums"], weights: Named) -> dict[str, float]:
        """`Σ w²` of each parameter of four bytes or more."""
        whole = np.add.reduceat(sums, self._first).tolist()
        return {name: whole[at] for name, at in self._whole.items() if weights[name].dtype.itemsize >= 4}

    @cached_property
    def _first(self) -> list[int]:
        return list(self._starts.values())

    @cached_property
    def _whole(self) -> dict[str, int]:
        """Which of the reductions, by their number, is over each parameter."""
        numbers = {reduction: number for number, reduction in enumerate(self._starts)}
        return {name: numbers[_reduction(mine[0])] for name, mine in self._members.items()}


def _terms(law: Law) -> int:
    """How many sums each of its units adds up."""
    return sum(member.index.shape[1] for member in law.interface.members)


def _is_vector(members: Sequence[Member]) -> bool:
    return len(members) == 1 and members[0].single


def _reduction(member: Member) -> tuple[object, ...]:
    return member.parameter, member.view, member.axes
