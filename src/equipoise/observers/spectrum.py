"""Singular values of every weight matrix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from equipoise.arguments import checked_fields, require_integer
from equipoise.linalg import LeadingTriplets
from equipoise.measure.spectrum import SingularSpectrum
from equipoise.observers.protocol import Reading, Requirements, Snapshot, Stateless, TrainingContext
from equipoise.observers.state import ObserverState


@checked_fields
@dataclass(frozen=True)
class Spectrum(Stateless):
    """`σ_1..σ_r`, Frobenius norm, rank-one residual and stable rank of every matrix (docs/theory.md §6).

    Exact in a flow. In a training loop `σ_1..σ_r` are followed by a warm-started block Krylov iteration: `error_bound`
    is at least the error of `σ_1`, `residual_1` how far the nearest singular value can be, and full snapshots add what
    needs the full spectrum: effective rank, participation ratio, numerical rank, of matrices with a side of at most
    `full_up_to` (the time of a decomposition grows with its cube).
    """

    r: int = 4
    full_up_to: int = 2048
    name: ClassVar[str] = "spectrum"

    def __post_init__(self) -> None:
        require_integer("r", self.r, "pass r=4, the number of singular values", least=1)
        require_integer("full_up_to", self.full_up_to, "pass full_up_to=2048, the longest short side")

    @property
    def requires(self) -> Requirements:
        """The leading triplets."""
        return Requirements(triplets=self.r)

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """One reading a figure and matrix."""
        readings, feasible = [], []
        for unfolding, seen in zip(context.matrices, snapshot.spectra.leading(context.matrices, self.r), strict=True):
            small = min(seen.shape) <= self.full_up_to
            feasible += [unfolding] if small and math.isfinite(seen.frobenius_norm) else []
            figures = _leading(seen) | (_certainty(seen) if context.online else {})
            readings += [Reading(unfolding.weight, quantity, value) for quantity, value in figures.items()]
        if snapshot.full:
            for unfolding, seen in zip(feasible, snapshot.spectra.full(feasible), strict=True):
                readings += [
                    Reading(unfolding.weight, quantity, value) for quantity, value in _full(seen, self.r).items()
                ]
        return state, readings


def _leading(seen: LeadingTriplets) -> dict[str, float]:
    figures = {f"sigma_{i + 1}": sigma for i, sigma in enumerate(seen.values)}
    return figures | {
        "frobenius_norm": seen.frobenius_norm,
        "rank_one_residual": seen.rank_one_residual,
        "stable_rank": seen.stable_rank,
    }


def _certainty(seen: LeadingTriplets) -> dict[str, float]:
    return {"error_bound": seen.error_bound, "residual_1": seen.residuals[0]}


def _full(seen: SingularSpectrum, r: int) -> dict[str, float]:
    return {
        f"energy_beyond_{r}": seen.rank_residual(r),
        "effective_rank": seen.effective_rank,
        "normalised_effective_rank": seen.normalised_effective_rank,
        "participation_ratio": seen.participation_ratio,
        "numerical_rank": float(seen.numerical_rank()),
    }
