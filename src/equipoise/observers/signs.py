"""Since when the signs of the weights have been what they are."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from equipoise.measure.activity import Patterns, patterns
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot


@dataclass(frozen=True, eq=False)
class Signs:
    """How many weights of each parameter have changed their sign since the last look, and when one did last (T5.2).

    `w < 0` is one sign, `w ≥ 0` the other. `last_sign_change` is the clock at the look that saw the last change, NaN
    where none was seen. One bit is kept for each weight.
    """

    name: ClassVar[str] = "signs"

    def init(self, scene: Scene) -> Memory:
        """Empty: the first snapshot sets the signs."""
        return {}

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """Two readings for each parameter."""
        after: Memory = {}
        readings: list[Reading] = []
        for place, weight in snapshot.parameters.items():
            if not weight.numel():
                continue
            now, last = patterns(-weight.detach().reshape(-1, 1)), memory.get(f"{place}/changed")
            changes = 0 if last is None else _changes(memory[f"{place}/negative"], now)
            if last is None or changes:
                last = torch.tensor(snapshot.clock if changes else torch.nan, dtype=torch.float64)
            after |= {f"{place}/negative": now.words, f"{place}/changed": last}
            readings.append(Reading(place, "sign_changes", float(changes)))
            readings.append(Reading(place, "last_sign_change", float(last)))
        return after, readings


def _changes(words: Tensor, now: Patterns) -> int:
    return int(Patterns(words, now.examples).flips(now).sum())
