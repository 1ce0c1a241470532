"""Numbers as people read them, and the run in a few sentences."""

import html
import math
import re
import shlex
from collections.abc import Mapping
from enum import Enum
from itertools import takewhile

from equipoise.page.material import Json, Material

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

THEOREMS = {
    "T3.1": "linear layers tend to low rank",
    "T3.2": "consecutive linear layers align",
    "T3.3": "all layers grow together",
    "T3.4": "the limit, for any network below the linear layers",
    "T4.1": "neurons stay on or off",
    "T4.2": "neurons that are on together tend to low rank",
    "T4.3": "a layer has no higher rank than its patterns",
    "T4.6": "neurons that are on together align with what reads them",
    "T5.2": "signs stay as they are",
    "T7": "the direction tends to a stationary point of the margin",
}
"""Each theorem of a certificate, in a few words."""


def plain(value: object) -> str:
    """A value as the page prints it: numbers to four digits, powers of ten written out, nothing as a dash.

    >>> plain(-1.0234e12), plain(5.3e-05), plain(0.25), plain(12345), plain(None), plain(True)
    ('−1.023 × 10¹²', '5.3 × 10⁻⁵', '0.25', '12,345', '—', 'yes')
    """
    match value:
        case Enum():
            return plain(value.value)
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}".replace("-", "−")
        case float():
            return _decimal(value)
        case None:
            return "—"
        case _:
            return str(value)


def typeset(text: str) -> str:
    """HTML of a text with its sub- and superscripts raised and lowered: `W_F`, `Σ_{i≤5}`, `a^4`, `e^(-2 s)`, `e^{-s}`.

    Names of more than one letter keep their underscores, but for those of functions, as `min_i`.

    >>> typeset("‖W‖_F ≤ a^4 Σ_{i≤5} σ_i² of layer_1.weight <b>")
    '‖W‖<sub>F</sub> ≤ a<sup>4</sup> Σ<sub>i≤5</sub> σ<sub>i</sub>² of layer_1.weight &lt;b&gt;'
    >>> typeset("min_i m_i / ‖w‖^L, e^{-2s}")
    'min<sub>i</sub> m<sub>i</sub> / ‖w‖<sup>L</sup>, e<sup>-2s</sup>'
    """
    shown = html.escape(text)
    raised = r"\^(?:\(([^()]*)\)|\{([^{}]*)\}|(-?\w+))"
    shown = re.sub(raised, lambda found: f"<sup>{found[1] or found[2] or found[3]}</sup>", shown)
    lowered = r"(?<![\w.])(min|max|\w|\w?[‖⟩])_(?:\{([^{}]*)\}|([A-Za-z0-9+]+))"
    return re.sub(lowered, lambda found: f"{found[1]}<sub>{found[2] or found[3]}</sub>", shown)


def power(exponent: int) -> str:
    """`10^exponent` in plain text.

    >>> power(0), power(1), power(12), power(-3)
    ('1', '10', '10¹²', '10⁻³')
    """
    return {0: "1", 1: "10"}.get(exponent, f"10{str(exponent).translate(_SUPERSCRIPTS)}")


def _decimal(value: float) -> str:
    if not math.isfinite(value):
        return "—" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}".replace("-", "−")
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g} × {power(int(exponent))}".replace("-", "−")


def headline(material: Material) -> list[tuple[str, str, str]]:
    """The key numbers that the run has, each with its name and what it says."""
    summary = material.summary
    tail = [name for name, kind in material.kinds.items() if kind == "linear"]
    residual = _worst(material.last("spectrum", "rank_one_residual"), tail)
    sine = _worst(material.last("alignment", "misalignment_next"), tail)
    drifts = list(material.last("drift", "relative_drift").values())
    found = [
        ("log R", summary.get("log_loss"), "the natural logarithm of the training loss"),
        ("growth s", summary.get("growth"), "log ‖w‖/‖w₀‖: the clock of the flow"),
        ("distance to rank one", residual, "1 − σ₁²/‖W‖², the worst linear layer"),
        ("misalignment", sine, "sine of the angle between linear layers, the worst pair"),
        ("law drift", max(drifts, default=None), "of the worst conserved quantity, over ‖w‖²"),
        ("normalised margin", (summary.get("margin") or {}).get("normalised"), "min margin over ‖w‖ᴸ"),
    ]
    return [(name, plain(value), meaning) for name, value, meaning in found if value is not None]


