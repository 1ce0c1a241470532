"""The fixed point of an implicit step: its end, slopes and dual weights together, then its midpoint (T6.1, T6.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.graph.piecewise import Piecewise
from equipoise.integrate.implicit.anderson import Anderson
from equipoise.integrate.implicit.dual_problem import TOLERANCE
from equipoise.integrate.implicit.dual_weights import DualWeights
from equipoise.integrate.implicit.kink_crossing import KinkPaths, clamp_slopes
from equipoise.integrate.implicit.step_problem import ActiveProblem, Iterate, StepProblem, WarmStart
from equipoise.integrate.margins.protocol import MarginEvaluation, Slopes, Weights
from equipoise.integrate.margins.readout import Rows
from equipoise.integrate.objective import Cotangents, Objective
from equipoise.integrate.state import State

_ITERATIONS = 60  # after the first, at which a step is given up
_CONVERGED = 1e-7  # change of w₁ relative to ‖w‖ at which a step has converged, however short
_NEGLECTED = 0.1  # the same, as a share of what a second-order step neglects
_TOLERABLE = 1e-6  # the same, where it falls no further
_SHARE = 0.05  # of the step's own error, that a step may be off by where it falls no further
_PATIENCE = 8  # iterations without progress at which a step is given up
_FALLEN = 0.15  # of the largest change, to which it must have fallen in the first `_PATIENCE` iterations
_MIDPOINT_ITERATIONS = 100  # of w_mid alone


@dataclass(frozen=True)
class ImplicitStep:
    """The solution of an implicit step before its midpoint is converged to rounding."""

    objective: Objective  # on the active potentials
    rows: Rows | None  # the active potentials; None: all
    slopes: Slopes
    cotangents: Cotangents  # Dᵀ p̄, frozen
    weights: Weights
    dual: Float[Tensor, " potentials"]
    error: float
    converged: bool
    iterations: int
    visited: int
    kernels: float = 0.0  # operations of kernels and their factors
    temperature: float = 1.0
    off: float = math.nan  # by how much of ‖w‖ the velocity of the start missed the end, at the first iterate

    @property
    def operations(self) -> float:
        """Operations of its solution."""
        return self.iterations * self.objective.operations + self.kernels


def solve_implicit_step(
    step: StepProblem, objective: Objective, rows: Rows | None, dual_weights: DualWeights
) -> ImplicitStep:
    """Iterate `p̄`, slopes and `w_mid` together, with Anderson acceleration, until the end of the step stays.

    Args:
        step: the step on all potentials.
        objective: on the active ones.
        rows: which these are; None where they are all.
        dual_weights: the rule for `p̄`.

    Returns:
        The step, converged or given up: also where it takes more operations than it is worth.
    """
    active, norm = step.restricted(objective, rows), float(step.state.weights.norm())
    entered, paths, history, changes, kernels = step.predicted_end, None, Anderson(), [], 0.0
    after, slopes, warm_start = objective.margins.evaluate(entered), active.slopes, None
    while True:
        left = step.worth - kernels - (len(changes) + 1) * objective.operations
        last = _iterate(active, after, entered, slopes, warm_start, dual_weights, _tolerance(changes, step), left)
        kernels, left = kernels + last.operations, left - last.operations
        changes.append(float((last.end - entered).norm()) / norm)
        off = changes[0] if step.off is None else step.off
        enough = _enough(off, step.size)
        # The first iterate kept the slopes of the step before: it is none of the same map, nor ever the last.
        first = paths is None and objective.margins.kinks and changes[-1] < 1
        if left < 0 or (_finished(changes, enough) and not first):
            break
        history, guess = (history, last) if paths is None else _accelerated(history, entered, last, paths.kinks)
        entered, after = guess.end, objective.margins.evaluate(guess.end)
        paths = paths or KinkPaths.of(active, guess, after)
        slopes, warm_start = paths.slopes(guess, after), guess.warm_start
    error, learnt, dual = last.error(step), 2 if paths and paths.kinks else 0, step.state.dual
    return ImplicitStep(
        objective=objective,
        rows=rows,
        slopes=last.slopes,
        cotangents=last.cotangents,
        weights=last.end,
        dual=dual if rows is None or last.warm_start is None else last.warm_start.scattered(rows, dual),
        error=error,
        converged=left >= 0 and changes[-1] <= max(enough, _TOLERABLE, _SHARE * error),
        iterations=len(changes),
        visited=(len(changes) + learnt) * objective.count,
        kernels=kernels,
        off=off,
    )


def _iterate(
    active: ActiveProblem,
    after: MarginEvaluation,
    end: Weights,
    slopes: Slopes,
    warm_start: WarmStart | None,
    dual_weights: DualWeights,
    tolerance: float,
    most: float,
) -> Iterate:
    """The map of the fixed point: from an end of the step, by midpoint and `p̄`, to the next."""
    start, span = active.step.state.weights, active.step.span
    linearization = active.objective.linearize((start + end) / 2, slopes)
    found = dual_weights.average(linearization, active.before, after, warm_start, tolerance, most)
    return Iterate(
        end=start + span * linearization.vjp(found.mean),
        slopes=slopes,
        warm_start=found.warm_start,
        cotangents=found.mean,
        doubt=found.doubt,
        operations=found.operations,
        linearization=linearization,
    )


def _accelerated(
    history: Anderson, entered: Weights, last: Iterate, kinks: Sequence[Piecewise]
) -> tuple[Anderson, Iterate]:
    """The next guess of end, slopes and `p̄`, from this iterate and those before."""
    mean = () if last.warm_start is None else (last.warm_start.mean,)
    history, (end, *others) = history.next_iterate(entered, (last.end, *last.slopes, *mean))
    slopes = tuple(clamp_slopes(kink, slope) for kink, slope in zip(kinks, others[: len(kinks)], strict=True))
    warm_start = None if last.warm_start is None else last.warm_start._replace(mean=others[len(kinks)])
    return history, replace(last, end=end, slopes=slopes, warm_start=warm_start)


def _tolerance(changes: Sequence[float], step: StepProblem) -> float:
    """The residual of the dual problem: a hundredth of the last change, in units of the step."""
    return max(TOLERANCE, min(0.01, 0.01 * changes[-1] / step.size)) if changes else 0.01


def _enough(prediction_error: float, size: float) -> float:
    """The change at which a step has converged, well within its own error.

    Where the velocity changes by the share `δ` of itself, as the error of the prediction shows, a second-order step
    neglects about `size · δ³`.
    """
    return max(_CONVERGED, _NEGLECTED * size * min(prediction_error / size, 0.5) ** 3)


def _finished(changes: Sequence[float], enough: float) -> bool:
    """Whether the iteration has converged, is too slow, or is given up.

    Patience begins after the first iterate, whose slopes are those of the step before: a short step hardly moves by
    them.
    """
    own = changes[1:] or changes
    slow = len(own) == _PATIENCE and min(own) > _FALLEN * max(own)
    return changes[-1] <= enough or slow or _given_up(own, _ITERATIONS)


def _given_up(changes: Sequence[float], most: int) -> bool:
    """Whether changes are not finite or large, too many, or have not fallen in the last `_PATIENCE` iterations."""
    out = not changes[-1] < 1 or len(changes) >= most
    return out or (len(changes) > _PATIENCE and min(changes[-_PATIENCE:]) > min(changes[:-_PATIENCE]))


def converge_midpoint(state: State, solved: ImplicitStep, span: float) -> tuple[Weights, float, int]:
    """The end of the step with `w_mid` converged to rounding, all else frozen: the only source of drift in the laws.

    Accelerated, for where cotangents nearly cancel a step of moderate length is long against the curvature of the
    margins, and the map of `w_mid` onto itself hardly contracts, or does not (T6.2). Over a long span `h` the rounding
    of `h Jᵀf` is all that is left, a random amount at every iteration: the end of least mismatch is returned.

    Returns:
        The weights, their relative mismatch `‖w₁ - w₀ - h J(w_mid)ᵀ f‖ / ‖w₁‖`, and the iterations.
    """
    rounding, history, entered, mismatches = torch.finfo(state.weights.dtype).eps, Anderson(), solved.weights, []
    nearest = entered
    while True:
        linearization = solved.objective.margins.linearize((state.weights + entered) / 2, solved.slopes)
        end = state.weights + span * linearization.vjp(solved.cotangents)
        mismatches.append(float((end - entered).norm() / end.norm()))
        if mismatches[-1] <= min(mismatches):
            nearest = end
        if at_rounding(mismatches, rounding) or _given_up(mismatches, _MIDPOINT_ITERATIONS):
            return nearest, min(mismatches), len(mismatches)
        history, (entered,) = history.next_iterate(entered, (end,))


def at_rounding(mismatches: Sequence[float], rounding: float) -> bool:
    """Whether an iteration is as near to its fixed point as rounding permits."""
    *_, previous, last = (math.inf, math.inf, *mismatches)
    return last <= rounding / 2 or (last < 50 * rounding and last >= previous / 2)
