"""A watched training for the eye: a summary in text, and curves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from equipoise.errors import InputError, one_line, visible

if TYPE_CHECKING:
    from equipoise.monitor.log import Log

_SHOWN = 12  # matrices in a summary
_CURVES = ("stable_rank", "alignment_next", "relative_drift", "relative_drift_estimate", "residual", "dead")
_LOGARITHMIC = ("relative_drift", "relative_drift_estimate", "residual", "mismatch", "misalignment_next")
_MATRIX = ("sigma_1", "stable_rank", "rank_one_residual")


def summary(log: "Log") -> str:
    """Cost, alarms, what is off, and each matrix at the start and at the end; what does not show in names, escaped."""
    return "\n".join(map(visible, _lines(log)))


def _lines(log: "Log") -> list[str]:
    meter = log.meter
    lines = [
        f"watched {log.steps} steps in {meter.looks + 1} looks: {log.overhead:.2%} of the training's time"
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
    width = max(map(len, table.place))
    lines = [" ".join([f"{'matrix':{width}}", *(f"{name:>23}" for name in _MATRIX)])]
    for place, rows in list(table.groupby("place", sort=False))[:_SHOWN]:
        ends = [rows[rows.quantity == name].value for name in _MATRIX]
        told = [f"{values.iloc[0]:10.4g} → {values.iloc[-1]:10.4g}" for values in ends]
        lines.append(" ".join([f"{place!s:{width}}", *told]))
    hidden = table.place.nunique() - _SHOWN
    return [*lines, f"and {hidden} more"] if hidden > 0 else lines


def figure(table: pd.DataFrame, quantities: Sequence[str]) -> Any:
    """One panel for each quantity, a line a place.

    Raises `InputError` for a quantity that was not recorded, naming those that were.
    """
    from matplotlib.figure import Figure

    known = table.quantity.unique()
    chosen = list(quantities) or [quantity for quantity in _CURVES if quantity in known]
    strange = [quantity for quantity in chosen if quantity not in known]
    if strange or not chosen:
        raise InputError(
            expected="a recorded quantity",
            found=", ".join(strange) or "no records",
            remedy=f"choose among {', '.join(sorted(known)) or 'none yet: take a step first'}",
        )
    drawn = Figure(figsize=(5.5, 2.6 * len(chosen)), layout="constrained")
    for axes, quantity in zip(drawn.subplots(len(chosen), squeeze=False)[:, 0], chosen, strict=True):
        _panel(axes, table.loc[table.quantity == quantity], quantity)
    return drawn


def _panel(axes: Any, rows: pd.DataFrame, quantity: str) -> None:
    for place, curve in rows.groupby("place", sort=False):
        axes.plot(curve.step, curve.value, label=place, linewidth=1.2)
    if quantity in _LOGARITHMIC and (rows.value > 0).any():
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel=quantity.replace("_", " "))
    if 1 < rows.place.nunique() <= _SHOWN:
        axes.legend(fontsize="x-small", frameon=False)
