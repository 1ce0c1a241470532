"""Which neurons are on for which examples, for how long, and which slide."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from equipoise.measure.activity import pattern_classes, patterns, sliding_pairs
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot

_SLIDES_FOR = 3  # consecutive steps with 0 < α < 1 after which a pair is said to slide (THEORY T4.5)


@dataclass(frozen=True)
class Activity:
    """Stably active and inactive neurons, flips, sliding pairs and pattern classes (THEORY T4.1, T4.2, T4.5).

    A neuron is stable when its state on every training example is unchanged over the last `window` of growth `s`.
    """

    window: float = 1.0
    name: ClassVar[str] = "activity"

    def init(self, scene: Scene) -> Memory:
        """Empty: the first snapshot sets the patterns."""
        return {}

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """Update the time of each pair's last flip, then count."""
        after: Memory = {}
        readings: list[Reading] = []
        seen = zip(scene.kinks, scene.negative_slopes, snapshot.preactivations, snapshot.slopes, strict=True)
        for place, negative, preactivation, slope in seen:
            on = preactivation.flatten(1) > 0
            inside = sliding_pairs(slope.flatten(1), negative)
            flipped, slid, flips = _updated(memory, place, on, inside, snapshot.growth)
            after |= {f"{place}/on": on, f"{place}/flipped": flipped, f"{place}/slid": slid}
            settled = (flipped <= snapshot.growth - self.window).all(0)
            classes = pattern_classes(patterns(preactivation.flatten(1)))
            last = flipped.max()
            counts = {
                "neurons": on.shape[1],
                "stably_active": int((settled & on.all(0)).sum()),
                "stably_inactive": int((settled & ~on.any(0)).sum()),
                "flipping_pairs": flips,
                "sliding_pairs": int((slid >= _SLIDES_FOR).sum()),
                "pattern_classes": len(classes.classes),
                "last_flip": float(last) if torch.isfinite(last) else float("nan"),
            }
            readings += [Reading(place, quantity, float(count)) for quantity, count in counts.items()]
        return after, readings


def _updated(memory: Memory, place: str, on: Tensor, inside: Tensor, growth: float) -> tuple[Tensor, Tensor, int]:
    """Growth at each pair's last flip (-inf: never), consecutive steps inside its kink, and recent flips."""
    if f"{place}/on" not in memory:
        return torch.full(on.shape, -torch.inf, device=on.device), inside.int(), 0
    changed = on != memory[f"{place}/on"]
    flipped = torch.where(changed, growth, memory[f"{place}/flipped"])
    return flipped, torch.where(inside, memory[f"{place}/slid"] + 1, 0).int(), int(changed.sum())
