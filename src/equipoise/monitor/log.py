"""The log of a watched training: records, alarms, what is off, the cost; with a summary in text, and curves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pandas as pd

from equipoise.errors import one_line, visible
from equipoise.laws import Laws
from equipoise.monitor.alarms import Alarm, Rule, concerns, warn
from equipoise.monitor.schedule import Meter
from equipoise.notebook import notebook
from equipoise.observers import Reading
from equipoise.sinks import ReadableSink, Sink, common_prefix, short_labels, sink_name
from equipoise.sinks.curves import OF_WATCH, curves_figure
from equipoise.sinks.protocol import Memory
from equipoise.store import Record, require_latest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 12  # matrices in a summary
_MATRIX = ("sigma_1", "stable_rank", "rank_one_residual")


@dataclass(repr=False)
class Log:
    """The result of `eq.watch`, growing while the training runs.

    `alarms` in the order in which they came, each kind once a place; `notes` what else is worth knowing: parts of the
    model that were replaced, gradients that were changed between backward and step; `off` maps an observer or a sink
    that is not working to the reason; `laws` are the model's, once the first step is taken.
    """

    keeper: ReadableSink
    sinks: Sequence[Sink]
    rules: Sequence[Rule]
    on_alarm: Callable[[Alarm], object] | None = None
    leads: bool = True
    meter: Meter = field(default_factory=Meter)
    alarms: list[Alarm] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    off: dict[str, str] = field(default_factory=dict)
    laws: Laws | None = None
    steps: int = 0
    _norm: float | None = None
    _pending: list[Record] = field(default_factory=list, repr=False)  # until the end of the snapshot
    _step: int = -1
    _known: set[tuple[str, str, str]] = field(default_factory=set, repr=False)  # of the records of this step
    _rules: dict[str, Sequence[Rule]] = field(default_factory=dict, repr=False)

    def table(self) -> pd.DataFrame:
        """All records in one tidy table: step, growth, observer, place, quantity, value."""
        return self.keeper.table().drop(columns=["log_loss", "log_time"])

    def last(self, observer: str, quantity: str, place: str = "") -> float | None:
        """The latest value of a quantity.

        Args:
            observer: its name, as in the table.
            quantity: that it records.
            place: a parameter, a layer or a law; empty for the whole network.

        Returns:
            The value; None before the first snapshot.

        Raises:
            InputError: for a name that was not recorded, with those that were.
        """
        table = self.keeper.table()
        found = table.value[(table.observer == observer) & (table.quantity == quantity) & (table.place == place)]
        if len(found):
            return float(found.iloc[-1])
        return require_latest(
            [Record(*row) for row in table.itertuples(index=False, name=None)], observer, quantity, place
        )

    def plot(self, *quantities: str) -> "Figure":
        """A matplotlib figure with one panel for each quantity, a line a place.

        Args:
            quantities: by default stable rank, alignment, drift, residual and dead neurons, as far as recorded.

        Raises:
            InputError: for a quantity that was not recorded, naming those that were.
        """
        return curves_figure(self.table(), quantities, OF_WATCH)

    def _repr_html_(self) -> str:
        """The summary, and the curves as a small picture, for a notebook."""
        return notebook(self.summary(), None if self.table().empty or not find_spec("matplotlib") else self.plot())

    def summary(self) -> str:
        """Cost, alarms, what is off, and each matrix at the start and at the end.

        Control characters in names, which do not show, are escaped.
        """
        return "\n".join(map(visible, _lines(self)))

    @property
    def overhead(self) -> float:
        """Time of the snapshots over that of the training without them; the first one is set-up, and not counted."""
        return self.meter.share

    def __repr__(self) -> str:
        return f"<Log of {self.steps} steps, {len(self.alarms)} alarms, off: {', '.join(self.off) or 'none'}>"

    # --- for those who take the snapshots ---

    def record(self, step: int, norm: float, observer: str, readings: Sequence[Reading]) -> None:
        """Take the readings of one observer, and raise the alarms that they call for."""
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
            if key not in known:  # the last snapshot may come at the step of the one before
                known.add(key)
                records.append(Record(*moment, observer, place, quantity, value))
        self._pending += records
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
        """Take a note, which is no alarm; each is kept once."""
        if all(known.partition(": ")[2] != text for known in self.notes):
            self.notes.append(f"step {step}: {text}")

    def _turn_off(self, name: str, error: Exception) -> None:
        self.off[name] = one_line(error)
        warn(f"{name} is off: {self.off[name]}")

    def _rules_about(self, quantity: str) -> Sequence[Rule]:
        """The rules about a quantity, and those about all."""
        if quantity not in self._rules:
            self._rules[quantity] = [rule for rule in self.rules if concerns(rule, quantity)]
        return self._rules[quantity]

    def end_snapshot(self, step: int) -> None:
        """Pass the records of this snapshot on to the sinks."""
        moment = (step + self.keeper.steps_before, math.nan, math.nan, math.nan)
        records, self._pending = self._pending, []
        records.append(Record(*moment, "watch", "", "overhead", self.overhead))
        records.append(Record(*moment, "watch", "", "seconds", self.meter.last))
        if self.leads:
            for sink in [self.keeper, *self.sinks]:
                self._to(sink, lambda sink: sink.write(records))

    def close(self, status: str = "finished") -> None:
        """Let every sink finish; `status` is how the training ended."""
        self.keeper.status = status
        if self.leads:
            for sink in [self.keeper, *self.sinks]:
                self._to(sink, lambda sink: sink.close())

    def _to(self, sink: Sink, act: Callable[[Sink], None]) -> None:
        """A sink that fails is off; the training goes on."""
        name = sink_name(sink)
        if name in self.off:
            return
        try:
            act(sink)
        except Exception as error:
            self._turn_off(name, error)
            if sink is self.keeper:
                self._keep_in_memory()

    def _keep_in_memory(self) -> None:
        """Where the folder can take no more: go on in memory, with all records that can still be read."""
        kept = Memory()
        kept.steps_before = self.keeper.steps_before
        kept.write(self.keeper.give_up())
        self.keeper = kept

    def _raise(self, alarm: Alarm, moment: tuple[int, float, float, float]) -> None:
        if any((alarm.kind, alarm.place) == (known.kind, known.place) for known in self.alarms):
            return
        self.alarms.append(alarm)
        self._pending.append(Record(*moment, "alarm", alarm.place, alarm.kind, 1.0))
        if self.leads:
            warn(str(alarm))
            if self.on_alarm is not None and "on_alarm" not in self.off:
                try:
                    self.on_alarm(alarm)
                except Exception as error:
                    self._turn_off("on_alarm", error)


def _lines(log: Log) -> list[str]:
    meter = log.meter
    lines = [
        f"watched {log.steps} steps in {meter.snapshots + 1} snapshots: {log.overhead:.2%} of the training's time"
        f" (set-up {meter.setup:.2f} s)"
    ]
    if log.keeper.steps_before:
        lines.append(f"the folder goes on from step {log.keeper.steps_before} of the training before")
    if log.laws is not None:
        lines.append(f"{len(log.laws)} laws, {log.laws.conserved} conserved quantities")
    lines += [f"off: {name} ({reason})" for name, reason in log.off.items()]
    lines += [f"note: {note}" for note in log.notes]
    lines += [f"alarm: {alarm}" for alarm in log.alarms]
    try:
        table = log.table()
    except Exception as error:  # the folder is gone
        return [*lines, f"no records: {one_line(error)}"]
    return [*lines, *_matrices(table.loc[table.observer == "spectrum"])]


def _matrices(table: pd.DataFrame) -> list[str]:
    if table.empty:
        return []
    labels = short_labels(table.place.unique(), width=48)
    heading = f"{common_prefix(list(labels))}*" if common_prefix(list(labels)) else "matrix"
    width = max(map(len, [heading, *labels.values()]))
    lines = [" ".join([f"{heading:{width}}", *(f"{name:>23}" for name in _MATRIX)])]
    for place, rows in list(table.groupby("place", sort=False))[:_SHOWN]:
        ends = [rows[rows.quantity == name].value for name in _MATRIX]
        ends_shown = [f"{values.iloc[0]:10.4g} → {values.iloc[-1]:10.4g}" for values in ends]
        lines.append(" ".join([f"{labels[str(place)]:{width}}", *ends_shown]))
    hidden = table.place.nunique() - _SHOWN
    return [*lines, f"and {hidden} more"] if hidden > 0 else lines
