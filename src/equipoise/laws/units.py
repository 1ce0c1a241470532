"""Laws with a rate for each component, all of them at once: one pass over every parameter, planned beforehand.

For them products by element are enough: `Σ degree · x y` over the slices of each unit. Whatever laws a parameter takes
part in, it is multiplied once, and summed once along each of its axes that some law asks for. Vectors, each number of
which stands for itself, are joined into one.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.graph.interface import Member
from equipoise.laws.law import Law, fitting
from equipoise.laws.scratch import Scratch

Named = Mapping[str, Tensor]
T = TypeVar("T")


def by_unit(law: Law) -> bool:
    """Whether each component has a rate of its own."""
    return law.kind != "shift" and law.interface.width == 1


@dataclass(frozen=True, eq=False)
class Numbers:
    """What one law says at one instant: its moments of weights, `Σ w²` of each member, and with gradients also theirs.

    `defect` is the norm of the projected moments of gradients with weights (T1).
    """

    own: Tensor
    squares: Sequence[float]
    defect: float = 0.0
    of_gradients: Tensor | None = None
    gradient_squares: Sequence[float] = ()


@dataclass(frozen=True)
class Term:
    """What a member adds to the units of its law: `degree` times the sums at `places`, so many copies a unit."""

    places: slice | np.ndarray
    copies: int
    degree: float
    reduction: int | None  # of which it takes all

    def of(self, sums: np.ndarray) -> np.ndarray:
        """By pair and unit."""
        taken = sums[:, self.places]
        return self.degree * (taken if self.copies == 1 else taken.reshape(len(taken), -1, self.copies).sum(2))


@dataclass(frozen=True, eq=False)
class Units:
    """Laws for which `by_unit` holds, read together."""

    laws: tuple[Law, ...]

    # The plan --------------------------------------------------------------------------------------------------------

    @cached_property
    def _members(self) -> dict[str, list[Member]]:
        """By parameter, a member for each choice of axes that stay; it sums along the others. Vectors come last."""
        found: dict[str, dict[tuple[object, ...], Member]] = defaultdict(dict)
        for law in self.laws:
            for member in law.interface.members:
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
    def _reductions(self) -> dict[tuple[object, ...], int]:
        """The number of each reduction, in the order of `sums`."""
        members = [member for mine in self._members.values() for member in mine]
        return {_reduction(member): number for number, member in enumerate(members)}

    @cached_property
    def _starts(self) -> np.ndarray:
        """Where the sums of each reduction begin, and the end."""
        return np.cumsum([0, *(member.lines for mine in self._members.values() for member in mine)])

    @cached_property
    def _terms(self) -> list[list[Term]]:
        """By law and member."""
        return [[self._term(member) for member in law.interface.members] for law in self.laws]

    def _term(self, member: Member) -> Term:
        number = self._reductions[_reduction(member)]
        places = _moved(member.places, int(self._starts[number]))
        return Term(places, member.index[0].numel(), member.degree, number if member.covers else None)

    @cached_property
    def _units(self) -> list[slice]:
        """Where the units of each law stand among all."""
        ends = np.cumsum([law.interface.blocks for law in self.laws]).tolist()
        return [slice(end - law.interface.blocks, end) for law, end in zip(self.laws, ends, strict=True)]

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
        return _cat([part for sums in found for part in sums]).view(len(found), -1)

    def _summed(self, members: Collection[Member], x: Tensor, y: Tensor) -> list[Tensor]:
        if x is y and all(member.runs for member in members):
            return [member.squared(x) for member in members]
        products = self._scratch.product(x, y)
        return [member.summed(products) for member in members]

    def _joined(self, tensors: Named) -> Float[Tensor, " numbers"]:
        """All vectors in a row, in float32 at least."""
        row = _cat([fitting(member, tensors).reshape(-1) for member in self._vectors])
        return row.float() if row.dtype.itemsize < 4 else row

    def numbers(self, sums: Float[Tensor, "pairs sums"], weights: Named) -> tuple[list[Numbers], dict[str, float]]:
        """What each law says, from the sums of all processes; and `Σ w²` of each parameter, of four bytes or more."""
        wide = sums.double().cpu().numpy()
        whole = np.add.reduceat(wide, self._starts[:-1], axis=1).T.tolist()
        units = np.zeros((len(wide), self._units[-1].stop))
        for own, terms in zip(self._units, self._terms, strict=True):
            for term in terms:
                units[:, own] += term.of(wide)
        moments, dtypes = torch.from_numpy(units)[..., None, None], [_dtype(law, weights) for law in self.laws]
        parts = {dtype: moments.to(dtype) for dtype in set(dtypes)}
        found = [
            _numbers(law, parts[dtype][:, own], [_squares(term, wide, whole) for term in terms])
            for law, dtype, own, terms in zip(self.laws, dtypes, self._units, self._terms, strict=True)
        ]
        first = ((name, whole[self._reductions[_reduction(mine[0])]]) for name, mine in self._members.items())
        return found, {name: w for name, (w, *_) in first if weights[name].dtype.itemsize >= 4}


def _is_vector(members: Sequence[Member]) -> bool:
    return len(members) == 1 and members[0].single


def _reduction(member: Member) -> tuple[object, ...]:
    return member.parameter, member.view, member.axes


def _pairs(factors: Sequence[T]) -> list[tuple[T, T]]:
    """Weights with themselves; gradients, where there are any, with weights and with themselves."""
    w, *others = factors
    return [(w, w), *(pair for g in others for pair in ((g, w), (g, g)))]


def _moved(places: slice | Tensor, start: int) -> slice | np.ndarray:
    return slice(places.start + start, places.stop + start) if isinstance(places, slice) else places.numpy() + start


def _cat(parts: Sequence[Tensor]) -> Tensor:
    """In a row, on the device of the first."""
    device = parts[0].device
    return torch.cat([part if part.device == device else part.to(device) for part in parts])


def _squares(term: Term, sums: np.ndarray, whole: Sequence[list[float]]) -> list[float]:
    """What a member takes of each kind of product, all units together."""
    return sums[:, term.places].sum(1).tolist() if term.reduction is None else whole[term.reduction]


def _numbers(law: Law, moments: Float[Tensor, "pairs units 1 1"], squares: Sequence[Sequence[float]]) -> Numbers:
    """`squares` by member, and for each by pair."""
    own, *others = moments.unbind()
    if not others:
        return Numbers(own, [w for (w,) in squares])
    mixed, of_gradients = others
    defect = float(torch.linalg.vector_norm(law.commutant.project(mixed)))
    return Numbers(own, [w for w, _, _ in squares], defect, of_gradients, [g for _, _, g in squares])


def _dtype(law: Law, tensors: Named) -> torch.dtype:
    first, *others = {tensors[name].dtype for name in law.parameters}
    return reduce(torch.promote_types, others, first)
