"""`eq.compare`: runs or watched trainings side by side, in a table, a picture and a page."""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from equipoise.arguments import checked
from equipoise.errors import InputError
from equipoise.integrate.run import Run
from equipoise.modes import default_modes
from equipoise.monitor import Log
from equipoise.notebook import notebook, require_matplotlib
from equipoise.page.material import Material
from equipoise.page.render import embedded, render, require_libraries, write
from equipoise.page.words import plain
from equipoise.sinks import short_labels
from equipoise.sinks.disk import KIND as WATCHED
from equipoise.store import Store

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

Source = Run | Log | str | os.PathLike[str]
_KEY = ["observer", "place", "quantity"]
_PANELS = (  # observer, quantity, title, logarithmic
    ("spectrum", "stable_rank", "Stable rank", False),
    ("spectrum", "rank_one_residual", "Distance to rank one", True),
    ("alignment", "alignment_next", "Alignment of consecutive layers", False),
    ("drift", "relative_drift", "Drift of the conserved quantities", True),
    ("residual", "residual", "Residual of the gradient", True),
    ("gradient_norm", "gradient_norm", "Norm of the gradient", True),
    ("nuclear_ratio", "nuclear_ratio", "Nuclear over Frobenius norm of the gradient", False),
    ("margin", "normalised", "Normalised margin", False),
)
_DASHES = ("solid", "dash", "dot", "dashdot")
_PLACES = 6  # curves of a panel, for each of the runs


