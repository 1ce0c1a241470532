"""Since when the signs of the weights have been what they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from equipoise.measure.activity import Patterns, patterns
from equipoise.observers.protocol import Reading, Requirements, Snapshot, TrainingContext
from equipoise.observers.state import ObserverState


@dataclass(frozen=True, eq=False)
class SignHistory:
    """Which weights of a parameter are negative, a bit each, and the clock at the last change; NaN without one."""

    negative: Tensor
    changed: Tensor


@dataclass(frozen=True, eq=False)
class SignState(ObserverState):
    """The signs of every parameter; empty before the first snapshot."""

    parameters: Mapping[str, SignHistory] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Signs:
    """How many weights of each parameter have changed their sign since the last snapshot, and when one did last (T5.2).

    `w < 0` is one sign, `w ≥ 0` the other. `last_sign_change` is the clock at the snapshot that saw the last change,
    NaN where none was seen. One bit is kept for each weight.
    """

    name: ClassVar[str] = "signs"
    requires: ClassVar[Requirements] = Requirements()

    def init(self, context: TrainingContext) -> SignState:
        """Empty: the first snapshot sets the signs."""
        return SignState()

    def observe(
        self, context: TrainingContext, state: SignState, snapshot: Snapshot
    ) -> tuple[SignState, Sequence[Reading]]:
        """Two readings for each parameter."""
        after: dict[str, SignHistory] = {}
        readings: list[Reading] = []
        for place, weight in snapshot.parameters.items():
            if not weight.numel():
                continue
            now, before = patterns(-weight.detach().reshape(-1, 1)), state.parameters.get(place)
            changes = 0 if before is None else int(Patterns(before.negative, now.examples).flips(now).sum())
            clock = torch.tensor(snapshot.clock if changes else torch.nan, dtype=torch.float64)
            changed = clock if changes or before is None else before.changed
            after[place] = SignHistory(now.words, changed)
            readings.append(Reading(place, "sign_changes", float(changes)))
            readings.append(Reading(place, "last_sign_change", float(changed)))
        return SignState(after), readings
