"""The page of a watched training: its curves over steps, what was off, alarms and notes, and every matrix."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from equipoise.monitor import Log
from equipoise.page.canvas import canvas, fitted, line, positive
from equipoise.page.figures import Figure
from equipoise.page.material import Json, Material
from equipoise.page.render import embedded, render, write
from equipoise.page.words import plain
from equipoise.sinks import short_labels
from equipoise.sinks.curves import most_changed

CURVES = 10  # of a figure: more cannot be distinguished
_STEPS = "step"
_MATRIX = ("sigma_1", "stable_rank", "rank_one_residual", "alignment_next")


class Panel(NamedTuple):
    """A figure of one quantity that an observer records."""

    figure: Figure
    observer: str
    quantity: str

    def described(self, material: Material) -> Figure:
        """The figure, its caption with a word on the curves that are not shown."""
        count = len(material.curves(self.observer, self.quantity))
        if count <= CURVES:
            return self.figure
        caption = f"{self.figure.caption} The {CURVES} of {count} that changed most."
        return self.figure._replace(caption=caption)


def _panel(
    name: str, title: str, caption: str, observer: str, quantity: str, axis: str, reach: tuple[float, float] | None
) -> Panel:
    """One quantity over the steps, on a logarithmic axis where a reach is given."""

    def draw(material: Material) -> go.Figure | None:
        rows = material.table.loc[(material.table.observer == observer) & (material.table.quantity == quantity)]
        curves = material.curves(observer, quantity)
        if reach is not None:  # a logarithmic axis shows nothing of a curve that is zero throughout
            curves = {place: curve for place, curve in curves.items() if bool((curve["value"] > 0).any())}
        shown = [place for place in most_changed(rows, CURVES) if place in curves] if len(rows) else []
        if not shown:
            return None
        figure, labels = canvas(axis, logarithmic=reach is not None, across=_STEPS), short_labels(shown, width=32)
        for place in shown:
            curve = positive(curves[place]) if reach else curves[place]
            said = labels[place] or "all weights"
            line(figure, curve, said, depth_colour(shown.index(place), len(shown)), legendgroup=html.escape(place))
        figure.update_traces(mode="lines+markers", marker_size=4)
        figure.update_xaxes(hoverformat="d", tickformat=",d")
        return figure if reach is None else fitted(figure, reach)

    return Panel(Figure(name, title, caption, draw), observer, quantity)


PANELS = (
    _panel(
        "stable-rank",
        "Stable rank",
        "‖W‖²/σ₁² of each weight matrix: how many directions carry its norm. Low and falling means that few directions "
        "are left.",
        "spectrum",
        "stable_rank",
        "stable rank",
        None,
    ),
    _panel(
        "rank-one",
        "Distance to rank one",
        "1 − σ₁²/‖W‖² of each weight matrix. Ordinary training for a few epochs leaves it near 1.",
        "spectrum",
        "rank_one_residual",
        "1 − σ₁²/‖W‖²",
        (0.1, 1.0),
    ),
    _panel(
        "alignment",
        "Alignment of consecutive layers",
        "Cosine between the direction that a layer writes most and the one that the next reads most. 1 is perfect.",
        "alignment",
        "alignment_next",
        "cosine",
        None,
    ),
    _panel(
        "drift",
        "Drift of the conserved quantities",
        "How far each law has moved from its start, relative to ‖w‖². Only gradient flow keeps it at zero; "
        "finite steps, momentum, Adam and weight decay move it.",
        "drift",
        "relative_drift",
        "‖C − C₀‖ / ‖w‖²",
        (1e-8, 1e-6),
    ),
    _panel(
        "drift-estimate",
        "Drift, estimated",
        "The same for large laws, estimated from a small sketch of them.",
        "drift",
        "relative_drift_estimate",
        "‖C − C₀‖ / ‖w‖²",
        (1e-8, 1e-6),
    ),
    _panel(
        "residual",
        "Residual of the gradient",
        "How far the gradient of each step is from satisfying the laws. Rounding alone gives about 10⁻⁷ in float32 and "
        "10⁻³ in bfloat16; an alarm says when it is more.",
        "residual",
        "residual",
        "residual",
        (1e-9, 1e-6),
    ),
    _panel(
        "gradient-norm",
        "Norm of the gradient",
        "Of all weights, and of each parameter.",
        "gradient_norm",
        "gradient_norm",
        "‖G‖",
        (0.1, 1.0),
    ),
    _panel(
        "nuclear-ratio",
        "Nuclear over Frobenius norm of the gradient",
        "‖G‖⁎²/‖G‖² of each matrix, at most its rank. Where it is well above the stable rank of the layer's input, "
        "orthogonalised updates as Muon's promise more progress than plain ones.",
        "nuclear_ratio",
        "nuclear_ratio",
        "‖G‖⁎² / ‖G‖²",
        None,
    ),
    _panel(
        "dead",
        "Dead neurons",
        "Share of each layer's neurons that are off for every example watched.",
        "activity",
        "dead_share",
        "share",
        None,
    ),
)


def depth_colour(place: int, count: int) -> str:
    """From blue over violet to orange; light enough for a dark page and dark enough for a light one.

    Args:
        place: of the curve, from the input up.
        count: of curves.

    Returns:
        A colour of CSS.
    """
    turn = place / (count - 1) if count > 1 else 0.0
    return f"hsl({round(210 + 180 * turn) % 360}, 62%, 54%)"


def write_watched(log: Log, path: Path, label: str, manifest: Json) -> Path:
    """Write the page of a watched training.

    Args:
        log: in memory, or read back from its folder.
        path: of the page.
        label: the folder, or empty.
        manifest: of the folder.

    Returns:
        The path.
    """
    material = over_steps(log)
    drawn = [(panel.described(material), panel.figure.draw(material)) for panel in PANELS]
    page = render(
        "watched.html",
        label=label,
        story=_story(log),
        headline=_headline(log, material),
        figures=[(figure, embedded(plot)) for figure, plot in drawn if plot is not None],
        missing=[figure.title for figure, plot in drawn if plot is None],
        log=log,
        matrices=_matrices(log.table()),
        manifest=manifest,
    )
    return write(path, page)


def over_steps(log: Log) -> Material:
    """The records of a log with steps in place of growth."""
    table = log.table()
    return Material(table.assign(growth=table["step"].astype(float), log_loss=math.nan, log_time=math.nan))


def _story(log: Log) -> list[str]:
    status = log.keeper.status
    ended = f"A training of {plain(log.steps)} steps, watched" + (
        "." if status == "finished" else f"; it was {status}."
    )
    alarms = f"{len(log.alarms)} alarms were raised." if log.alarms else "No alarm was raised."
    return [ended, alarms]


def _headline(log: Log, material: Material) -> list[tuple[str, str, str]]:
    ranks = material.last("spectrum", "stable_rank")
    residuals = material.last("residual", "residual")
    drifts = material.last("drift", "relative_drift") | material.last("drift", "relative_drift_estimate")
    overhead = material.last("watch", "overhead").get("")
    residual = material.last("spectrum", "rank_one_residual")
    ranks = {name: rank for name, rank in ranks.items() if residual.get(name, 1.0) > 1e-9}  # not of a single row
    lowest = min(ranks, key=ranks.__getitem__, default="")
    found = [
        ("steps", plain(log.steps), "of the training"),
        ("snapshots", plain(len(set(material.table["step"]))), "taken of it"),
        ("cost", None if overhead is None else f"{overhead:.1%}", "of the training's time"),
        ("lowest stable rank", plain(ranks[lowest]) if ranks else None, lowest.replace(".weight", "")),
        ("largest drift", plain(max(drifts.values())) if drifts else None, "of a law, over ‖w‖²"),
        (
            "largest residual",
            plain(max(residuals.values())) if residuals else None,
            "of a gradient, at the last snapshot",
        ),
    ]
    return [(name, value, meaning) for name, value, meaning in found if value is not None]


def _matrices(table: pd.DataFrame) -> tuple[Sequence[str], list[tuple[str, list[str]]]]:
    """Each matrix with its figures at the first snapshot and at the last."""
    names = [name for name in _MATRIX if name in set(table["quantity"])]
    rows = table.loc[table["quantity"].isin(names)]
    cells = [
        (str(place), [_ends(group.loc[group["quantity"] == name, "value"]) for name in names])
        for place, group in rows.groupby("place", sort=False)
    ]
    return [
        name.replace("_", " ").replace("sigma 1", "σ₁").replace("rank one residual", "1 − σ₁²/‖W‖²") for name in names
    ], cells


def _ends(values: pd.Series) -> str:
    return "" if values.empty else f"{plain(float(values.iloc[0]))} → {plain(float(values.iloc[-1]))}"
