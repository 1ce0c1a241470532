"""One step of the midpoint rule with frozen slopes, from a guess of its end to self-consistency (THEORY T6.1, T6.2)."""

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
from equipoise.integrate.steppers.passes import Average, Pass, Stretch, Warm
from equipoise.integrate.steppers.state import State
from equipoise.integrate.steppers.ways import Ways

_PASSES = 60  # passes after which a step is given up
_SETTLED = 1e-7  # change of w₁ relative to ‖w‖ at which a step is settled
_PRECISE = 1e-11  # the same for a step that is cut to end at a goal
_TOLERABLE = 1e-6  # the same, where it falls no further
_SHARE = 0.05  # of the step's own error, that a step may be unsettled by where it falls no further
_PATIENCE = 16  # passes without progress before a step is given up
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
    state, norm = stretch.state, float(stretch.state.weights.norm())
    examples = None if rows is None else stretch.objective.examples(rows)
    before = state.evaluation if examples is None else state.evaluation.take(examples)
    slopes = state.slopes if examples is None else tuple(slope[examples] for slope in state.slopes)
    guess = ways = None
    end, history, changes = state.weights + stretch.span * stretch.outlook.velocity, Anderson(), []
    while True:
        entered = end if guess is None else guess.end
        ends = before, on.margins.evaluate(entered)
        if guess is not None:
            ways = ways or Ways.of(stretch, on, examples, guess, ends[1])
            slopes = ways.slopes(guess, ends[1])
        tolerance = _tolerance(changes, stretch.size)
        last = _pass(stretch, on, average, entered, ends, slopes, None if guess is None else guess.warm, tolerance)
        changes.append(float((last.end - entered).norm()) / norm)
        if _ends(changes, _PRECISE if stretch.precise else _SETTLED):
            break
        # The first pass kept its slopes, so it is no iterate of the same map.
        history, guess = (history, last) if guess is None else last.mixed(history, entered, on.margins)
    error = last.error(stretch)
    dual = state.dual
    if rows is not None and last.warm is not None:
        dual = _scattered(last.warm.solutions[0].weights, rows, dual)
    return Attempt(
        on=on,
        rows=rows,
        slopes=last.slopes,
        forces=last.forces,
        weights=last.end,
        dual=dual,
        error=error,
        settled=changes[-1] <= max(_TOLERABLE, _SHARE * error),
        passes=len(changes),
        visited=(len(changes) + (2 if ways and ways.kinks else 0)) * on.count,
    )


def _pass(
    stretch: Stretch,
    on: Objective,
    average: Average,
    end: Weights,
    ends: tuple[Evaluation, Evaluation],
    slopes: Slopes,
    warm: Warm | None,
    tolerance: float,
) -> Pass:
    """From a guess of the end, by midpoint and weights of the examples, to the next."""
    start = stretch.state.weights
    here = on.linearise((start + end) / 2, slopes)
    forces, doubt, warm = average(here, *ends, warm, tolerance)
    return Pass(start + stretch.span * here.pullback(forces), slopes, warm, forces, doubt, here)


def _tolerance(changes: list[float], size: float) -> float:
    """How well the implicit problem is to be solved: a hundredth of what the last pass moved, in the step's unit."""
    return max(TOLERANCE, min(0.01, 0.01 * changes[-1] / size)) if changes else 0.01


def _ends(changes: list[float], settled: float) -> bool:
    """Settled; or out of hand, out of patience, or out of time."""
    if changes[-1] <= settled or not changes[-1] < 1 or len(changes) >= _PASSES:
        return True
    return len(changes) > _PATIENCE and min(changes[-_PATIENCE:]) > min(changes[:-_PATIENCE])


def converged(state: State, attempt: Attempt, span: float) -> tuple[Weights, float, int]:
    """Fixed-point iteration of `w_mid` alone, to rounding: the only source of drift in the laws (T6.2)."""
    end, mismatch, rounding = attempt.weights, math.inf, torch.finfo(state.weights.dtype).eps
    for iteration in range(_CONVERGING):
        here = attempt.on.margins.linearise((state.weights + end) / 2, attempt.slopes)
        moved = state.weights + span * here.pullback(attempt.forces)
        previous, mismatch = mismatch, float((moved - end).norm() / moved.norm())
        end = moved
        if mismatch <= rounding / 2 or (mismatch < 50 * rounding and mismatch >= previous / 2):
            return end, mismatch, iteration + 1
    return end, mismatch, _CONVERGING


def _scattered(values: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(like.shape).index_copy(0, rows, values)
