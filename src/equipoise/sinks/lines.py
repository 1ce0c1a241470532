"""One line a snapshot: `sinks=[print]`."""

from collections.abc import Callable, Sequence

from equipoise.errors import visible
from equipoise.sinks.labels import short_labels
from equipoise.store import Record

LARGEST = {"residual": "residual", "relative_drift": "drift", "relative_drift_estimate": "drift", "dead_share": "dead"}
SMALLEST = {"stable_rank": "stable rank", "alignment_next": "alignment"}
PLAIN = {"gradient_norm": "gradient norm", "accuracy": "accuracy"}


class Lines:
    """A line for each snapshot: the step, and of each quantity the worst figure with its place."""

    def __init__(self, write: Callable[[str], object] = print):
        self._write = write

    def write(self, records: Sequence[Record]) -> None:
        """One line of one snapshot."""
        said = line(records)
        if said:
            self._write(visible(said))

    def close(self) -> None:
        """Nothing to do."""


def line(records: Sequence[Record]) -> str:
    """The figures of one snapshot in a line.

    Args:
        records: of one step.

    Returns:
        The step, then the alarms, then the largest or smallest of each quantity; empty where there is none of them.

    >>> moment = (50, 0.0, 0.0, 0.0)
    >>> line([Record(*moment, "spectrum", f"enc.{i}.weight", "stable_rank", 2.0 + i) for i in range(3)])
    'step 50: stable rank ≥ 2 (0.weight)'
    """
    labels = short_labels([record.place for record in records if record.place], width=24)
    parts = [f"ALARM {record.quantity} ({record.place})" for record in records if record.observer == "alarm"]
    for names, sign, choose in ((SMALLEST, "≥", min), (LARGEST, "≤", max), (PLAIN, "", max)):
        for quantity, words in names.items():
            found = [each for each in records if each.quantity == quantity]
            if found:
                worst = choose(found, key=lambda record: record.value)
                where = f" ({labels[worst.place]})" if worst.place else ""
                parts.append(f"{words} {sign}{' ' if sign else ''}{worst.value:.3g}{where}")
    return f"step {records[-1].step}: {', '.join(parts)}" if parts else ""
