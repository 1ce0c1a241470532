"""The spectra of a training loop: followed from look to look, exact where a look is thorough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from equipoise.measure.leading import Leading
from equipoise.measure.spectrum import Spectrum, spectra
from equipoise.measure.tracking import COLD, Block, cold, follow
from equipoise.measure.unfolding import Unfolding
from equipoise.monitor.crew import Crew, whole


@dataclass
class Follower:
    """All matrices that the observers ask for, planned once; `look` is one sweep over all of them."""

    unfoldings: tuple[Unfolding, ...]
    r: int
    crew: Crew
    blocks: list[Block] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def look(self, weights: Mapping[str, Tensor]) -> "Followed":
        """The leading triplets at these weights, when they are asked for."""
        return Followed(self, weights)

    def sweep(self, weights: Mapping[str, Tensor]) -> dict[Unfolding, Leading]:
        """One sweep; several before the first look."""
        pieces = [self.crew.piece(unfolding, weights) for unfolding in self.unfoldings]
        sweeps = 1 if self.blocks else COLD
        if not self.blocks:
            self.blocks = [cold(piece, self.r, self.generator) for piece in pieces]
        seen: list[Leading] = []
        for _ in range(sweeps):
            self.blocks, seen = follow(pieces, self.blocks, self.r, self.generator, self.crew.reduce)
        return dict(zip(self.unfoldings, seen, strict=True))


@dataclass
class Followed:
    """The spectra at one look."""

    follower: Follower
    weights: Mapping[str, Tensor]
    _seen: dict[Unfolding, Leading] = field(default_factory=dict)

    def leading(self, unfoldings: Sequence[Unfolding], r: int = 1) -> list[Leading]:
        """From the sweep of this look, taken at the first call."""
        if not self._seen:
            self._seen = self.follower.sweep(self.weights)
        return [self._seen[canonical(unfolding, self.weights)].top(r) for unfolding in unfoldings]

    def full(self, unfoldings: Sequence[Unfolding]) -> list[Spectrum]:
        """All singular values, by one decomposition for each shape."""
        gathered = whole(self.weights)
        matrices = {str(i): _wide(unfolding.matrix(gathered)) for i, unfolding in enumerate(unfoldings)}
        return list(spectra(matrices).values())


def canonical(unfolding: Unfolding, weights: Mapping[str, Tensor]) -> Unfolding:
    """Read or written, a weight without taps and bias is the same matrix."""
    plain = unfolding.bias is None and weights[unfolding.weight].ndim == 2
    return Unfolding(unfolding.weight) if plain else unfolding


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.dtype == torch.float64 else matrix.float()
