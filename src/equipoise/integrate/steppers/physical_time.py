"""Physical time along a step, the `t` of `dw/dt = -∇R`, and the estimate of its error."""

import math
import sys

import numpy as np

from equipoise.integrate.margins.protocol import MarginEvaluation
from equipoise.integrate.objective import Objective
from equipoise.integrate.state import PhysicalTime, State

_PIECES = 400  # of the way over which time is integrated
_STILL = 1e-6  # of the mean speed, the least that is counted at an end: time would be infinite where the flow ends

Ends = tuple[float, float]
Speeds = tuple[float, float, float]


def elapsed(
    objective: Objective, before: State, after: MarginEvaluation, length: float, speeds: tuple[float, float]
) -> PhysicalTime:
    """The time at the end of a step of this `length`: `speeds` are `‖∇ log R‖` at its midpoint and its end."""
    log_risks = objective.log_risk(before.evaluation), objective.log_risk(after)
    return before.time.later(time_of_step(log_risks, length, (before.gradient_norm, *speeds)))


def time_of_step(log_risks: Ends, length: float, speeds: Speeds) -> PhysicalTime:
    """`∫ dℓ/(‖∇ log R‖ R)`, the time that the flow takes over a step of this `length`, and an estimate of its error.

    `speeds` are `‖∇ log R‖` at its start, midpoint and end. Along it `log R` is the cubic with `d log R/dℓ` minus the
    speed at both ends (kept monotone as by Fritsch & Carlson 1980), the logarithm of the speed a parabola.

    The error is the difference from the same time along the other variable of the step, `∫ dτ/R` over its span
    `h = length/‖∇ log R‖` at the midpoint, `log R` the cubic in `τ` with minus the squared speed at both ends. Both are
    of second order, and differ where the speed changes within the step, and where the step is no path of the flow.

    >>> step = time_of_step((0.0, -1e4), 1.0, (1e4, 1e4, 1e4))  # R falls as e^(-1e4 ℓ)
    >>> math.isclose(step.log, 1e4 - math.log(1e8)), step.relative_error < 1e-12
    (True, True)
    """
    least = max(_STILL * speeds[1], sys.float_info.min)
    start, middle, end = (max(speed, least) for speed in speeds)
    fall, span = max(log_risks[0] - log_risks[1], 0.0), length / middle
    along = math.log(length) + _log_mean(fall, (start * length, end * length), (start, middle, end))
    across = math.log(span) + _log_mean(fall, (start**2 * span, end**2 * span), (1.0, 1.0, 1.0))
    log_error = max(along, across) + math.log(max(-math.expm1(-abs(along - across)), sys.float_info.min))
    return PhysicalTime(along - log_risks[1], log_error - log_risks[1])


def _log_mean(fall: float, slopes: Ends, speeds: Speeds) -> float:
    """`log ∫₀¹ R(1)/(R(x) speed(x)) dx`, `slopes` those of `-log R` at both ends.

    Where `R` falls by many factors nearly all of it is at the end: the mesh is graded towards it, and the integrand
    taken for an exponential on each of its pieces.
    """
    leaving, arriving = (min(slope, 3 * fall) for slope in slopes)
    first, middle, last = map(math.log, speeds)
    back = np.concatenate([[0.0], np.geomspace(1e-3 / (1 + arriving), 1.0, _PIECES)])  # from the end
    ahead = 1 - back
    depth = -fall * back**2 * (3 - 2 * back) - back * ahead * (arriving * ahead - leaving * back)
    speed = first * back * (2 * back - 1) + 4 * middle * back * ahead + last * ahead * (2 * ahead - 1)
    pieces, widths = depth - speed, np.diff(back)
    drops = np.abs(np.diff(pieces))
    means = np.where(drops < 1e-6, 1 - drops / 2, -np.expm1(-drops) / np.maximum(drops, 1e-6))
    return float(np.logaddexp.reduce(np.maximum(pieces[1:], pieces[:-1]) + np.log(means) + np.log(widths)))
