"""Alignment of consecutive layers."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from equipoise.measure.alignment import alignment
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot


@dataclass(frozen=True)
class Alignment:
    """`|⟨v_{k+1}, u_k⟩|` and its sine, for every layer of a chain and the next (THEORY T3.2)."""

    name: ClassVar[str] = "alignment"

    def init(self, scene: Scene) -> Memory:
        """Nothing to remember."""
        return {}

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """Cosine and sine at each interface, under the name of the lower layer."""
        readings = []
        for (lower, bias), (upper, _) in pairwise(scene.consecutive):
            tensors = snapshot.parameters
            seen = alignment(tensors[lower], tensors[upper], bias=tensors[bias] if bias else None)
            readings.append(Reading(lower, "alignment_next", float(seen.cosine)))
            readings.append(Reading(lower, "misalignment_next", float(seen.sine)))
        return memory, readings
