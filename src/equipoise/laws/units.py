"""Laws with a rate for each component, all of them at once: one pass over every parameter, planned beforehand.

For them products by element are enough: `Σ degree · x y` over the slices of each unit. Whatever laws a parameter takes
part in, it is multiplied once, and summed once along each of its axes that some law asks for. Vectors, each number of
which stands for itself, are joined into one.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from equipoise.graph.interface import Member
from equipoise.laws.law import Law, fitting
from equipoise.laws.panel import Figures, Sides, in_a_row, starts
from equipoise.laws.scratch import Scratch
from equipoise.linalg import wide

Named = Mapping[str, Tensor]
T = TypeVar("T")
Starts = Int64[np.ndarray, " _"]


def by_unit(law: Law) -> bool:
    """Whether each component has a rate of its own."""
    return law.interface.width == 1 and law.kind not in ("shift", "antisymmetric")


@dataclass(frozen=True)
class Summands:
    """The sums that one law adds up: those at `places`, a column for each unit, `degrees` times."""

    places: Int64[np.ndarray, "terms units"]
    degrees: Float[np.ndarray, " terms"]


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
    def _matrices(self) -> list[list[Member]]:
        return [mine for mine in self._members.values() if not _is_vector(mine)]

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
    def _summands(self) -> list[Summands]:
        """By law."""
        return [
            Summands(
                np.concatenate([self._starts[_reduction(each)] + each.index[..., 0].numpy().T for each in members]),
                np.repeat(degrees, [each.index.shape[1] for each in members]),
            )
            for members, degrees in ((law.interface.members, law.degrees) for law in self.laws)
        ]

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
        factors = [weights] if gradients is None else [weights, gradients]
        found: list[list[Tensor]] = [[] for _ in _pairs(factors)]
        for members in self._matrices:
            for sums, pair in zip(found, _pairs([fitting(members[0], each) for each in factors]), strict=True):
                sums += self._summed(members, *pair)
        if self._vectors:
            for sums, (x, y) in zip(found, _pairs([self._joined(each) for each in factors]), strict=True):
                sums.append(x * y)
        self._scratch.trim()
        return in_a_row(list(chain.from_iterable(found))).view(len(found), -1)

    def _summed(self, members: Collection[Member], x: Tensor, y: Tensor) -> list[Tensor]:
        if x is y and all(member.runs for member in members):
            return [member.squared(x) for member in members]
        products = self._scratch.product(x, y)
        return [member.summed(products) for member in members]

    def _joined(self, tensors: Named) -> Float[Tensor, " numbers"]:
        """All vectors in a row, in float32 at least."""
        return wide(in_a_row([fitting(member, tensors).reshape(-1) for member in self._vectors]))

    @np.errstate(invalid="ignore", over="ignore")
    def figures(self, sums: Float[np.ndarray, "pairs sums"]) -> Figures:
        """What the laws say, from the sums of all processes."""
        taken = [sums.take(law.places, axis=1) for law in self._summands]  # (pairs, terms, units)
        weighted = [(law.degrees[:, None] * mine).sum(1) for law, mine in zip(self._summands, taken, strict=True)]
        units = np.concatenate(weighted, axis=1)
        terms = np.concatenate([mine.sum(2) for mine in taken], axis=1)
        squares = np.add.reduceat(terms, self._copies, axis=1)
        sizes = self._sides.totals(squares[0])
        if len(sums) == 1:
            return Figures(units, sizes, None, None)
        defects = np.sqrt(np.add.reduceat(units[1] ** 2, self._units))
        return Figures(units[::2], sizes, defects, self._sides.totals(np.sqrt(squares[0] * squares[2])))

    def squares(self, sums: Float[np.ndarray, "pairs sums"], weights: Named) -> dict[str, float]:
        """`Σ w²` of each parameter of four bytes or more."""
        whole = np.add.reduceat(sums[0], list(self._starts.values())).tolist()
        found = dict(zip(self._starts, whole, strict=True))
        first = {name: found[_reduction(mine[0])] for name, mine in self._members.items()}
        return {name: square for name, square in first.items() if weights[name].dtype.itemsize >= 4}


def _is_vector(members: Sequence[Member]) -> bool:
    return len(members) == 1 and members[0].single


def _reduction(member: Member) -> tuple[object, ...]:
    return member.parameter, member.view, member.axes


def _pairs(factors: Sequence[T]) -> list[tuple[T, T]]:
    """Weights with themselves; gradients, where there are any, with weights and with themselves."""
    w, *others = factors
    return [(w, w), *(pair for g in others for pair in ((g, w), (g, g)))]
