"""Laws with a rate for each component, all of them at once: one pass over every parameter, planned beforehand.

For them products by element are enough: `Σ degree · x y` over the slices of each unit. Whatever laws a parameter takes
part in, it is multiplied once, and summed once along each of its axes that some law asks for.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.graph.interface import Member
from equipoise.laws.law import Law, fitting
from equipoise.laws.scratch import Scratch

Named = Mapping[str, Tensor]


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


@dataclass(frozen=True, eq=False)
class Units:
    """Laws for which `by_unit` holds, read together."""

    laws: tuple[Law, ...]

    @cached_property
    def _reductions(self) -> dict[str, dict[tuple[object, ...], Member]]:
        """By parameter and by the axes that stay, a member that sums along the others."""
        found: dict[str, dict[tuple[object, ...], Member]] = defaultdict(dict)
        for law in self.laws:
            for member in law.interface.members:
                found[member.parameter].setdefault((member.view, member.axes), member)
        return found

    @cached_property
    def _starts(self) -> dict[tuple[object, ...], int]:
        """Where the sums of each reduction begin, those of all parameters in a row."""
        starts, end = {}, 0
        for name, mine in self._reductions.items():
            for key, member in mine.items():
                starts[name, *key], end = end, end + member.lines
        return starts

    @cached_property
    def _places(self) -> list[list[slice | np.ndarray]]:
        """By law and member, which sums it takes; each of its units so many that follow each other."""
        return [[self._place(member) for member in law.interface.members] for law in self.laws]

    def _place(self, member: Member) -> slice | np.ndarray:
        flat = self._starts[member.parameter, member.view, member.axes] + member.index.reshape(-1).numpy()
        return slice(int(flat[0]), int(flat[-1]) + 1) if bool((np.diff(flat) == 1).all()) else flat

    @cached_property
    def _whole(self) -> dict[str, slice]:
        """By parameter, sums that are all of it together."""
        first = {name: next(iter(mine.items())) for name, mine in self._reductions.items()}
        starts = {name: self._starts[name, *key] for name, (key, _) in first.items()}
        return {name: slice(starts[name], starts[name] + member.lines) for name, (_, member) in first.items()}

    @cached_property
    def _scratch(self) -> Scratch:
        return Scratch()

    def sums(self, weights: Named, gradients: Named | None) -> Float[Tensor, "pairs sums"]:
        """Sums of squares of weights; with gradients also of gradients times weights, and of squares of gradients."""
        found: list[list[Tensor]] = [[] for _ in range(1 if gradients is None else 3)]
        for mine in self._reductions.values():
            member, *_ = members = mine.values()
            w = fitting(member, weights)
            pairs = [(w, w)] if gradients is None else [(w, w), (g := fitting(member, gradients), w), (g, g)]
            for sums, pair in zip(found, pairs, strict=True):
                sums += self._summed(members, *pair)
        self._scratch.trim()
        parts = [part for sums in found for part in sums]
        if len({part.device for part in parts}) > 1:
            parts = [part.to(parts[0].device) for part in parts]
        return torch.cat(parts).view(len(found), -1)

    def _summed(self, members: Collection[Member], x: Tensor, y: Tensor) -> list[Tensor]:
        if x is y and all(member.runs for member in members):
            return [member.squared(x) for member in members]
        products = self._scratch.product(x, y)
        return [member.summed(products) for member in members]

    def numbers(self, sums: Float[Tensor, "pairs sums"], weights: Named) -> tuple[list[Numbers], dict[str, float]]:
        """What each law says, from the sums of all processes; and `Σ w²` of each parameter, of four bytes or more."""
        wide = sums.double().cpu().numpy()
        found = [
            _numbers(law, [wide[:, place] for place in places], _dtype(law, weights))
            for law, places in zip(self.laws, self._places, strict=True)
        ]
        counted = {name: place for name, place in self._whole.items() if weights[name].dtype.itemsize >= 4}
        return found, {name: float(wide[0, place].sum()) for name, place in counted.items()}


def _numbers(law: Law, parts: Sequence[np.ndarray], dtype: torch.dtype) -> Numbers:
    """From the sums of each member, a row a pair."""
    units = law.interface.blocks
    total = np.zeros((len(parts[0]), units))
    for degree, part in zip(law.degrees, parts, strict=True):
        total += degree * (part if part.shape[1] == units else part.reshape(len(part), units, -1).sum(2))
    own, *others = torch.from_numpy(total).to(dtype)[..., None, None].unbind()
    squares = [part.sum(1).tolist() for part in parts]
    if not others:
        return Numbers(own, [w for (w,) in squares])
    mixed, of_gradients = others
    defect = float(torch.linalg.vector_norm(law.commutant.project(mixed)))
    return Numbers(own, [w for w, _, _ in squares], defect, of_gradients, [g for _, _, g in squares])


def _dtype(law: Law, tensors: Named) -> torch.dtype:
    first, *others = {tensors[name].dtype for name in law.parameters}
    return reduce(torch.promote_types, others, first)
