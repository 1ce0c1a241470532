"""Alignment of consecutive layers."""

from dataclasses import dataclass
from typing import ClassVar

from equipoise.measure.alignment import compare
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot, Unavailable


@dataclass(frozen=True)
class Alignment:
    """`|⟨v_{k+1}, u_k⟩|` and its sine, for every layer and the next one that reads it (THEORY T3.2).

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
        readings = []
        for (place, _), below, above in zip(scene.consecutive, lower, upper, strict=True):
            seen = compare(below.triplets, above.triplets)
            readings.append(Reading(place.weight, "alignment_next", seen.cosine))
            readings.append(Reading(place.weight, "misalignment_next", seen.sine))
        return memory, readings
