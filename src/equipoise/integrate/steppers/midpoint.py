"""The entropic midpoint step: gradient flow to any depth of loss (THEORY T6)."""

import math
from dataclasses import dataclass, replace

import torch

from equipoise.integrate.margins import Slopes, Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.steppers.averages import active, entropic, trapezoid
from equipoise.integrate.steppers.settling import Attempt, Outlook, Stretch, converged
from equipoise.integrate.steppers.state import State, Step, later, physical_time

_PASSES = 40  # passes above which the next step is smaller
_ROUTES = {"trapezoid": trapezoid, "entropic": entropic}


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
                sizes[route] = min(self.step_size, sizes[route] * _growth(attempt.passes))
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
        entering = len(active(outlook, sizes["entropic"] / outlook.speed))
        passes = 16 * 6 * parameters
        newton = 500 * entering**3 / 3  # three solves of some four steps each, sixteen times, at LAPACK's pace
        trapezoid = passes * objective.count / min(sizes["trapezoid"], gentle)
        entropic = (passes * entering + newton + 2 * parameters * objective.count) / sizes["entropic"]
        if sizes["trapezoid"] > gentle and trapezoid < entropic:
            sizes["trapezoid"] = gentle
        return "trapezoid" if trapezoid < entropic else "entropic"


def _growth(passes: int) -> float:
    """The factor on the next step's size: a step that took many passes is close to one that never settles."""
    return min(1.3, max(0.7, math.sqrt(_PASSES / passes)))


def _outlook(objective: Objective, state: State) -> Outlook:
    here = objective.linearise(state.weights, state.slopes)
    velocity = here.pullback(objective.forces(state.evaluation)) if state.velocity is None else state.velocity
    speed = float(velocity.norm() / state.weights.norm())
    return Outlook(objective.potential(state.evaluation), velocity, here.pushforward(velocity), speed)


def _advanced(stretch: Stretch, attempt: Attempt) -> tuple[State, float, float]:
    """Converge the midpoint with everything else frozen, then move: the state after, `‖Δw‖/‖w‖`, and the mismatch."""
    state, objective, span = stretch.state, stretch.objective, stretch.span
    weights, mismatch, iterations = converged(state, attempt, span)
    evaluation = objective.margins.evaluate(weights)
    moved = weights - state.weights
    after = State(
        weights=weights,
        evaluation=evaluation,
        slopes=_merged(local_slopes(objective.margins, evaluation), objective, attempt),
        dual=attempt.dual,
        velocity=None if attempt.rows is None else moved / span,
        sizes=state.sizes,
        log_time=later(state.log_time, physical_time(objective, state.evaluation, evaluation, span)),
        temperature=attempt.temperature,
        examples_visited=iterations * attempt.on.count,
    )
    return after, float(moved.norm() / state.weights.norm()), mismatch


def _merged(local: Slopes, objective: Objective, attempt: Attempt) -> Slopes:
    """Settled slopes of the active examples, one-sided slopes of the others."""
    if attempt.rows is None:
        return attempt.slopes
    for all_rows, settled in zip(local, attempt.slopes, strict=True):
        all_rows[objective.examples(attempt.rows)] = settled
    return local
