"""Training loops of the papers' cases, watched by `eq.watch`: any optimizer, whole batches or mini-batches."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.gallery.literature.paper import Curve, PaperCase
from equipoise.monitor import watch
from equipoise.observers import Observer, ObserverState, Reading, Requirements, Snapshot, Stateless, TrainingContext


@dataclass(frozen=True, eq=False)
class Quantities(Stateless):
    """An observer of one's own figures: `read(snapshot)` is called at every snapshot of a flow or of a training."""

    read: Callable[[Snapshot], Mapping[str, float]]
    name: ClassVar[str] = "figures"
    requires: ClassVar[Requirements] = Requirements()

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """One reading a figure."""
        return state, [Reading("", name, value) for name, value in self.read(snapshot).items()]


@dataclass(frozen=True)
class Trace:
    """The records of a watched training: step, growth, observer, place, quantity, value.

    Attributes:
        table: of the records.
        steps: that were taken.
        seconds: of the processor from the first of them to the last.
        planned: the steps that were asked for.
    """

    table: pd.DataFrame
    steps: int
    seconds: float
    planned: int

    @property
    def seconds_a_step(self) -> float:
        """The mean time of a step, snapshots included, without the first one, which sets up; NaN of a single step."""
        return self.seconds / (self.steps - 1) if self.steps > 1 else math.nan

    @property
    def shortfall(self) -> str:
        """How far a training came that the deadline of its case ended, and how long the whole would take; or empty."""
        if self.steps >= self.planned:
            return ""
        stopped = f"stopped after {self.steps:,} of {self.planned:,} steps"
        hours = self.seconds_a_step * self.planned / 3600
        return stopped if math.isnan(hours) else f"{stopped}; all would take {hours:.1f} h of one core"

    def series(self, quantity: str, observer: str = "figures", place: str = "") -> list[tuple[float, float]]:
        """One quantity over the steps."""
        at = self.table
        rows = at.loc[(at.observer == observer) & (at.quantity == quantity) & (at.place == place)]
        return [(float(step), float(value)) for step, value in zip(rows.step, rows.value, strict=True)]

    def last(self, quantity: str, observer: str = "figures", place: str = "") -> float:
        """The last value of one quantity."""
        return self.series(quantity, observer, place)[-1][1]

    def curve(self, name: str, quantity: str, observer: str = "figures", place: str = "") -> Curve:
        """One quantity as a line of the picture."""
        return Curve(name, self.series(quantity, observer, place))


def train(
    case: PaperCase,
    model: nn.Module,
    optimizer: Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    *,
    steps: int,
    every: int,
    observe: Sequence[Observer] = (),
    batch: int | None = None,
    after_step: Callable[[], object] | None = None,
    name: str = "",
) -> Trace:
    """Train the model in place, and write all records into the case's log under `name`.

    It ends early at the deadline of the case, after at least one step.

    Args:
        case: whose seed orders the batches.
        model: with its initial weights.
        optimizer: of its parameters.
        loss: of outputs and targets, a mean over the batch.
        data: inputs and targets.
        steps: of the optimizer.
        every: steps between snapshots.
        observe: observers.
        batch: examples of a step, drawn without replacement in each epoch; None for all.
        after_step: called after every step.
        name: of the training in the log.

    Returns:
        The records.
    """
    inputs, targets = data
    begun, taken = time.process_time(), 0
    with watch(model, optimizer, every, observe=tuple(observe), alarms=(), quiet=True) as log:
        for examples in batches(len(inputs), batch, steps, case.generator(1)):
            optimizer.zero_grad()
            loss(model(inputs[examples]), targets[examples]).backward()
            optimizer.step()
            taken += 1
            begun = time.process_time() if taken == 1 else begun
            if after_step is not None:
                after_step()
            if case.deadline is not None and time.monotonic() >= case.deadline:
                break
    table = log.table()
    case.log_table(table.loc[table.observer != "watch"], training=name)
    return Trace(table, taken, time.process_time() - begun, steps)


def batches(count: int, size: int | None, steps: int, generator: torch.Generator) -> Iterator[Tensor | slice]:
    """The examples of each step: all of them, or epochs in an order drawn anew, an incomplete last batch left out.

    >>> [batch.tolist() for batch in batches(4, 2, 2, torch.Generator().manual_seed(0))]
    [[0, 1], [3, 2]]
    """
    if size is None or size >= count:
        yield from (slice(None) for _ in range(steps))
        return
    done = 0
    while done < steps:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - count % size, size):
            if done == steps:
                return
            yield order[start : start + size]
            done += 1


def squared(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean of `½(f - y)²` of one score an example."""
    return 0.5 * (scores[:, 0] - labels).square().mean()
