"""Steppers: how gradient flow is advanced. Values with `init` and `step`; whatever changes is in the state."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.entropic import extrapolated_average
from equipoise.integrate.margins import Evaluation, Slopes, Weights, local_slopes, secant_slopes
from equipoise.integrate.objective import Forces, Objective, Tangent
from equipoise.integrate.readout import Rows
from equipoise.integrate.slopes import Settling

_SETTLING = 24  # iterations of w_mid, slopes and p̄ together before a step is given up
_SETTLED = 1e-4  # change of w₁ relative to ‖w‖ at which slopes that chatter are frozen as they are
_CONVERGING = 100  # iterations of w_mid alone
_NEGLIGIBLE = 25.0  # an example whose u exceeds the least by this weighs under e^-25 of the heaviest
_UNSEEN = 1e-3  # relative margin by which an example outside the active set may fall below the others in a step


@dataclass(frozen=True)
class State:
    """Everything a step needs; saved, it resumes a run bit for bit."""

    weights: Weights
    evaluation: Evaluation
    slopes: Slopes  # settled slopes of the last step: pairs that slide keep theirs
    dual: Float[Tensor, " potentials"]  # p of the last implicit step, the next one's warm start
    velocity: Weights | None  # mean velocity over the last implicit step: where margins balance, the next one's too
    sizes: dict[str, float]  # relative size of the next step, by route
    log_time: float = -math.inf  # log of physical time
    temperature: float = 1.0  # of the entropic term; above 1 at the precision floor
    examples_visited: int = 0  # examples propagated forward and backward, all told


@dataclass(frozen=True)
class Step:
    """What one accepted step did."""

    route: str
    size: float  # ‖Δw‖ / ‖w‖
    error: float  # local error estimate, relative to ‖w‖
    rejected: int
    active: int  # potentials that entered the implicit problem
    mismatch: float  # relative distance of w_mid from self-consistency: what laws may drift by


@dataclass(frozen=True)
class Outlook:
    """The flow at the start of a step: its velocity and where that would lead."""

    potential: Float[Tensor, " potentials"]  # u
    velocity: Weights  # -∇ log R, or its mean over the last implicit step
    rates: Float[Tensor, " potentials"]  # du/dτ
    speed: float  # ‖velocity‖ / ‖w‖


@dataclass(frozen=True)
class Stretch:
    """The stretch of flow that a step is to cover: from where, how far, on which problem."""

    objective: Objective
    state: State
    outlook: Outlook
    span: float  # h

    @property
    def size(self) -> float:
        """`‖Δw‖ / ‖w‖` at the velocity of the start."""
        return self.span * self.outlook.speed


@dataclass(frozen=True)
class Attempt:
    """A step before its midpoint is made exact, and whether it may be accepted."""

    on: Objective  # the potentials that enter
    rows: Rows | None  # which they are; None: all
    settling: Settling
    forces: Forces  # Dᵀ p̄, frozen
    weights: Weights
    dual: Float[Tensor, " potentials"]
    error: float
    settled: bool
    visited: int
    temperature: float = 1.0


class Warm(NamedTuple):
    """Solutions of the implicit problem, to start the next from; `mean` is `p̄`."""

    whole: Tensor
    first: Tensor
    second: Tensor
    mean: Tensor


# Given the linearisation, both ends on its examples, and a warm start: (mean forces, their doubt, next warm start).
Average = Callable[[Tangent, Evaluation, Evaluation, Warm | None], tuple[Forces, Forces, Warm | None]]


@dataclass(frozen=True)
class Pass:
    """One pass of the iteration that settles a step: what it led to."""

    settling: Settling
    end: Weights
    forces: Forces  # Dᵀ p̄
    doubt: Forces  # Dᵀ (p̄ - p of lower order)
    here: Tangent
    warm: Warm | None


@dataclass(frozen=True)
class EntropicMidpoint:
    """The entropic midpoint step (THEORY T6.1–T6.3): second order, free of stiffness, exact in every quadratic law.

    Each step is the implicit midpoint rule on a network with frozen secant slopes. The weights `p̄` of the examples come
    from the cheaper of two routes per unit of progress, by a count of operations: `trapezoid`,
    `p̄ = ½(softmax(-u₀) + softmax(-u₁))`, while the margins move by about one a step; `entropic`, the extrapolated
    solution of the stiff system of margins, at any depth of loss.

    `step_size` is the largest `‖Δw‖/‖w‖` of a step; `tolerance` bounds the difference of `p̄` at two orders, in
    the same unit. A step that does not settle, or exceeds it, is rejected and halved.
    """

    step_size: float = 0.05
    tolerance: float = 0.01
    smallest: float = 1e-10  # a step below this has stalled

    def init(self, objective: Objective, weights: Weights) -> State:
        """The state at the start of a run."""
        evaluation = objective.margins.evaluate(weights)
        uniform = torch.full_like(evaluation.margins, 1 / evaluation.margins.numel()).flatten()
        sizes = {"trapezoid": self.step_size, "entropic": self.step_size}
        return State(weights, evaluation, local_slopes(objective.margins, evaluation), uniform, None, sizes)

    def step(self, objective: Objective, state: State) -> tuple[State, Step] | None:
        """One accepted step, or `None` when no step above `smallest` is acceptable or the velocity vanishes."""
        outlook = _outlook(objective, state)
        sizes, rejected, visited = dict(state.sizes), 0, state.examples_visited + objective.count
        while outlook.speed > 0 and math.isfinite(outlook.speed):
            route = self._cheaper(objective, outlook, sizes)
            stretch = Stretch(objective, state, outlook, sizes[route] / outlook.speed)
            attempt = _ROUTES[route](stretch)
            visited += attempt.visited
            if attempt.settled and attempt.error <= self.tolerance:
                sizes[route] = min(self.step_size, sizes[route] * 1.3)
                after, size, mismatch = _advanced(stretch, attempt)
                after = replace(after, sizes=sizes, examples_visited=after.examples_visited + visited)
                return after, Step(
                    route,
                    size,
                    attempt.error,
                    rejected,
                    len(attempt.dual if attempt.rows is None else attempt.rows),
                    mismatch,
                )
            sizes[route], rejected = sizes[route] / 2, rejected + 1
            if sizes[route] < self.smallest:
                break
        return None

    def _cheaper(self, objective: Objective, outlook: Outlook, sizes: dict[str, float]) -> str:
        """The route with the lower estimated cost per unit of progress, from counts of operations alone."""
        parameters = len(outlook.velocity)
        fastest = float(outlook.rates.abs().max())
        gentle = outlook.speed / fastest if fastest > 0 else math.inf  # the size at which a margin moves by one
        active = len(_active(outlook, sizes["entropic"] / outlook.speed))
        passes = 16 * 6 * parameters
        newton = 500 * active**3 / 3  # three solves of some four steps each, sixteen times, at LAPACK's pace
        trapezoid = passes * objective.count / min(sizes["trapezoid"], gentle)
        entropic = (passes * active + newton + 2 * parameters * objective.count) / sizes["entropic"]
        if sizes["trapezoid"] > gentle and trapezoid < entropic:
            sizes["trapezoid"] = gentle
        return "trapezoid" if trapezoid < entropic else "entropic"


def _outlook(objective: Objective, state: State) -> Outlook:
    here = objective.linearise(state.weights, state.slopes)
    velocity = here.pullback(objective.forces(state.evaluation)) if state.velocity is None else state.velocity
    speed = float(velocity.norm() / state.weights.norm())
    return Outlook(objective.potential(state.evaluation), velocity, here.pushforward(velocity), speed)


def _active(outlook: Outlook, span: float) -> Tensor:
    """Examples that weigh at the start of the step, or would at its end."""
    after = outlook.potential + span * outlook.rates
    travelled = span * outlook.rates.abs().max()
    near = (outlook.potential - outlook.potential.min() < _NEGLIGIBLE) | (
        after - after.min() < _NEGLIGIBLE + 0.01 * travelled
    )
    return near.nonzero().squeeze(1)


def _trapezoid(stretch: Stretch) -> Attempt:
    """The cheap route: all examples, no kernel."""
    objective = stretch.objective

    def average(here: Tangent, before: Evaluation, after: Evaluation, warm: Warm | None) -> tuple[Forces, Forces, None]:
        start, end = objective.forces(before), objective.forces(after)
        return (start + end) / 2, (end - start) / 2, None

    return _settle(stretch, objective, None, average)


def _entropic(stretch: Stretch) -> Attempt:
    """The implicit route on the potentials that matter, verified on all of them afterwards."""
    objective, potential = stretch.objective, stretch.outlook.potential
    temperature = max(1.0, 4 * torch.finfo(potential.dtype).eps * float(potential.abs().max()))
    rows, visited = _active(stretch.outlook, stretch.span), 0
    while True:
        attempt = _entropic_on(stretch, rows, temperature)
        visited += attempt.visited + objective.count // 3
        attempt = replace(attempt, visited=visited, temperature=temperature)
        if not attempt.settled:
            return attempt
        missed = _missed(objective.potential(objective.margins.evaluate(attempt.weights)), rows)
        if len(missed) == 0:
            return attempt
        rows = torch.cat([rows, missed]).sort().values


def _missed(after: Tensor, rows: Tensor) -> Tensor:
    """Examples outside the active set that weigh at the end of the step, beyond what its own error explains."""
    level = after[rows].min()
    outside = torch.ones_like(after, dtype=torch.bool)
    outside[rows] = False
    return (outside & (after < level + _NEGLIGIBLE - _UNSEEN * level.abs())).nonzero().squeeze(1)


def _entropic_on(stretch: Stretch, rows: Rows, temperature: float) -> Attempt:
    start, span, objective = stretch.state.dual[rows], stretch.span, stretch.objective.restricted(rows)

    def average(here: Tangent, at: Evaluation, then: Evaluation, warm: Warm | None) -> tuple[Forces, Forces, Warm]:
        kernel, before, after = here.kernel(), objective.potential(at), objective.potential(then)
        # What the frozen kernel does not explain of the way to u₁; with it the margins end where they really are.
        drift = torch.zeros_like(before) if warm is None else after - before - span * (kernel @ warm.mean)
        starts = (start, start, start) if warm is None else (warm.whole, warm.first, warm.second)
        whole, first, second = (
            solution.weights for solution in extrapolated_average(span * kernel, before, drift, starts, temperature)
        )
        mean = first + second - whole
        return here.forces(mean), here.forces(mean - whole), Warm(whole, first, second, mean)

    return _settle(stretch, objective, rows, average)


def _settle(stretch: Stretch, on: Objective, rows: Rows | None, average: Average) -> Attempt:
    """Iterate p̄, slopes and w_mid together until the end of the step moves by less than its own error."""
    state, norm = stretch.state, float(stretch.state.weights.norm())
    examples = None if rows is None else stretch.objective.examples(rows)
    before = state.evaluation if examples is None else state.evaluation.take(examples)
    slopes = state.slopes if examples is None else tuple(slope[examples] for slope in state.slopes)
    end = state.weights + stretch.span * stretch.outlook.velocity
    last = _pass(stretch, on, before, average, end, Settling.start(slopes), None)
    changes = [float((last.end - end).norm()) / norm]
    while len(changes) < _SETTLING and not _finished(changes, stretch.size) and not _diverges(changes):
        end = last.end
        last = _pass(stretch, on, before, average, end, last.settling, last.warm)
        changes.append(float((last.end - end).norm()) / norm)
    return Attempt(
        on=on,
        rows=rows,
        settling=last.settling,
        forces=last.forces,
        weights=last.end,
        dual=state.dual if rows is None or last.warm is None else _scattered(last.warm.whole, rows, state.dual),
        error=stretch.span * float(last.here.pullback(last.doubt).norm()) / norm,
        settled=changes[-1] <= max(stretch.size**3, _SETTLED),
        visited=len(changes) * on.count,
    )


def _pass(
    stretch: Stretch,
    on: Objective,
    before: Evaluation,
    average: Average,
    end: Weights,
    settling: Settling,
    warm: Warm | None,
) -> Pass:
    """From a guess of the end to the next: slopes, midpoint, weights of the examples, end."""
    start = stretch.state.weights
    after = on.margins.evaluate(end)
    settling = settling.towards(secant_slopes(on.margins, before, after))
    here = on.linearise((start + end) / 2, settling.slopes)
    forces, doubt, warm = average(here, before, after, warm)
    return Pass(settling, start + stretch.span * here.pullback(forces), forces, doubt, here, warm)


def _finished(changes: list[float], size: float) -> bool:
    """The last change is of the order of the step's own error, `size³`; or acceptable, and falling no further."""
    if len(changes) < 2:
        return False
    stuck = len(changes) > 10 or changes[-1] > 0.8 * changes[-2]
    return changes[-1] <= max(size**3, 1e-14) or (stuck and changes[-1] <= _SETTLED)


