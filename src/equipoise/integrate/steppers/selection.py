"""Which element of the Clarke subdifferential a discrete method takes at a kink (T4.5)."""

from typing import Any

import torch

from equipoise.errors import InputError
from equipoise.integrate.margins import Slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.steppers.state import State, velocity_at
from equipoise.integrate.validation import require_real

MINIMUM_NORM = "minimum_norm"
_SWEEPS = 50
_MOST = 1000  # pairs that may sit on their kinks
_STILL = 1e-12


def check_selection(at_kinks: Any) -> None:
    """Refuse what is neither a share from 0 to 1 nor `"minimum_norm"`."""
    if isinstance(at_kinks, str) and at_kinks == MINIMUM_NORM:
        return
    remedy = 'pass at_kinks=0.0, 0.5, 1.0 or "minimum_norm"'
    require_real("at_kinks", at_kinks, remedy, most=1)
    if at_kinks < 0:
        raise InputError(expected="at_kinks to be at least 0", found=repr(at_kinks), remedy=remedy)


def selected_slopes(objective: Objective, state: State, at_kinks: float | str) -> Slopes:
    """The slopes of the state, with those of pairs at exactly `z = 0` chosen.

    The gradient is affine in each of these slopes: that of least norm is found one slope at a time, each step exact.
    Raises `InputError` where more than a thousand pairs sit on their kinks.
    """
    kinks = zip(objective.margins.kinks, state.evaluation.preactivations, state.slopes, strict=True)
    bends = [None if kink.negative_slope is None else (z == 0, kink.negative_slope) for kink, z, _ in kinks]
    if at_kinks == 0 or not any(bend is not None and bool(bend[0].any()) for bend in bends):
        return state.slopes
    share = 0.5 if isinstance(at_kinks, str) else at_kinks
    slopes = tuple(
        slope if bend is None else torch.where(bend[0], bend[1] + share * (1 - bend[1]), slope)
        for slope, bend in zip(state.slopes, bends, strict=True)
    )
    return _least(objective, state, slopes, bends) if isinstance(at_kinks, str) else slopes


def _least(objective: Objective, state: State, slopes: Slopes, bends: list[Any]) -> Slopes:
    """The slopes within their bounds whose gradient is shortest, by descent along one after another."""
    slopes = tuple(slope.clone() for slope in slopes)
    free = [
        (k, place, min(bend[1], 1.0), max(bend[1], 1.0))
        for k, bend in enumerate(bends)
        if bend is not None
        for place in bend[0].flatten().nonzero().squeeze(1).tolist()
    ]
    if len(free) > _MOST:
        raise InputError(
            expected=f"at most {_MOST} pairs of a neuron and an example at exactly z = 0, for the least norm",
            found=str(len(free)),
            remedy="pass at_kinks=0.5, or start elsewhere",
        )
    for _ in range(_SWEEPS):
        largest = 0.0
        for k, place, low, high in free:
            flat = slopes[k].view(-1)
            was = float(flat[place])
            ends = []
            for end in (low, high):
                flat[place] = end
                ends.append(velocity_at(objective, state.weights, slopes, state.evaluation))
            way = ends[1] - ends[0]
            square = float(way @ way)
            share = 0.0 if square == 0 else min(1.0, max(0.0, -float(ends[0] @ way) / square))
            flat[place] = low + share * (high - low) if square > 0 else was
            largest = max(largest, abs(float(flat[place]) - was))
        if largest < _STILL:
            break
    return slopes
