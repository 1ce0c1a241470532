"""Curves of recorded quantities, against growth or steps: a picture of matplotlib with a panel for each quantity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from equipoise.errors import InputError
from equipoise.notebook import require_matplotlib
from equipoise.sinks.labels import short_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = 12  # curves in a panel
_LOGARITHMIC = (
    "relative_drift",
    "relative_drift_estimate",
    "residual",
    "rank_one_residual",
    "mismatch",
    "misalignment_next",
    "kkt_epsilon",
    "kkt_delta",
)


@dataclass(frozen=True)
class PanelLayout:
    """The panels of one kind of training.

    Attributes:
        against: the column of the horizontal axis.
        label: of that axis.
        quantities: drawn where none are asked for, as far as recorded.
        columns: of panels.
        size: of one panel, in inches.
        legend: how that of a panel is placed.
    """

    against: str
    label: str
    quantities: Sequence[str]
    columns: int
    size: tuple[float, float]
    legend: dict[str, Any]


OF_RUN = PanelLayout(
    against="growth",
    label="growth log ‖w‖/‖w₀‖",
    quantities=("log_loss", "rank_one_residual", "misalignment_next", "relative_drift"),
    columns=2,
    size=(4.6, 2.8),
    legend={},
)
OF_WATCH = PanelLayout(
    against="step",
    label="step",
    quantities=(
        "stable_rank",
        "alignment_next",
        "relative_drift",
        "relative_drift_estimate",
        "residual",
        "dead",
    ),
    columns=1,
    size=(7.5, 2.8),
    legend={"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)},  # beside the curves, not over them
)


def curves_figure(table: pd.DataFrame, quantities: Sequence[str], layout: PanelLayout) -> "Figure":
    """One panel for each quantity, a curve for each place.

    Args:
        table: of a run or a watched training; `log_loss` is a quantity, too, where it is a column of numbers.
        quantities: to draw; by default those of the layout.
        layout: of the panels.

    Returns:
        A figure of matplotlib.

    Raises:
        InputError: for a quantity that was not recorded, where there is none, and without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    losses = "log_loss" in table and bool(table["log_loss"].notna().any())
    known = [*(["log_loss"] if losses else []), *table["quantity"].unique()]
    chosen = list(quantities) or [quantity for quantity in layout.quantities if quantity in known]
    strange = [quantity for quantity in chosen if quantity not in known]
    if strange or not chosen:
        raise InputError(
            expected="a recorded quantity",
            found=", ".join(strange) or "no records",
            remedy=f"choose among {', '.join(sorted(known)) or 'none yet: take a step first'}",
        )
    columns = min(layout.columns, len(chosen))
    rows = -(-len(chosen) // columns)
    drawn = Figure(figsize=(layout.size[0] * columns, layout.size[1] * rows), layout="constrained")
    panels = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axes, quantity in zip(panels, chosen, strict=False):
        _panel(axes, _rows(table, quantity), quantity, layout)
    for axes in panels[len(chosen) :]:
        axes.set_visible(False)
    return drawn


def _rows(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """The records of a quantity, without those that are the worst of others."""
    if quantity == "log_loss":
        return table.drop_duplicates("step").assign(place="", value=lambda once: once["log_loss"])
    return table.loc[(table["quantity"] == quantity) & ~table["place"].str.startswith("worst ")]


def _panel(axes: "Axes", rows: pd.DataFrame, quantity: str, layout: PanelLayout) -> None:
    from matplotlib import colormaps

    shown = most_changed(rows, _SHOWN)
    labels, colours = short_labels(shown, width=28), colormaps["turbo"].resampled(max(len(shown), 2) + 2)
    for place, curve in rows.groupby("place", sort=False):
        if place in shown:
            colour = colours(shown.index(str(place)) + 1)
            name = labels[str(place)].removesuffix(".weight") or "all"
            axes.plot(curve[layout.against], curve["value"], label=name, linewidth=1.2, color=colour)
    if quantity == "log_loss":
        axes.set_yscale("symlog")
    elif quantity in _LOGARITHMIC and bool((rows["value"] > 0).any()):
        axes.set_yscale("log")
    axes.set(xlabel=layout.label, ylabel=quantity.replace("_", " "))
    hidden = rows.place.nunique() - len(shown)
    if len(shown) > 1:
        title = f"{len(shown)} that changed most, {hidden} not shown" if hidden else None
        axes.legend(fontsize="x-small", title=title, title_fontsize="x-small", frameon=False, **layout.legend)


def most_changed(rows: pd.DataFrame, count: int) -> list[str]:
    """The places whose curves change most between their ends, over their largest value; in their own order.

    Args:
        rows: records of one quantity.
        count: how many.

    Returns:
        Their names; all of them where there are no more.
    """
    grouped = rows.groupby("place", sort=False).value
    change = (grouped.last() - grouped.first()).abs() / grouped.apply(lambda values: values.abs().max() or 1.0)
    kept = set(change.nlargest(count).index) if len(change) > count else set(change.index)
    return [str(place) for place in change.index if place in kept]
