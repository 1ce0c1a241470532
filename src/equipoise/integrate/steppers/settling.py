"""One step of the midpoint rule with frozen slopes, from a guess of its end to self-consistency (T6.1, T6.2)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.acceleration import Anderson
from equipoise.integrate.entropic import TOLERANCE
from equipoise.integrate.margins import Evaluation, Slopes, Weights
from equipoise.integrate.objective import Forces, Objective
from equipoise.integrate.readout import Rows
from equipoise.integrate.steppers.passes import Average, Part, Pass, Stretch, Warm
from equipoise.integrate.steppers.state import State
from equipoise.integrate.steppers.ways import Ways

_PASSES = 60  # passes after the first, after which a step is given up
_SETTLED = 1e-7  # change of w₁ relative to ‖w‖ at which a step is settled, however short
_NEGLECTED = 0.1  # the same, as a share of what a second-order step neglects
_PRECISE = 1e-11  # the same for a step that is cut to end at a goal
_TOLERABLE = 1e-6  # the same, where it falls no further
_SHARE = 0.05  # of the step's own error, that a step may be unsettled by where it falls no further
_PATIENCE = 8  # passes without progress before a step is given up
_FALLEN = 0.15  # of the largest change, to which it must have fallen in the first so many
_CONVERGING = 100  # iterations of w_mid alone


@dataclass(frozen=True)
class Attempt:
    """A step before its midpoint is made exact, and whether it may be accepted."""

    on: Objective  # the potentials that enter
    rows: Rows | None  # which they are; None: all
    slopes: Slopes
    forces: Forces  # Dᵀ p̄, frozen
    weights: Weights
    dual: Float[Tensor, " potentials"]
    error: float
    settled: bool
    passes: int
    visited: int
    temperature: float = 1.0


def settle(stretch: Stretch, on: Objective, rows: Rows | None, average: Average) -> Attempt:
    """Iterate p̄, slopes and w_mid together, accelerated, until the end of the step stays."""
    part, norm = stretch.taken(on, rows), float(stretch.state.weights.norm())
    entered, ways, history, changes = stretch.forecast, None, Anderson(), []
    last = _pass(
        part, on.margins.evaluate(entered), entered, part.slopes, None, average, _tolerance(changes, stretch.size)
    )
    while True:
        changes.append(float((last.end - entered).norm()) / norm)
        enough = _PRECISE if stretch.precise else _enough(changes[0], stretch.size)
        # The first pass kept the slopes of the step before: no iterate of the same map, nor ever the last.
        if _ends(changes, enough) and not (ways is None and on.margins.kinks and changes[-1] < 1):
            break
        history, guess = (history, last) if ways is None else last.mixed(history, entered, on.margins)
        entered, after = guess.end, on.margins.evaluate(guess.end)
        ways = ways or Ways.of(part, guess, after)
        slopes = ways.slopes(guess, after)
        last = _pass(part, after, entered, slopes, guess.warm, average, _tolerance(changes, stretch.size))
    error, learnt = last.error(stretch), 2 if ways and ways.kinks else 0
    return Attempt(
        on=on,
        rows=rows,
        slopes=last.slopes,
        forces=last.forces,
        weights=last.end,
        dual=stretch.state.dual if rows is None or last.warm is None else last.warm.scattered(rows, stretch.state.dual),
        error=error,
        settled=changes[-1] <= max(enough, _TOLERABLE, _SHARE * error),
        passes=len(changes),
        visited=(len(changes) + learnt) * on.count,
    )


def _pass(
    part: Part, after: Evaluation, end: Weights, slopes: Slopes, warm: Warm | None, average: Average, tolerance: float
) -> Pass:
    """From a guess of the end, by midpoint and weights of the examples, to the next."""
    start, span = part.stretch.state.weights, part.stretch.span
    here = part.on.linearise((start + end) / 2, slopes)
    forces, doubt, warm = average(here, part.before, after, warm, tolerance)
    return Pass(start + span * here.pullback(forces), slopes, warm, forces, doubt, here)


def _tolerance(changes: list[float], size: float) -> float:
    """How well the implicit problem is to be solved: a hundredth of what the last pass moved, in the step's unit."""
    return max(TOLERANCE, min(0.01, 0.01 * changes[-1] / size)) if changes else 0.01


def _enough(forecast: float, size: float) -> float:
    """The change at which a step is settled, well within its own error.

    Where the velocity changes by the share `δ` of itself, as the distance from the `forecast` tells, a second-order
    step neglects about `size · δ³`.
    """
    return max(_SETTLED, _NEGLECTED * size * min(forecast / size, 0.5) ** 3)


def _ends(changes: list[float], settled: float) -> bool:
    """Settled, or given up: after so many passes they must have fallen by so much, whatever follows.

    Patience begins after the first pass, whose slopes are those of the step before: a short step hardly moves by them.
    """
    slow = len(changes) == _PATIENCE and min(changes) > _FALLEN * max(changes)
    return changes[-1] <= settled or slow or _given_up(changes[1:] or changes, _PASSES)


def _given_up(changes: list[float], most: int) -> bool:
    """Out of hand, out of time, or out of patience: the last passes brought none nearer than those before."""
    out = not changes[-1] < 1 or len(changes) >= most
    return out or (len(changes) > _PATIENCE and min(changes[-_PATIENCE:]) > min(changes[:-_PATIENCE]))


def converged(state: State, attempt: Attempt, span: float) -> tuple[Weights, float, int]:
    """`w_mid` alone iterated to rounding, with all else frozen: the only source of drift in the laws (T6.2).

    Accelerated, for where forces nearly cancel a step of moderate length is long against the curvature of the margins,
    and the map of `w_mid` onto itself hardly contracts, or does not. Over a long time `h` the rounding of `h Jᵀf` is
    all that is left, a random amount in every pass: the end that misses itself least is returned, with by how much.
    """
    rounding, history, entered, mismatches = torch.finfo(state.weights.dtype).eps, Anderson(), attempt.weights, []
    nearest = entered
    while True:
        here = attempt.on.margins.linearise((state.weights + entered) / 2, attempt.slopes)
        end = state.weights + span * here.pullback(attempt.forces)
        mismatches.append(float((end - entered).norm() / end.norm()))
        if mismatches[-1] <= min(mismatches):
            nearest = end
        if exact(mismatches, rounding) or _given_up(mismatches, _CONVERGING):
            return nearest, min(mismatches), len(mismatches)
        history, (entered,) = history.mixed(entered, (end,))


def exact(mismatches: list[float], rounding: float) -> bool:
    """Whether an iteration is as near to its end as rounding lets it come."""
    *_, previous, last = (math.inf, math.inf, *mismatches)
    return last <= rounding / 2 or (last < 50 * rounding and last >= previous / 2)
