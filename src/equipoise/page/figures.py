"""The figures of a run, one function a figure; each is None when the run has nothing to draw in it.

Colours are the names of CSS variables, which the page resolves for its light and its dark theme.
"""

import html
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from equipoise.graph.chain import Layer, linear_tail
from equipoise.measure.spectrum import spectra
from equipoise.page.canvas import Reach, canvas, fitted, line, positive
from equipoise.page.material import Material
from equipoise.page.words import plain, power
from equipoise.theorems.linear_tail import LinearTail, deficit_bounds

SHADES = 5  # of each kind of layer, in the template's style sheet
_HUES = {"linear": (175, 265), "relu": (0, 50)}  # of more layers than that, from the input up


class Figure(NamedTuple):
    """A figure with its place on the page: what it is called, how to read it, and how it is drawn."""

    name: str
    title: str
    caption: str
    draw: Callable[[Material], go.Figure | None]


# ---- one figure each ----


def log_loss(material: Material) -> go.Figure | None:
    """`log R` against growth, on an axis that is linear near 0 and logarithmic below."""
    curve = material.losses()
    if curve.empty:
        return None
    values = curve["value"].to_numpy(float)
    figure = canvas("log R")
    figure.add_scatter(
        x=curve["growth"].to_numpy(float),
        y=_symlog(values),
        customdata=[plain(value) for value in values.tolist()],
        hovertemplate="log R = %{customdata}",
        name="log R",
        line_color="var(--linear-0)",
        showlegend=False,
    )
    ticks = _decades(values)
    figure.update_yaxes(tickvals=_symlog(np.array(ticks)), ticktext=[_tick(value) for value in ticks])
    return figure


def rank_one(material: Material) -> go.Figure | None:
    """`1 - σ_1²/‖W_k‖²` of every layer, and dashed the bound certified at initialisation (T3.1) where it is below 1."""
    figure = _curves(material, "spectrum", "rank_one_residual", "1 − σ₁²/‖W‖²", (0.1, 1.0))
    for place, bound in _certified(material).items():
        if figure is not None and bound["value"].to_numpy(float).min() < 1:
            below = bound.assign(value=bound["value"].where(bound["value"] < 1))
            _add(figure, material, place, below, f"{place} certified", dash="dash", width=1.5)
    return figure


def misalignment(material: Material) -> go.Figure | None:
    """Sine of the angle between the output direction of each layer and the input direction of the next (T3.2)."""
    return _curves(material, "alignment", "misalignment_next", "sine of the angle", (0.1, 1.0))


def drift(material: Material) -> go.Figure | None:
    """`‖C - C_0‖_F / ‖w‖²` of every conserved quantity (T2)."""
    return _curves(material, "drift", "relative_drift", "‖C − C₀‖ / ‖w‖²", (1e-18, 1e-14))


def stable_neurons(material: Material) -> go.Figure | None:
    """Share of neurons that are on (solid) or off (dotted) for every example (T4.1)."""
    totals = material.last("activity", "neurons")
    figure = canvas("share of neurons")
    for quantity, said, dash in (("stably_active", "always on", "solid"), ("stably_inactive", "always off", "dot")):
        for place, curve in material.curves("activity", quantity).items():
            if totals.get(place):
                share = curve.assign(value=curve["value"] / totals[place])
                _add(figure, material, place, share, f"{place} {said}", dash=dash)
    figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
    return figure if figure.data else None


def flipping(material: Material) -> go.Figure | None:
    """Neuron-example pairs that changed state since the record before (T4.1), and those on their kink (T4.5)."""
    figure = canvas("pairs")
    for quantity, said, dash in (("flipping_pairs", "flipped", "solid"), ("sliding_pairs", "sliding", "dot")):
        for place, curve in material.curves("activity", quantity).items():
            _add(figure, material, place, curve, f"{place} {said}", dash=dash)
    figure.update_yaxes(rangemode="tozero")
    return figure if figure.data else None


def margin(material: Material) -> go.Figure | None:
    """`min_i m_i / ‖w‖^L` and its smoothed version, from where both are positive: there it never decreases."""
    figure = canvas("margin / ‖w‖ᴸ")
    for index, (quantity, said) in enumerate((("normalised", "smallest"), ("smoothed_normalised", "smoothed"))):
        for curve in material.curves("margin", quantity).values():
            line(figure, positive(curve), said, f"var(--other-{index})", dash=("solid", "dash")[index])
    figure.update_yaxes(rangemode="tozero")
    return figure if figure.data else None


def kkt(material: Material) -> go.Figure | None:
    """Residuals of the optimality conditions of the maximal margin problem (docs/theory.md §7)."""
    figure = canvas("residual", logarithmic=True)
    for index, (quantity, said) in enumerate((("kkt_epsilon", "ε: direction"), ("kkt_delta", "δ: slackness"))):
        for curve in material.curves("margin", quantity).values():
            line(figure, positive(curve), said, f"var(--other-{index})")
    return fitted(figure, (0.1, 1.0))


def final_spectra(material: Material) -> go.Figure | None:
    """`σ_i/σ_1` of every final weight matrix, recomputed from the weights."""
    figure = canvas("σᵢ/σ₁", logarithmic=True)
    matrices = {name: weight for name, weight in material.final.items() if weight.ndim >= 2 and weight.numel()}
    for name, spectrum in spectra(matrices).items():
        values = spectrum.values.double().cpu().numpy()
        if len(values) > 1 and values[0] > 0:
            curve = pd.DataFrame({"growth": np.arange(1, len(values) + 1), "value": values / values[0]})
            _add(figure, material, name, positive(curve), name)
    figure.update_traces(mode="lines+markers", marker_size=4)
    figure.update_xaxes(title_text="index i", rangemode="normal", hoverformat="d")
    return fitted(figure, (0.1, 1.0))


