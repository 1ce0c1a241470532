"""Which neurons are on for which examples, for how long, and which slide."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from equipoise.measure.activity import Patterns, pattern_classes, patterns
from equipoise.measure.slides import Slides, Spans
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot


@dataclass(frozen=True, eq=False)
class Activity:
    """Stably active, stably inactive and dead neurons, flips and pattern classes (T4.1, T4.2); sliding pairs.

    On examples of one's own, `Activity(X)`, or in a flow on its training set. One bit is kept for each neuron and
    example, and for each neuron the clock at its last flip; a neuron is stable when that is at least `window` ago
    (default: one unit of growth in a flow, ten looks in a training loop). `dead` neurons are off for every example.
    A pair slides when it has been inside its kink for three steps (T4.5); `Run.slides()` lists all of them.
    """

    X: Tensor | None = None
    window: float | None = None
    name: ClassVar[str] = "activity"

    def init(self, scene: Scene) -> Memory:
        """Empty: the first snapshot sets the patterns. Raises `Unavailable` where the network cannot be probed."""
        scene.require("kinks" if self.X is None else "probe")
        return {}

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """Update the time of each neuron's last flip, then count."""
        after: Memory = {}
        readings: list[Reading] = []
        window = scene.window if self.window is None else self.window
        for place, z in self._preactivations(scene, snapshot).items():
            now = patterns(z.flatten(0, -2))  # examples, and of an image or text its places, are rows
            flipped, flips = _updated(memory, place, now, snapshot.clock)
            after |= {f"{place}/on": now.words, f"{place}/flipped": flipped}
            counts = _counts(now, flipped, snapshot.clock - window) | {"flipping_pairs": float(flips)}
            readings += [Reading(place, quantity, count) for quantity, count in counts.items()]
        if self.X is None and snapshot.bent is not None:
            for place, bent in snapshot.bent.items():
                slides = (Slides.remembered(memory, place) or Slides.none(bent)).after(bent, snapshot.step)
                after |= slides.memory(place)
                readings.append(Reading(place, "sliding_pairs", float(slides.current.sum())))
        return after, readings

    def _preactivations(self, scene: Scene, snapshot: Snapshot) -> Mapping[str, Tensor]:
        if self.X is not None:
            return scene.require("probe")(snapshot.parameters, self.X).preactivations
        return dict(zip(scene.require("kinks"), snapshot.preactivations or (), strict=True))


def _updated(memory: Memory, place: str, now: Patterns, clock: float) -> tuple[Tensor, int]:
    """The clock at each neuron's last flip (-inf: never), and how many pairs have flipped since the last look."""
    words = memory.get(f"{place}/on")
    if words is None:
        return torch.full((now.words.shape[1],), -torch.inf, dtype=torch.float64, device=now.words.device), 0
    flips = Patterns(words, now.examples).flips(now)
    return torch.where(flips > 0, clock, memory[f"{place}/flipped"]), int(flips.sum())


def _counts(now: Patterns, flipped: Tensor, since: float) -> dict[str, float]:
    on, settled, last = now.on_counts(), flipped <= since, float(flipped.max())
    return {
        "neurons": float(len(on)),
        "stably_active": float((settled & (on == now.examples)).sum()),
        "stably_inactive": float((settled & (on == 0)).sum()),
        "dead": float((on == 0).sum()),
        "dead_share": float((on == 0).double().mean()),
        "pattern_classes": float(len(pattern_classes(now).classes)),
        "last_flip": last if last > -torch.inf else float("nan"),
    }


def remembered_slides(memory: Memory, step: int) -> dict[str, Spans]:
    """By layer, the slides in the memory of this observer: example, neuron, first and last step (T4.5)."""
    places = [name.removesuffix("/slides") for name in memory if name.endswith("/slides")]
    found = {place: Slides.remembered(memory, place) for place in places}
    return {place: slides.spans(step) for place, slides in found.items() if slides is not None}
