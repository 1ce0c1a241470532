"""The latest figures of every matrix and law, in the terminal, while the training runs."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live as Display
from rich.markup import escape
from rich.table import Table

from equipoise.arguments import checked_fields
from equipoise.errors import visible
from equipoise.sinks.labels import short_labels
from equipoise.store import Record

_COLUMNS = {
    "sigma_1": "σ₁",
    "stable_rank": "stable rank",
    "rank_one_residual": "rank-one residual",
    "alignment_next": "alignment",
    "dead": "dead",
    "residual": "T1 residual",
    "relative_drift": "drift",
    "relative_drift_estimate": "drift (sketch)",
}


@checked_fields
class Live:
    """A table that is drawn anew at each snapshot; where nothing is a terminal, once at the end."""

    def __init__(self, console: Console | None = None, rows: int = 24):
        self.console, self.rows = console or Console(), rows
        self.latest: dict[str, dict[str, float]] = {}
        self.heading = ""
        self._display: Display | None = None

    def write(self, records: Sequence[Record]) -> None:
        """Redraw."""
        for record in records:
            if record.quantity in _COLUMNS:
                self.latest.setdefault(record.place, {})[record.quantity] = record.value
            if record.quantity == "overhead":
                self.heading = f"step {record.step}, watching takes {record.value:.2%} of the training's time"
        if self.console.is_terminal:
            if self._display is None:
                self._display = Display(console=self.console, auto_refresh=False)
                self._display.start()
            self._display.update(self.table(), refresh=True)

    def close(self) -> None:
        """Leave the last table standing."""
        if self._display is not None:
            self._display.stop()
        elif self.latest:
            self.console.print(self.table())

    def table(self) -> Table:
        """One row for each place; columns without a figure are left out."""
        shown = [name for name in _COLUMNS if any(name in figures for figures in self.latest.values())]
        hidden = len(self.latest) - self.rows
        caption = f"and {hidden} more, of higher stable rank and smaller drift" if hidden > 0 else None
        table = Table(title=self.heading, caption=caption)
        table.add_column("place", no_wrap=True, overflow="ellipsis")
        for name in shown:
            table.add_column(_COLUMNS[name], justify="right")
        labels = short_labels(self.latest, width=40)
        for place, figures in self._worst():
            table.add_row(
                escape(visible(labels[place])), *(f"{figures[name]:.4g}" if name in figures else "" for name in shown)
            )
        return table

    def _worst(self) -> list[tuple[str, dict[str, float]]]:
        """The rows there is room for, in their own order: of lowest stable rank, or most out of balance."""

        def rank(item: tuple[str, dict[str, float]]) -> float:
            figures = item[1]
            worry = max(figures.get(name, 0.0) for name in ("residual", "relative_drift", "relative_drift_estimate"))
            return figures.get("stable_rank", math.inf) - 1e3 * worry

        kept = sorted(self.latest.items(), key=rank)[: self.rows]
        return [item for item in self.latest.items() if item in kept]
