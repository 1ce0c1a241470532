"""Results as a notebook shows them: their text, and a small picture where one says more."""

import base64
import html
import io
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from equipoise.errors import InputError, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_CURVES = ("log_loss", "rank_one_residual", "misalignment_next", "relative_drift")
_LOGARITHMIC = ("rank_one_residual", "misalignment_next", "relative_drift", "kkt_epsilon", "kkt_delta")
_LEGEND = 10  # curves that a legend names


def notebook(text: str, figure: "Figure | None" = None) -> str:
    """HTML of a text in a fixed-width face, and of a picture below it.

    Args:
        text: of several lines.
        figure: of matplotlib.

    Returns:
        A fragment of HTML, everything in the text escaped.

    >>> notebook("a < b")
    '<pre>a &lt; b</pre>'
    """
    shown = "\n".join(map(visible, text.split("\n")))
    return f"<pre>{html.escape(shown)}</pre>{'' if figure is None else _picture(figure)}"


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib, which is an extra.

    Raises:
        InputError: without it.
    """
    if find_spec("matplotlib") is None:
        remedy = "pip install 'equipoise[report]'"
        raise InputError(expected="matplotlib, which draws the picture", found="none", remedy=remedy)


def _picture(figure: "Figure") -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    return f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}">'


def run_figure(table: pd.DataFrame, quantities: tuple[str, ...]) -> "Figure":
    """One panel for each quantity against growth, a curve for each place.

    Args:
        table: of a run.
        quantities: by default log-loss, distance to rank one, misalignment and drift, as far as recorded.

    Returns:
        A figure of matplotlib.

    Raises:
        InputError: for a quantity that was not recorded, and without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    known = ["log_loss", *table["quantity"].unique()]
    strange = [quantity for quantity in quantities if quantity not in known]
    if strange:
        found = ", ".join(strange)
        raise InputError(expected="a recorded quantity", found=found, remedy=f"choose among {', '.join(sorted(known))}")
    chosen = list(quantities) or [quantity for quantity in _CURVES if quantity in known]
    columns = min(2, len(chosen))
    drawn = Figure(figsize=(4.6 * columns, 2.8 * -(-len(chosen) // columns)), layout="constrained")
    panels = drawn.subplots(-(-len(chosen) // columns), columns, squeeze=False).ravel()
    for axes, quantity in zip(panels, chosen, strict=False):
        _panel(axes, table, quantity)
    for axes in panels[len(chosen) :]:
        axes.set_visible(False)
    return drawn


def _panel(axes: "Axes", table: pd.DataFrame, quantity: str) -> None:
    if quantity == "log_loss":
        once = table.drop_duplicates("step")
        axes.plot(once["growth"], once["log_loss"], linewidth=1.4)
        axes.set_yscale("symlog")
    else:
        rows = table.loc[table["quantity"] == quantity]
        groups = [(str(place), curve) for place, curve in rows.groupby("place", sort=False) if place[:6] != "worst "]
        for place, curve in groups:
            axes.plot(curve["growth"], curve["value"], label=place.removesuffix(".weight"), linewidth=1.2)
        if quantity in _LOGARITHMIC and bool(np.any(rows["value"] > 0)):
            axes.set_yscale("log")
        if 1 < len(groups) <= _LEGEND:
            axes.legend(fontsize="x-small", frameon=False)
    axes.set(xlabel="growth log ‖w‖/‖w₀‖", ylabel=quantity.replace("_", " "))
