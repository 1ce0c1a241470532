"""The schedule of snapshots, and the time that they take."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Seconds spent on snapshots, beside those of the training itself.

    `setup` is the time of reading the model and of the first snapshot; it counts for itself. `share` is the time of all
    later snapshots over that of the training without them.
    """

    clock: float = field(default_factory=time.perf_counter)
    setup: float = 0.0
    spent: float = 0.0
    last: float = 0.0
    snapshots: int = 0

    @contextmanager
    def timed(self, setup: bool = False) -> Iterator[None]:
        """Count the time of the block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            if setup:
                self.setup += spent
            else:
                self.spent += spent
                self.last += spent

    def end_snapshot(self) -> float:
        """The seconds of the snapshot that ends here."""
        seconds, self.last = self.last, 0.0
        self.snapshots += 1
        return seconds

    @property
    def training(self) -> float:
        """Seconds of the training alone."""
        return max(time.perf_counter() - self.clock - self.setup - self.spent, 1e-9)

    @property
    def share(self) -> float:
        """Time of snapshots over time of the training."""
        return self.spent / self.training


@dataclass(frozen=True)
class Schedule:
    """A snapshot at the first step and at every `every`-th; with a `budget`, later as far as the share requires it.

    Every `full_every`-th snapshot is a full one; with `full_ends` so are the first and the last.
    """

    every: int = 50
    budget: float | None = None
    full_every: int = 100
    full_ends: bool = False

    def following(self, step: int, meter: Meter) -> int:
        """The step of the snapshot after the one at `step`.

        >>> Schedule(every=50).following(1, Meter()), Schedule(every=50).following(50, Meter())
        (50, 100)
        """
        due = step - step % self.every + self.every
        if self.budget is None or step < 2 or not meter.snapshots:
            return due
        seconds_a_step = meter.training / step
        affordable = (meter.spent + meter.spent / meter.snapshots) / (self.budget * seconds_a_step)
        return max(due, math.ceil(affordable / self.every) * self.every)

    def is_full(self, number: int, final: bool) -> bool:
        """Whether the snapshot of this number, counted from 1, is a full one.

        >>> [Schedule(full_every=3).is_full(number, final=False) for number in (1, 2, 3)]
        [False, False, True]
        """
        return (self.full_ends and (final or number == 1)) or number % self.full_every == 0
