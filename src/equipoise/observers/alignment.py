"""Alignment of consecutive layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from equipoise.measure.alignment import cosines_and_sines
from equipoise.observers.protocol import Reading, Requirements, Snapshot, TrainingContext
from equipoise.observers.state import ObserverState


@dataclass(frozen=True)
class Alignment:
    """`|⟨v_{k+1}, u_k⟩|` and its sine, for every layer and the next one that reads it (T3.2).

    With a bias `u_k` is that of `[W_k b_k]`; kernels are `out × (in·taps)` below and `(out·taps) × in` above.
    """

    name: ClassVar[str] = "alignment"
    requires: ClassVar[Requirements] = Requirements(consecutive=True)

    def init(self, context: TrainingContext) -> ObserverState:
        """Nothing to remember."""
        return ObserverState()

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """Cosine and sine at each interface, under the name of the lower layer."""
        consecutive = context.require("consecutive")
        lower = snapshot.spectra.leading([below for below, _ in consecutive])
        upper = snapshot.spectra.leading([above for _, above in consecutive])
        directed = [below.values[0] > 0 and above.values[0] > 0 for below, above in zip(lower, upper, strict=True)]
        pairs = [
            (below.left(0), above.right(0)) for below, above, known in zip(lower, upper, directed, strict=True) if known
        ]
        found = iter(cosines_and_sines(pairs))
        readings = []
        for (place, _), known in zip(consecutive, directed, strict=True):
            cosine, sine = next(found) if known else (0.0, 1.0)  # a zero matrix has no directions
            readings.append(Reading(place.weight, "alignment_next", cosine))
            readings.append(Reading(place.weight, "misalignment_next", sine))
        return state, readings