@dataclass(frozen=True, repr=False)
class RunComparison:
    """Runs or trainings side by side, the first one as the reference.

    Attributes:
        labels: of each.
        tables: of each, the records, against growth in runs and steps in trainings.
        across: what their curves are drawn against.
    """

    labels: tuple[str, ...]
    tables: tuple[pd.DataFrame, ...]
    across: str

    def table(self) -> pd.DataFrame:
        """One row for each observer, place and quantity that all of them recorded, with the last value of each.

        Returns:
            The table; `change` is the last one's value less the first one's.
        """
        ends = [table.groupby(_KEY, sort=False)["value"].last() for table in self.tables]
        joined = pd.concat(ends, axis=1, join="inner", keys=self.labels).reset_index()
        return joined.assign(change=joined[self.labels[-1]] - joined[self.labels[0]])

    def plot(self, quantity: str = "stable_rank") -> "Figure":
        """A figure of matplotlib: one quantity of all runs over each other, a colour a place, a dash a run.

        Args:
            quantity: that all of them recorded.

        Returns:
            The figure.

        Raises:
            InputError: for another quantity, naming those there are; and without matplotlib.
        """
        self._require(quantity)
        require_matplotlib()
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(7.5, 3.2), layout="constrained")
        axes = drawn.subplots()
        places = self._places(quantity)
        labels, colours = short_labels(places, width=28), colormaps["turbo"].resampled(len(places) + 3)
        for label, table, dash in zip(self.labels, self.tables, cycle(("-", "--", ":", "-.")), strict=False):
            rows = table.loc[table["quantity"] == quantity]
            for number, place in enumerate(places):
                curve = rows.loc[rows["place"] == place]
                said = f"{label}: {labels[place] or 'all'}"
                axes.plot(curve["at"], curve["value"], dash, label=said, color=colours(number + 1), linewidth=1.2)
        axes.set(xlabel=self.across, ylabel=quantity.replace("_", " "))
        axes.legend(fontsize="x-small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return drawn

    def report(self, path: str | os.PathLike[str] = "comparison.html") -> Path:
        """Write a page with the curves over each other, and the table.

        Args:
            path: of the page.

        Returns:
            The path.

        Raises:
            InputError: without plotly and jinja2.
            StoreError: for a path that cannot be written.
        """
        require_libraries()
        drawn = [(panel, self._panel(*panel)) for panel in _PANELS]
        table = self.table()
        return write(
            Path(path),
            render(
                "comparison.html",
                labels=self.labels,
                dashes=_DASHES,
                figures=[
                    (f"{panel[0]}-{panel[1]}", panel[2], embedded(plot)) for panel, plot in drawn if plot is not None
                ],
                columns=[*self.labels, "change"],
                rows=[
                    (
                        row["place"] or "all",
                        row["quantity"].replace("_", " "),
                        [plain(row[name]) for name in (*self.labels, "change")],
                    )
                    for row in table.loc[table["quantity"].isin([panel[1] for panel in _PANELS])].to_dict("records")
                ],
            ),
        )

    def __repr__(self) -> str:
        return f"RunComparison({', '.join(self.labels)}; {len(self.table())} quantities that all recorded)"

    def _repr_html_(self) -> str:
        """The table of the main quantities, for a notebook."""
        table = self.table()
        shown = table.loc[table["quantity"].isin([panel[1] for panel in _PANELS])]
        return notebook(repr(self)) + str(shown.to_html(index=False, float_format=lambda value: f"{value:.4g}"))

    def _require(self, quantity: str) -> None:
        known = sorted(set.intersection(*(set(table["quantity"]) for table in self.tables)))
        if quantity not in known:
            remedy = f"choose among {', '.join(known)}"
            raise InputError(expected="a quantity that all of them recorded", found=repr(quantity), remedy=remedy)

    def _places(self, quantity: str) -> list[str]:
        """The places that differ most between the last run and the first."""
        table = self.table()
        rows = table.loc[(table["quantity"] == quantity) & ~table["place"].str.startswith("worst ")]
        order = rows["change"].abs().sort_values(ascending=False).index[:_PLACES]
        return [str(place) for place in rows.loc[sorted(order), "place"]]

    def _panel(self, observer: str, quantity: str, title: str, logarithmic: bool) -> "go.Figure | None":
        from equipoise.page.canvas import canvas, fitted, line, positive
        from equipoise.page.watched import depth_colour

        places = self._places(quantity)
        figure, labels = (
            canvas(title.lower(), logarithmic=logarithmic, across=self.across),
            short_labels(places, width=24),
        )
        for label, table, dash in zip(self.labels, self.tables, cycle(_DASHES), strict=False):
            curves = Material(table.assign(growth=table["at"])).curves(observer, quantity)
            for number, place in enumerate(places):
                if place in curves:
                    curve = positive(curves[place]) if logarithmic else curves[place]
                    said, group = f"{label}: {labels[place] or 'all'}", html.escape(place)
                    line(figure, curve, said, depth_colour(number, len(places)), dash=dash, legendgroup=group)
        if not figure.data:
            return None
        traces: Any = figure.data  # plotly types it as strings
        shown = any(bool((trace.y > 0).any()) for trace in traces)
        return figure if not logarithmic else fitted(figure, (0.1, 1.0)) if shown else None


@checked
@default_modes()
def compare(*runs: Source, labels: Sequence[str] | None = None) -> RunComparison:
    """Lay runs of `eq.flow`, or trainings of `eq.watch`, over each other.

    Args:
        runs: two or more, or the folders that they wrote, finished or not; all of one kind.
        labels: of each; by default the names of their folders, or A, B, …

    Returns:
        The comparison, with `.table()`, `.plot()` and `.report(path)`.

    Raises:
        InputError: for fewer than two, runs beside trainings, or labels that are not as many or not different.
        StoreError: for a folder of anything else.

    >>> import equipoise as eq
    >>> data = eq.data.load("separable", n=12, d=5)
    >>> runs = [eq.flow(eq.networks.mlp([5, 4, 1], seed=seed), data, until="growth=0.5") for seed in (0, 1)]
    >>> found = compare(*runs, labels=["first", "second"])
    >>> found.table().columns.tolist()
    ['observer', 'place', 'quantity', 'first', 'second', 'change']
    """
    if len(runs) < 2:
        raise InputError(expected="two runs or more", found=str(len(runs)), remedy="pass eq.compare(run_a, run_b)")
    read = [_records(each) for each in runs]
    kinds = {is_flow for is_flow, _ in read}
    if len(kinds) > 1:
        raise InputError(
            expected="runs of eq.flow, or trainings of eq.watch", found="both", remedy="compare those of one kind"
        )
    named = _labels(runs, labels)
    at = "growth" if kinds == {True} else "step"
    tables = tuple(table.assign(at=table[at].astype(float)) for _, table in read)
    return RunComparison(named, tables, "growth s = log ‖w‖/‖w₀‖" if at == "growth" else "step")


def _records(source: Source) -> tuple[bool, pd.DataFrame]:
    """Whether a source is a flow, and its records: in a folder they are there without the model, and before the end."""
    if isinstance(source, (Run, Log)):
        return isinstance(source, Run), source.table()
    with Store.open(source) as store:
        return store.manifest.get("kind") != WATCHED, store.table()


def _labels(runs: Sequence[Source], labels: Sequence[str] | None) -> tuple[str, ...]:
    letters = [chr(ord("A") + number % 26) + (str(number // 26) if number > 25 else "") for number in range(len(runs))]
    folders = [None if isinstance(each, (Run, Log)) else Path(each).name for each in runs]
    default = folders if all(folders) and len(set(folders)) == len(folders) else letters
    found = tuple(str(each) for each in (default if labels is None else labels))
    if len(found) != len(runs) or len(set(found)) < len(found):
        raise InputError(
            expected=f"{len(runs)} different labels", found=", ".join(found), remedy=f"pass labels={letters}"
        )
    return found
