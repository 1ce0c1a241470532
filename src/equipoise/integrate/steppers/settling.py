"""One step of the midpoint rule with frozen slopes, from a guess of its end to self-consistency (THEORY T6.1, T6.2)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.acceleration import Anderson
from equipoise.integrate.entropic import TOLERANCE, Start
from equipoise.integrate.margins import Evaluation, Margins, Slopes, Weights
from equipoise.integrate.objective import Forces, Objective, Tangent
from equipoise.integrate.quadratic import Quadratic
from equipoise.integrate.readout import Rows
from equipoise.integrate.slopes import bounded, implicit_slopes
from equipoise.integrate.steppers.state import State

_PASSES = 60  # passes after which a step is given up
_SETTLED = 1e-7  # change of w₁ relative to ‖w‖ at which a step is settled
_PRECISE = 1e-11  # the same for a step that is cut to end at a goal
_TOLERABLE = 1e-6  # the same, where it falls no further
_SHARE = 0.05  # of the step's own error, that a step may be unsettled by where it falls no further
_PATIENCE = 16  # passes without progress before a step is given up
_CONVERGING = 100  # iterations of w_mid alone
_STIFFER = 1.5  # times its own effect alone: pairs of one neuron pull together


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
    order: int = 2
    precise: bool = False  # its end is sought to more digits: the step is cut to end at a goal

    @property
    def size(self) -> float:
        """`‖Δw‖ / ‖w‖` at the velocity of the start."""
        return self.span * self.outlook.speed


class Warm(NamedTuple):
    """The implicit problem of a pass and its solutions, to start the next from; `mean` is `p̄`, `kernel` is `K`."""

    kernel: Quadratic
    solutions: tuple[Start, Start, Start]
    mean: Tensor


# Given the linearisation, both ends on its examples, a warm start, and the tolerance of the solution:
# (mean forces, their doubt, next warm start).
Average = Callable[[Tangent, Evaluation, Evaluation, Warm | None, float], tuple[Forces, Forces, Warm | None]]


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


@dataclass(frozen=True)
class Pass:
    """One pass of the iteration that settles a step: from a guess of its end, what it led to."""

    end: Weights
    slopes: Slopes
    warm: Warm | None
    forces: Forces  # Dᵀ p̄
    doubt: Forces  # Dᵀ (p̄ - p of lower order)
    here: Tangent
    reach: Slopes  # of the first pass

    def error(self, stretch: Stretch) -> float:
        """What the doubt moves, relative to `‖w‖`: the error of the step."""
        return stretch.span * float(self.here.pullback(self.doubt).norm() / stretch.state.weights.norm())

    def pulled(self, margins: Margins, before: Evaluation, after: Evaluation, span: float) -> Slopes:
        """The slopes that follow from this pass and where it led, each pair answering by its own effect on its end."""
        onto = self.here.here.sensitivity(self.forces)
        ends = zip(before.preactivations, after.preactivations, strict=True)
        return tuple(
            implicit_slopes(kink, *both, slope, -_STIFFER * span * force * reach)
            for kink, both, slope, force, reach in zip(margins.kinks, ends, self.slopes, onto, self.reach, strict=True)
        )

    def mixed(self, history: Anderson, entered: Weights, margins: Margins) -> tuple[Anderson, "Pass"]:
        """The next guess, from this pass and those before."""
        mean = () if self.warm is None else (self.warm.mean,)
        history, (end, *others) = history.mixed(entered, (self.end, *self.slopes, *mean))
        count = len(self.slopes)
        slopes = tuple(bounded(kink, slope) for kink, slope in zip(margins.kinks, others[:count], strict=True))
        warm = None if self.warm is None else self.warm._replace(mean=others[count])
        return history, replace(self, end=end, slopes=slopes, warm=warm)


def settle(stretch: Stretch, on: Objective, rows: Rows | None, average: Average) -> Attempt:
    """Iterate p̄, slopes and w_mid together, accelerated, until the end of the step stays."""
    state, norm = stretch.state, float(stretch.state.weights.norm())
    examples = None if rows is None else stretch.objective.examples(rows)
    before = state.evaluation if examples is None else state.evaluation.take(examples)
    slopes = state.slopes if examples is None else tuple(slope[examples] for slope in state.slopes)
    guess = None
    end, history, changes = state.weights + stretch.span * stretch.outlook.velocity, Anderson(), []
    while True:
        entered = end if guess is None else guess.end
        last = _pass(stretch, on, before, average, entered, slopes, guess, _tolerance(changes, stretch.size))
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
        visited=len(changes) * on.count,
    )


def _pass(
    stretch: Stretch,
    on: Objective,
    before: Evaluation,
    average: Average,
    end: Weights,
    slopes: Slopes,
    guess: Pass | None,
    tolerance: float,
) -> Pass:
    """From a guess of the end to the next: slopes, midpoint, weights of the examples, end. The first keeps `slopes`."""
    start = stretch.state.weights
    after = on.margins.evaluate(end)
    if guess is not None:
        slopes = guess.pulled(on.margins, before, after, stretch.span)
    here = on.linearise((start + end) / 2, slopes)
    forces, doubt, warm = average(here, before, after, None if guess is None else guess.warm, tolerance)
    reach = here.here.reach() if guess is None else guess.reach
    return Pass(start + stretch.span * here.pullback(forces), slopes, warm, forces, doubt, here, reach)


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
