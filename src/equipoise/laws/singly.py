"""Laws whose values are matrices, and shifts: read one by one, told all at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from equipoise.laws.law import Law
from equipoise.laws.panel import Figures, Sides, on_host

Named = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Singly:
    """Laws of any kind."""

    laws: tuple[Law, ...]

    def parts(self, weights: Named, gradients: Named | None) -> list[Tensor]:
        """What has to be summed over shards before anything else is done with it."""
        found = [part for law in self.laws for part in _parts(law, weights, gradients)]
        return found if gradients is None or not self._shifts.any() else [*found, _square(gradients)]

    def figures(self, parts: Sequence[Tensor], gradients: bool) -> Figures:
        """What the laws say, from the sums of all processes."""
        whole, rows = iter(parts), range(1 + gradients)
        slices = [[[next(whole) for _ in range(_count(law))] for _ in rows] for law in self.laws]
        each = [list(zip(self.laws, (mine[row] for mine in slices), strict=True)) for row in rows]
        values = np.stack([on_host([_value(law, mine) for law, mine in side]) for side in each])
        norms = [on_host([torch.linalg.vector_norm(part) for _, mine in side for part in mine]) for side in each]
        sizes = self._members.totals(norms[0] ** 2)
        if not gradients:
            return Figures(values, sizes, None, None)
        defects = on_host([_defect(law, *mine) for law, mine in zip(self.laws, slices, strict=True)])
        scales = self._members.totals(norms[0] * norms[1])
        for square in whole:
            scales[self._shifts] = float(square) ** 0.5
        return Figures(values, sizes, defects, scales)

    @cached_property
    def _shifts(self) -> np.ndarray:
        """Which laws are linear in the weights: their scale is the norm of all gradients."""
        return np.array([law.kind == "shift" for law in self.laws])

    @cached_property
    def _members(self) -> Sides:
        return Sides.of([(1.0,) if law.kind == "shift" else law.degrees for law in self.laws])


def _parts(law: Law, weights: Named, gradients: Named | None) -> Iterator[Tensor]:
    for tensors in (weights, gradients):
        if tensors is not None:
            slices = law.slices(tensors)
            shift = law.kind == "shift"
            yield from [law.commutant.moments(slices, slices, law.degrees)] if shift else slices


def _count(law: Law) -> int:
    """How many parts there are of the weights, or of the gradients."""
    return 1 if law.kind == "shift" else len(law.degrees)


def _value(law: Law, slices: Sequence[Tensor]) -> Tensor:
    if law.kind == "shift":
        return law.commutant.folded(slices[0])
    return law.commutant.folded(law.commutant.project(law.commutant.moments(slices, slices, law.degrees)))


def _defect(law: Law, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    if law.kind == "shift":
        return torch.linalg.vector_norm(gradients[0])
    return torch.linalg.vector_norm(law.commutant.project(law.commutant.moments(gradients, weights, law.degrees)))


def _square(tensors: Named) -> Tensor:
    """Of all of them, `Σ x²`."""
    return torch.stack([torch.linalg.vector_norm(tensor).square() for tensor in tensors.values()]).sum()
