"""Laws with a rate for each component, all of them at once: one pass over every parameter, planned beforehand.

For them products by element are enough: `Σ degree · x y` over the slices of each unit. Whatever laws a parameter takes
part in, it is multiplied once, and summed once along each of its axes that some law asks for.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
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
    def _map(self) -> csr_array:
        """From the sums, of all parameters in a row, to the units of all laws, their members, and the parameters."""
        starts, end = {}, 0
        for name, mine in self._reductions.items():
            for key, member in mine.items():
                starts[name, key], end = end, end + member.lines
        members = [member for law in self.laws for member in law.interface.members]
        found = [starts[m.parameter, (m.view, m.axes)] + m.index.reshape(-1).numpy() for m in members]
        sizes, degrees = [len(each) for each in found], [member.degree for member in members]
        whole = [next(iter(mine.items())) for mine in self._reductions.values()]
        all_of = [starts[member.parameter, key] + np.arange(member.lines) for key, member in whole]
        targets = [*self._targets, *(np.arange(len(members)).repeat(sizes) + sum(self._units),)]
        targets += [np.arange(len(whole)).repeat([len(each) for each in all_of]) + sum(self._units) + len(members)]
        factors = np.concatenate([np.repeat(degrees, sizes), np.ones(sum(sizes) + sum(map(len, all_of)))])
        places = np.concatenate(targets), np.concatenate([*found, *found, *all_of])
        return csr_array((factors, places), shape=(sum(self._units) + len(members) + len(whole), end))

    @property
    def _targets(self) -> Iterator[np.ndarray]:
        """The unit of each slice of each member, counted through all laws."""
        start = 0
        for law in self.laws:
            for member in law.interface.members:
                yield start + np.arange(law.interface.blocks).repeat(member.index[0].numel())
            start += law.interface.blocks

    @cached_property
    def _units(self) -> list[int]:
        """How many each law has."""
        return [law.interface.blocks for law in self.laws]

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
        told, units = self._map @ sums.double().cpu().numpy().T, sum(self._units)
        counts = [len(law.degrees) for law in self.laws]
        values = np.split(told[:units].T, np.cumsum(self._units)[:-1], axis=1)
        squares = iter(told[units:].tolist())
        found = [
            _numbers(law, torch.from_numpy(value).to(_dtype(law, weights)), list(islice(squares, count)))
            for law, value, count in zip(self.laws, values, counts, strict=True)
        ]
        totals = {name: total for name, (total, *_) in zip(self._reductions, squares, strict=True)}
        return found, {name: total for name, total in totals.items() if weights[name].dtype.itemsize >= 4}


def _numbers(law: Law, moments: Float[Tensor, "pairs units"], squares: Sequence[Sequence[float]]) -> Numbers:
    """`squares` by member, and for each by pair."""
    own, *others = moments[..., None, None].unbind()
    if not others:
        return Numbers(own, [w for (w,) in squares])
    mixed, of_gradients = others
    defect = float(torch.linalg.vector_norm(law.commutant.project(mixed)))
    return Numbers(own, [w for w, _, _ in squares], defect, of_gradients, [g for _, _, g in squares])


def _dtype(law: Law, tensors: Named) -> torch.dtype:
    first, *others = {tensors[name].dtype for name in law.parameters}
    return reduce(torch.promote_types, others, first)