def _diverges(changes: list[float]) -> bool:
    """No progress over the last four iterations, or worse than none."""
    if changes and not changes[-1] < 1:  # further than ‖w‖, or not a number
        return True
    return len(changes) > 8 and min(changes[-4:]) > min(changes[:-4])


def _advanced(stretch: Stretch, attempt: Attempt) -> tuple[State, float, float]:
    """Converge the midpoint with everything else frozen, then move: the state after, `‖Δw‖/‖w‖`, and the mismatch."""
    state, objective, span = stretch.state, stretch.objective, stretch.span
    weights, mismatch, iterations = _converged(state, attempt, span)
    evaluation = objective.margins.evaluate(weights)
    moved = weights - state.weights
    after = State(
        weights=weights,
        evaluation=evaluation,
        slopes=_merged(local_slopes(objective.margins, evaluation), objective, attempt),
        dual=attempt.dual,
        velocity=None if attempt.rows is None else moved / span,
        sizes=state.sizes,
        log_time=float(np.logaddexp(state.log_time, _physical_time(stretch, evaluation))),
        temperature=attempt.temperature,
        examples_visited=iterations * attempt.on.count,
    )
    return after, float(moved.norm() / state.weights.norm()), mismatch


def _converged(state: State, attempt: Attempt, span: float) -> tuple[Weights, float, int]:
    """Fixed-point iteration of `w_mid` alone, to rounding: the only source of drift in the laws (T6.2)."""
    end, mismatch = attempt.weights, math.inf
    for iteration in range(_CONVERGING):
        here = attempt.on.margins.linearise((state.weights + end) / 2, attempt.settling.slopes)
        moved = state.weights + span * here.pullback(attempt.forces)
        previous, mismatch = mismatch, float((moved - end).norm() / moved.norm())
        end = moved
        if mismatch <= 1e-16 or (mismatch < 1e-14 and mismatch >= previous / 2):
            return end, mismatch, iteration + 1
    return end, mismatch, _CONVERGING


def _merged(local: Slopes, objective: Objective, attempt: Attempt) -> Slopes:
    """Settled slopes of the active examples, one-sided slopes of the others."""
    if attempt.rows is None:
        return attempt.settling.slopes
    for all_rows, active in zip(local, attempt.settling.slopes, strict=True):
        all_rows[objective.examples(attempt.rows)] = active
    return local


def _scattered(values: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    scattered = torch.zeros_like(like)
    scattered[rows] = values
    return scattered


def _physical_time(stretch: Stretch, after: Evaluation) -> float:
    """`log ∫ dτ / R`, the physical time of a step, with `log R` linear in `τ` across it."""
    start = stretch.objective.log_risk(stretch.state.evaluation)
    fall = start - stretch.objective.log_risk(after)
    shape = 0.0 if abs(fall) < 1e-12 else math.log(abs(-math.expm1(-abs(fall)) / fall))
    return math.log(stretch.span) - start + max(fall, 0.0) + shape


_ROUTES = {"trapezoid": _trapezoid, "entropic": _entropic}