FIGURES = (
    Figure(
        "log-loss",
        "The loss, to its limit",
        "The logarithm of the loss against the growth of the weights. For a network of L layers the margins grow as "
        "‖w‖ᴸ, so log R falls exponentially in s.",
        log_loss,
    ),
    Figure(
        "rank-one",
        "Distance to rank one",
        "Linear layers (blue) become rank one; the dashed curve is a bound certified from the initial weights alone, "
        "drawn where it is below 1. ReLU layers (orange) need not follow. "
        "A layer that is rank one exactly has no curve.",
        rank_one,
    ),
    Figure(
        "misalignment",
        "Alignment of consecutive layers",
        "Sine of the angle between the direction a layer writes and the direction the next one reads, named by the "
        "lower of the two. Zero is perfect alignment.",
        misalignment,
    ),
    Figure(
        "drift",
        "Conserved quantities",
        "How far each law has drifted from its value at the start, relative to ‖w‖². Exact integration would show "
        "zero; rounding alone shows about 10⁻¹⁶.",
        drift,
    ),
    Figure(
        "stable-neurons",
        "Stable neurons",
        "Share of each layer's neurons that stay on (solid) or off (dotted) for every training example.",
        stable_neurons,
    ),
    Figure(
        "flips",
        "Flips and kinks",
        "Neuron–example pairs that changed state since the last record (solid), and those that slide along their kink "
        "(dotted). Both should die out as the direction of the weights settles.",
        flipping,
    ),
    Figure(
        "margin",
        "Normalised margin",
        "The smallest margin over ‖w‖ᴸ, drawn where it is positive: where every example is classified correctly. Its "
        "smoothed version never decreases once the loss is small.",
        margin,
    ),
    Figure(
        "kkt",
        "Distance to a maximal margin",
        "Residuals of the optimality (KKT) conditions of the margin problem: both tend to zero when the direction of "
        "the weights tends to a stationary point of the margin.",
        kkt,
    ),
    Figure(
        "spectra",
        "Final spectra",
        "Singular values of each weight matrix at the end, over the largest.",
        final_spectra,
    ),
)


# ---- drawing ----


def _curves(material: Material, observer: str, quantity: str, title: str, reach: Reach) -> go.Figure | None:
    """One quantity on a logarithmic axis, a curve for each place."""
    figure = canvas(title, logarithmic=True)
    for place, curve in material.curves(observer, quantity).items():
        if place.startswith("worst"):
            continue  # one of the other curves, again
        visible = positive(curve)
        if np.isfinite(visible["value"].to_numpy(float)).any():  # a logarithmic axis shows nothing of what is 0
            _add(figure, material, place, visible, place)
    return fitted(figure, reach)


def _add(
    figure: go.Figure, material: Material, place: str, curve: pd.DataFrame, said: str, dash: str = "solid", width=2.0
) -> None:
    """A curve in the colour of its layer; curves of one layer come and go together with a click on the legend."""
    line(figure, curve, said, _colour(material, place), dash=dash, width=width, legendgroup=html.escape(place))


def _colour(material: Material, place: str) -> str:
    """Blues for linear layers, oranges for ReLU layers, from the input up; a law has the colour of its lower layer."""
    kinds: Mapping[str, str] = material.kinds
    layer = next((name for name in kinds if place.startswith(name)), None)
    if layer is None:
        return "var(--ink)"
    alike = [name for name, kind in kinds.items() if kind == kinds[layer]]
    return _shade("linear" if kinds[layer] == "linear" else "relu", alike.index(layer), len(alike))


def _shade(kind: str, place: int, count: int) -> str:
    """A colour of the template's for few layers of a kind; for more, one between the first and the last hue.

    >>> _shade("relu", 1, 3), _shade("linear", 0, 9), _shade("linear", 8, 9)
    ('var(--relu-1)', 'hsl(175, 62%, 44%)', 'hsl(265, 62%, 44%)')
    """
    if count <= SHADES:
        return f"var(--{kind}-{place})"
    first, last = _HUES[kind]
    return f"hsl({first + (last - first) * place / (count - 1):.0f}, 62%, {(44, 56)[place % 2]}%)"


def _certified(material: Material) -> dict[str, pd.DataFrame]:
    """`D_k / ‖W_k‖²` along the run, for the layers of a linear tail with one output."""
    chain = tuple(
        Layer(layer["weight"], layer["bias"], None if layer["kind"] == "linear" else 0.0) for layer in material.layers
    )
    if not chain or not material.initial or len(material.initial[chain[-1].weight]) != 1:
        return {}
    tail = LinearTail(linear_tail(chain))
    if not tail.layers:
        return {}
    deficits = deficit_bounds(tail, material.initial, material.final or None)
    norms = material.curves("spectrum", "frobenius_norm")
    return {
        place: curve.assign(value=deficits[place] / curve["value"] ** 2)
        for place, curve in norms.items()
        if deficits.get(place)
    }


# ---- the axis of log R ----


def _symlog(values: np.ndarray) -> np.ndarray:
    """Linear near 0, logarithmic far from it, of either sign."""
    return np.sign(values) * np.log10(1 + np.abs(values))


def _decades(values: np.ndarray) -> list[float]:
    """Zero and powers of ten on the sides of it that occur, about six in all."""
    ticks = [0.0]
    for sign in (-1, 1):
        reach = float((sign * values).max())
        top = math.floor(math.log10(reach)) if reach >= 1 else -1
        stride = max(1, math.ceil(top / 5))
        ticks += [sign * 10.0**k for k in range(0 if top < 3 else stride, top + 1, stride)]  # 1 is too near to 0
    return sorted(ticks)


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    return ("−" if value < 0 else "") + power(round(math.log10(abs(value))))
