"""Singular values of every weight matrix."""

from dataclasses import dataclass
from typing import ClassVar

from equipoise.measure.spectrum import spectrum
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot


@dataclass(frozen=True)
class Spectrum:
    """`σ_1..σ_r`, Frobenius norm, rank-one residual and stable rank of every matrix (THEORY §6)."""

    r: int = 4
    name: ClassVar[str] = "spectrum"

    def init(self, scene: Scene) -> Memory:
        """Nothing to remember."""
        return {}

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """One exact decomposition for each matrix."""
        readings = []
        for place, tensor in snapshot.parameters.items():
            if tensor.ndim < 2:
                continue
            seen = spectrum(tensor, r=self.r)
            readings += [Reading(place, f"sigma_{i + 1}", float(s)) for i, s in enumerate(seen.singular_values)]
            readings.append(Reading(place, "frobenius_norm", seen.frobenius_norm))
            readings.append(Reading(place, "rank_one_residual", seen.rank_one_residual))
            readings.append(Reading(place, "stable_rank", seen.stable_rank))
        return memory, readings
