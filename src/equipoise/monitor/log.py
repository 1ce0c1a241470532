"""What a watched training has said so far: records, alarms, what is off, and what the looking costs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from equipoise.errors import one_line
from equipoise.laws import Laws
from equipoise.monitor.alarms import Alarm, Rule, warn
from equipoise.monitor.meter import Meter
from equipoise.monitor.present import figure, summary
from equipoise.observers import Reading
from equipoise.sinks import Disk, Keeper, Memory, Sink
from equipoise.sinks.background import Background
from equipoise.store import Record


@dataclass(repr=False)
class Log:
    """The result of `eq.watch`, growing while the training runs.

    `alarms` in the order in which they came, each kind once a place; `notes` what else is worth knowing: parts of the
    model that were replaced, gradients that were changed between backward and step; `off` maps an observer or a sink
    that is not working to the reason; `laws` are the model's, once the first step is taken.
    """

    keeper: Keeper
    sinks: Sequence[Sink]
    rules: Sequence[Rule]
    on_alarm: Callable[[Alarm], Any] | None = None
    leads: bool = True
    meter: Meter = field(default_factory=Meter)
    alarms: list[Alarm] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    off: dict[str, str] = field(default_factory=dict)
    laws: Laws | None = None
    steps: int = 0
    _norm: float | None = None
    _told: list[Record] = field(default_factory=list, repr=False)
    _step: int = -1
    _known: set[tuple[str, str, str]] = field(default_factory=set, repr=False)  # what this step has told
    _rules: dict[str, Sequence[Rule]] = field(default_factory=dict, repr=False)

    def table(self) -> pd.DataFrame:
        """All records in one tidy table: step, growth, observer, place, quantity, value."""
        return self.keeper.table().drop(columns=["log_loss", "log_time"])

    def last(self, observer: str, quantity: str, place: str = "") -> float | None:
        """The latest value of a quantity, or `None` if it was never recorded."""
        table = self.table()
        rows = table[(table.observer == observer) & (table.quantity == quantity) & (table.place == place)]
        return None if rows.empty else float(rows.value.iloc[-1])

    def plot(self, *quantities: str) -> Any:
        """A matplotlib figure with one panel for each quantity (by default those that tell most), a line a place."""
        return figure(self.table(), quantities)

    def summary(self) -> str:
        """What to know at a glance: cost, alarms, what is off, and each matrix at the start and at the end."""
        return summary(self)

    @property
    def overhead(self) -> float:
        """Time of the looks over the time of the training without them; the first look is set-up, and not counted."""
        return self.meter.share

    def __repr__(self) -> str:
        return f"<Log of {self.steps} steps, {len(self.alarms)} alarms, off: {', '.join(self.off) or 'none'}>"

    # --- for the lanes ---

    def tell(self, step: int, norm: float, observer: str, readings: Sequence[Reading]) -> None:
        """Take what one observer read; raise the alarms that it calls for."""
        self._norm = norm if self._norm is None else self._norm
        self.steps = max(self.steps, step)
        step += self.keeper.steps_before
        growth = math.log(norm / self._norm) if norm > 0 and self._norm > 0 else math.nan
        moment = (step, growth, math.nan, math.nan)
        if step != self._step:
            self._step, self._known = step, set()
        records, known = [], self._known
        for place, quantity, value in readings:
            key = observer, place, quantity
            if key not in known:  # the last look may come at the step of the one before
                known.add(key)
                records.append(Record(*moment, observer, place, quantity, value))
        self._told += records
        for record in records:
            for rule in self._rules_about(record.quantity):
                alarm = self._ruled(rule, record)
                if alarm is not None:
                    self._raise(alarm, moment)

    def _ruled(self, rule: Rule, record: Record) -> Alarm | None:
        """One that fails is not asked again."""
        name = getattr(rule, "__name__", type(rule).__name__)
        if name in self.off:
            return None
        try:
            return rule(record)
        except Exception as error:
            self._turn_off(name, error)
            return None

    def note(self, step: int, text: str) -> None:
        """Take what is no alarm, and worth knowing; once."""
        if all(known.partition(": ")[2] != text for known in self.notes):
            self.notes.append(f"step {step}: {text}")

    def _turn_off(self, name: str, error: Exception) -> None:
        self.off[name] = one_line(error)
        warn(f"{name} is off: {self.off[name]}")

    def _rules_about(self, quantity: str) -> Sequence[Rule]:
        """Those that look at a quantity, and those that look at all."""
        if quantity not in self._rules:
            self._rules[quantity] = [rule for rule in self.rules if getattr(rule, "quantity", quantity) == quantity]
        return self._rules[quantity]

    def close_look(self, step: int) -> None:
        """Pass the records of this look on to the sinks."""
        moment = (step + self.keeper.steps_before, math.nan, math.nan, math.nan)
        told, self._told = self._told, []
        told.append(Record(*moment, "watch", "", "overhead", self.overhead))
        told.append(Record(*moment, "watch", "", "seconds", self.meter.last))
        if self.leads:
            for sink in [self.keeper, *self.sinks]:
                self._to(sink, lambda sink: sink.write(told))

    def close(self, status: str = "finished") -> None:
        """Let every sink finish; `status` is how the training ended."""
        self.keeper.status = status
        if self.leads:
            for sink in [self.keeper, *self.sinks]:
                self._to(sink, lambda sink: sink.close())

    def _to(self, sink: Sink, act: Callable[[Sink], None]) -> None:
        """A sink that fails is off; the training goes on."""
        name = sink.name if isinstance(sink, Background) else type(sink).__name__
        if name in self.off:
            return
        try:
            act(sink)
        except Exception as error:
            self._turn_off(name, error)
            if sink is self.keeper:
                self._keep_in_memory()

    def _keep_in_memory(self) -> None:
        """Where the folder can take no more: what was recorded, as far as it can be read, and what comes."""
        kept = Memory()
        kept.steps_before = self.keeper.steps_before
        if isinstance(self.keeper, Disk):
            kept.write(self.keeper.give_up())
        self.keeper = kept

    def _raise(self, alarm: Alarm, moment: tuple[int, float, float, float]) -> None:
        if any((alarm.kind, alarm.place) == (known.kind, known.place) for known in self.alarms):
            return
        self.alarms.append(alarm)
        self._told.append(Record(*moment, "alarm", alarm.place, alarm.kind, 1.0))
        if self.leads:
            warn(str(alarm))
            if self.on_alarm is not None and "on_alarm" not in self.off:
                try:
                    self.on_alarm(alarm)
                except Exception as error:
                    self._turn_off("on_alarm", error)
