"""Empty figures in the page's own style, and curves on them.

Colours are the names of CSS variables, which the page resolves for its light and its dark theme, where the key of a
value ends in `color` and nowhere else.
"""

import html
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from equipoise.page.words import typeset

Reach = tuple[float, float]
GROWTH = "growth s = log ‖w‖/‖w₀‖"


def canvas(title: str, logarithmic: bool = False, across: str = GROWTH) -> go.Figure:
    """An empty figure in the page's own style."""
    axis = {
        "gridcolor": "var(--grid)",
        "linecolor": "var(--rule)",
        "zeroline": False,
        "title_font_size": 13,
        "title_standoff": 14,
    }
    figure = go.Figure()
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "var(--ink)", "size": 12, "family": "system-ui, sans-serif"},
        margin={"l": 76, "r": 12, "t": 24, "b": 12},  # a margin that fits the labels may be redrawn without end
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "var(--quiet)", "activecolor": "var(--ink)"},
        hovermode="x unified",
        hoverlabel={"bgcolor": "var(--card)", "bordercolor": "var(--rule)", "namelength": -1},
        uirevision="kept",  # zoom and hidden layers survive a change of theme
        xaxis={**axis, "automargin": True, "title_text": typeset(across), "hoverformat": ".3f"},
        yaxis={**axis, "title_text": typeset(title), "hoverformat": ".3g", "exponentformat": "power"},
    )
    if logarithmic:
        figure.update_yaxes(type="log", nticks=7, minorloglabels="none")
    return figure


def counted(figure: go.Figure) -> go.Figure:
    """With a horizontal axis that counts: whole numbers, and half a unit beside the first and the last."""
    traces: Any = figure.data  # plotly types it as strings
    places = [float(place) for trace in traces for place in trace.x]
    low, high = min(places), max(places)
    figure.update_xaxes(range=[low - 0.5, high + 0.5], hoverformat="d", tickformat="d")
    if high - low <= 12:
        figure.update_xaxes(tick0=low, dtick=1)
    return figure


def line(
    figure: go.Figure,
    curve: pd.DataFrame,
    said: str,
    colour: str,
    dash: str = "solid",
    width: float = 2.0,
    legendgroup: str | None = None,
) -> None:
    """A curve with columns `growth` and `value`; curves of one `legendgroup` come and go together."""
    figure.add_scatter(
        x=curve["growth"].to_numpy(float),
        y=curve["value"].to_numpy(float),
        mode="lines",
        name=html.escape(said.replace(".weight", "")),
        legendgroup=legendgroup,
        line={"color": colour, "dash": dash, "width": width},
    )


def fitted(figure: go.Figure, reach: Reach) -> go.Figure | None:
    """With a logarithmic axis that shows all there is, and at least `reach`: ticks on a part of a decade read badly."""
    traces: Any = figure.data  # plotly types it as strings
    values = np.concatenate([reach, *(trace.y for trace in traces)])
    low, high = np.log10([np.nanmin(values), np.nanmax(values)])
    figure.update_yaxes(range=[low - 0.1, high + 0.1])
    return figure if figure.data else None


def positive(curve: pd.DataFrame) -> pd.DataFrame:
    """With gaps for what a logarithmic axis cannot show."""
    return curve.assign(value=curve["value"].where(curve["value"] > 0))
