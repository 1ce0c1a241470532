"""What watching costs, and the cadence that keeps it within a budget."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Seconds spent on looks, beside those of the training itself.

    `setup` is what reading the model and the first look took; it counts for itself. `share` is the time of all later
    looks over that of the training without them.
    """

    clock: float = field(default_factory=time.perf_counter)
    setup: float = 0.0
    looking: float = 0.0
    last: float = 0.0
    looks: int = 0

    @contextmanager
    def timed(self, setup: bool = False) -> Iterator[None]:
        """Count what happens inside."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            if setup:
                self.setup += spent
            else:
                self.looking += spent
                self.last += spent

    def close_look(self) -> float:
        """The seconds of the look that ends here."""
        seconds, self.last = self.last, 0.0
        self.looks += 1
        return seconds

    @property
    def training(self) -> float:
        """Seconds of the training alone."""
        return max(time.perf_counter() - self.clock - self.setup - self.looking, 1e-9)

    @property
    def share(self) -> float:
        """Time of looks over time of the training."""
        return self.looking / self.training


@dataclass(frozen=True)
class Cadence:
    """A look at the first step and at every `every`-th; with a `budget`, as much later as keeps the share within it."""

    every: int = 50
    budget: float | None = None

    def following(self, step: int, meter: Meter) -> int:
        """The step of the look after the one at `step`.

        >>> Cadence(every=50).following(1, Meter()), Cadence(every=50).following(50, Meter())
        (50, 100)
        """
        due = step - step % self.every + self.every
        if self.budget is None or step < 2 or not meter.looks:
            return due
        seconds_a_step = meter.training / step
        affordable = (meter.looking + meter.looking / meter.looks) / (self.budget * seconds_a_step)
        return max(due, math.ceil(affordable / self.every) * self.every)
