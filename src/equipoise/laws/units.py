"""Laws with a rate for each component, all of them at once: one pass over every parameter, planned beforehand.

For them products by element are enough: `Σ degree · x y` over the slices of each unit. Whatever laws a parameter takes
part in, it is multiplied once, and summed once along each of its axes that some law asks for.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import islice
from typing import NamedTuple

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


class _Places(NamedTuple):
    """Which sum goes where, times which factor: into the units of all laws in a row, and then into their members."""

    source: Tensor
    target: Tensor
    factor: Tensor


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
    def _places(self) -> _Places:
        starts, end = {}, 0
        for name, mine in self._reductions.items():
            for key, member in mine.items():
                starts[name, key], end = end, end + member.lines
        source, unit, owner, degree = [], [], [], []
        units, members = 0, sum(self._units)
        for law in self.laws:
            for member in law.interface.members:
                count = member.index[0].numel()
                source.append(starts[member.parameter, (member.view, member.axes)] + member.index.reshape(-1))
                unit.append(units + torch.arange(law.interface.blocks).repeat_interleave(count))
                owner.append(torch.full((member.index.numel(),), members))
                degree.append(torch.full((member.index.numel(),), member.degree, dtype=torch.float64))
                members += 1
            units += law.interface.blocks
        factors = torch.cat([*degree, *(torch.ones_like(part) for part in degree)])
        return _Places(torch.cat(source + source), torch.cat(unit + owner), factors)

    @cached_property
    def _units(self) -> list[int]:
        """How many each law has."""
        return [law.interface.blocks for law in self.laws]

    @cached_property
    def _scratch(self) -> Scratch:
        return Scratch()

    @cached_property
    def _elsewhere(self) -> dict[torch.device, _Places]:
        return {}

    def sums(self, weights: Named, gradients: Named | None) -> Float[Tensor, "pairs sums"]:
        """Sums of squares of weights; with gradients also of gradients times weights, and of squares of gradients."""
        scratch = self._scratch
        found: list[list[Tensor]] = [[] for _ in range(1 if gradients is None else 3)]
        for mine in self._reductions.values():
            member, *_ = members = mine.values()
            w = fitting(member, weights)
            pairs = [(w, w)] if gradients is None else [(w, w), (g := fitting(member, gradients), w), (g, g)]
            for sums, pair in zip(found, pairs, strict=True):
                products = scratch.product(*pair)
                sums += [each.summed(products) for each in members]
        scratch.trim()
        parts = [part for sums in found for part in sums]
        if len({part.device for part in parts}) > 1:
            parts = [part.to(parts[0].device) for part in parts]
        return torch.cat(parts).view(len(found), -1)

    def numbers(self, sums: Float[Tensor, "pairs sums"], weights: Named) -> list[Numbers]:
        """What each law says, from the sums of all processes."""
        if sums.device not in self._elsewhere:
            self._elsewhere[sums.device] = _Places(*(part.to(sums.device) for part in self._places))
        places, members = self._elsewhere[sums.device], sum(len(law.interface.members) for law in self.laws)
        terms = sums.double().index_select(1, places.source) * places.factor
        added = terms.new_zeros(len(terms), sum(self._units) + members)
        added.scatter_add_(1, places.target.expand_as(terms), terms)
        *values, scalars = added.split([*self._units, members], dim=1)
        squares = zip(*scalars.tolist(), strict=True)
        return [
            _numbers(law, found.to(_dtype(law, weights)), list(zip(*islice(squares, len(law.degrees)), strict=True)))
            for law, found in zip(self.laws, values, strict=True)
        ]


def _numbers(law: Law, moments: Float[Tensor, "pairs units"], squares: Sequence[Sequence[float]]) -> Numbers:
    own, *others = moments[..., None, None].unbind()
    if not others:
        return Numbers(own, squares[0])
    mixed, of_gradients = others
    return Numbers(own, squares[0], float(law.commutant.project(mixed).norm()), of_gradients, squares[2])


def _dtype(law: Law, tensors: Named) -> torch.dtype:
    first, *others = {tensors[name].dtype for name in law.parameters}
    return reduce(torch.promote_types, others, first)
