"""Which neurons are on for which examples, for how long, and which slide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from equipoise.arguments import checked_fields, require_real
from equipoise.measure.activity import Patterns, Slides, pattern_classes, patterns
from equipoise.observers.protocol import Reading, Requirements, Snapshot, TrainingContext
from equipoise.observers.state import ObserverResult, ObserverState


@dataclass(frozen=True, eq=False)
class NeuronHistory:
    """Which neurons are on for which examples, a bit each, and the clock at each neuron's last flip; -inf without."""

    on: Tensor
    flipped: Tensor


@dataclass(frozen=True, eq=False)
class ActivityState(ObserverState):
    """By layer the history of its neurons, and the slides; empty before the first snapshot."""

    neurons: Mapping[str, NeuronHistory] = field(default_factory=dict)
    slides: Mapping[str, Slides] = field(default_factory=dict)

    def result(self) -> ObserverResult:
        """The slides of every layer (T4.5).

        Returns:
            These slides.
        """
        return ObserverResult(slides=self.slides)


@checked_fields
@dataclass(frozen=True, eq=False)
class Activity:
    """Stably active, stably inactive and dead neurons, flips and pattern classes (T4.1, T4.2); sliding pairs.

    On examples of one's own, `Activity(X)`, or in a flow on its training set. One bit is kept for each neuron and
    example, and for each neuron the clock at its last flip; a neuron is stable when that is at least `window` ago
    (default: one unit of growth in a flow, ten snapshots in a training loop). `dead` neurons are off for every example.
    A pair slides when it has been inside its kink for three steps (T4.5); `Run.slides()` lists all of them.
    """

    X: Tensor | None = None
    window: float | None = None
    name: ClassVar[str] = "activity"

    def __post_init__(self) -> None:
        if self.window is not None:
            require_real("window", self.window, "pass window=1.0, of the clock", above=0)

    @property
    def requires(self) -> Requirements:
        """Pre-activations on the training set, or a way to compute them on examples of one's own."""
        return Requirements(activations=True) if self.X is None else Requirements(probe=True)

    def init(self, context: TrainingContext) -> ActivityState:
        """Empty: the first snapshot sets the patterns."""
        return ActivityState()

    def observe(
        self, context: TrainingContext, state: ActivityState, snapshot: Snapshot
    ) -> tuple[ActivityState, Sequence[Reading]]:
        """Update the time of each neuron's last flip, then count."""
        neurons: dict[str, NeuronHistory] = {}
        slides: dict[str, Slides] = {}
        readings: list[Reading] = []
        window = context.window if self.window is None else self.window
        for place, z in self._preactivations(context, snapshot).items():
            now = patterns(z.flatten(0, -2))  # examples, and of an image or text its places, are rows
            neurons[place], flips = _updated(state.neurons.get(place), now, snapshot.clock)
            counts = _counts(now, neurons[place].flipped, snapshot.clock - window) | {"flipping_pairs": float(flips)}
            readings += [Reading(place, quantity, count) for quantity, count in counts.items()]
        if self.X is None and snapshot.bent is not None:
            for place, bent in snapshot.bent.items():
                slides[place] = (state.slides.get(place) or Slides.none(bent)).after(bent, snapshot.step)
                readings.append(Reading(place, "sliding_pairs", float(slides[place].current.sum())))
        return ActivityState(neurons, slides), readings

    def _preactivations(self, context: TrainingContext, snapshot: Snapshot) -> Mapping[str, Tensor]:
        if self.X is not None:
            return context.require("probe")(snapshot.parameters, self.X).preactivations
        return dict(zip(context.require("kinks"), snapshot.preactivations or (), strict=True))


def _updated(before: NeuronHistory | None, now: Patterns, clock: float) -> tuple[NeuronHistory, int]:
    """The history up to now, and how many pairs have flipped since the last snapshot."""
    if before is None:
        never = torch.full((now.words.shape[1],), -torch.inf, dtype=torch.float64, device=now.words.device)
        return NeuronHistory(now.words, never), 0
    flips = Patterns(before.on, now.examples).flips(now)
    return NeuronHistory(now.words, torch.where(flips > 0, clock, before.flipped)), int(flips.sum())


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
