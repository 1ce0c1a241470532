"""Alignment of consecutive layers."""

from dataclasses import dataclass
from typing import ClassVar

from equipoise.measure.alignment import cosines_and_sines
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot, Unavailable


@dataclass(frozen=True)
class Alignment:
    """`|⟨v_{k+1}, u_k⟩|` and its sine, for every layer and the next one that reads it (T3.2).

    With a bias `u_k` is that of `[W_k b_k]`; kernels are `out × (in·taps)` below and `(out·taps) × in` above.
    """

    name: ClassVar[str] = "alignment"

    def init(self, scene: Scene) -> Memory:
        """Nothing to remember; raises `Unavailable` where no layer is known to follow another."""
        if scene.frugal and not scene.consecutive:
            raise Unavailable(
                expected="layers that follow each other",
                found=scene.absent.get("consecutive", "none"),
                remedy="leave Alignment() out of observe=",
            )
        return {}

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """Cosine and sine at each interface, under the name of the lower layer."""
        lower = snapshot.spectra.leading([below for below, _ in scene.consecutive])
        upper = snapshot.spectra.leading([above for _, above in scene.consecutive])
        directed = [below.values[0] > 0 and above.values[0] > 0 for below, above in zip(lower, upper, strict=True)]
        pairs = [
            (below.left(0), above.right(0)) for below, above, known in zip(lower, upper, directed, strict=True) if known
        ]
        found = iter(cosines_and_sines(pairs))
        readings = []
        for (place, _), known in zip(scene.consecutive, directed, strict=True):
            cosine, sine = next(found) if known else (0.0, 1.0)  # a zero matrix has no directions
            readings.append(Reading(place.weight, "alignment_next", cosine))
            readings.append(Reading(place.weight, "misalignment_next", sine))
        return memory, readings