def story(material: Material) -> list[str]:
    """Network and data, how far training got, and at what price: a sentence for each thing that is known."""
    return [sentence for sentence in (_asked(material), _ended(material.summary), _ranks(material)) if sentence]


def command(manifest: Json) -> str | None:
    """The command that repeats the run: that was typed, else the call with its arguments; None where neither is kept.

    >>> command({"loss": "logistic", "arguments": {"until": "log_loss=-1e6", "max_steps": 90, "command": None}})
    "eq.flow(model, data, loss='logistic', until='log_loss=-1e6', max_steps=90)"
    """
    arguments = manifest.get("arguments") or {}
    if typed := arguments.get("command"):
        return typed if isinstance(typed, str) else shlex.join(map(str, typed))
    if "until" not in arguments:
        return None
    given = {"loss": manifest.get("loss"), "until": arguments["until"], "max_steps": arguments.get("max_steps")}
    kept = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    chosen = dict(arguments.get("stepper") or {})
    name = chosen.pop("name", "EntropicMidpoint")
    stepper = ", ".join(f"{field}={value!r}" for field, value in chosen.items())
    return f"eq.flow(model, data, {kept}{f', stepper=eq.steppers.{name}({stepper})' if stepper else ''})"


_ENDS = {
    "reached": "It reached its goal",
    "precision_floor": "It reached its goal, at the limit of what the precision resolves,",
    "stalled": "It stalled, short of its goal,",
    "not_separable": "It stopped because no weights can fit the data,",
    "step_limit": "It came to the limit of steps, short of its goal,",
    "overflow": "It left the range of its precision, short of its goal,",
}


def _asked(material: Material) -> str:
    data, widths, kinds = material.manifest.get("data") or {}, material.widths, list(material.kinds.values())
    shape = f"a {'-'.join(map(str, widths))} network" if widths else "a network"
    if tail := len(list(takewhile("linear".__eq__, reversed(kinds)))):
        shape += f" whose last {tail} layers are linear" if tail > 1 else " whose last layer is linear"
    classes = " and ".join(map(str, data.get("classes") or ()))
    examples = f"{plain(data['n'])} examples of " if data.get("n") else ""
    learnt = f"{examples}{data.get('name', 'the data')}" + (f", classes {classes}" if classes else "")
    loss = material.manifest.get("loss")
    return f"Gradient flow of {shape} on {learnt}" + (f", under the {loss} loss." if loss else ".")


def _ended(summary: Json) -> str:
    if not summary:
        return "The run is not finished: this is how far it has come."
    price = f"{plain(summary.get('steps'))} steps and {plain(summary.get('seconds'))} seconds"
    ended = _ENDS.get(str(summary.get("status")), "It ended")
    return f"{ended} after {price}, at log R = {plain(summary.get('log_loss'))}."


def _ranks(material: Material) -> str:
    last = material.last("spectrum", "rank_one_residual")
    names = {kind: [name for name, its in material.kinds.items() if its == kind] for kind in ("linear", "relu")}
    linear, relu = _worst(last, names["linear"]), _worst(last, names["relu"])
    if linear is None:
        return ""
    said = f"Its linear layers are within {plain(linear)} of rank one"
    return f"{said}, its ReLU layers within {plain(relu)}." if relu is not None else f"{said}."


def _worst(values: Mapping[str, float], names: list[str]) -> float | None:
    return max((values[name] for name in names if name in values), default=None)
