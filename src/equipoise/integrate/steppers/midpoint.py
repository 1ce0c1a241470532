"""The entropic midpoint step: gradient flow to any depth of loss (T6)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from equipoise.errors import InputError
from equipoise.integrate.margins import Slopes, Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.steppers.averages import entropic, trapezoid
from equipoise.integrate.steppers.coupling import implicit_operations
from equipoise.integrate.steppers.escape import LONGEST, Escape, escape, stands_still
from equipoise.integrate.steppers.passes import Outlook, Stretch
from equipoise.integrate.steppers.settling import Attempt, converged
from equipoise.integrate.steppers.state import State, Step, check_steps, elapsed, later, velocity_at

_PASSES = {"trapezoid": 25, "entropic": 40}  # passes above which the next step is smaller
_REACH = 2.0  # how far the fastest margin may move in a step of the explicit route
_CONSISTENT = 500  # roundings by which w_mid may miss itself: smooth networks converge in small steps only
_RETRIED = 1.2  # factor on the size of the route not taken, which no success of its own would ever let grow again
_FAR = 2.0  # times `step_size`, from which a step of the escape is worth its passes
_LONGER = 1.3  # factor on its size after every other step
_ROUTES = {"trapezoid": trapezoid, "entropic": entropic}


@dataclass(frozen=True)
class EntropicMidpoint:
    """The entropic midpoint step (T6.1–T6.3): second order, free of stiffness, exact in every quadratic law.

    Each step is the implicit midpoint rule on a network with frozen slopes: of a pair that crosses its kink, its share
    of time above it. The weights `p̄` of the examples come from the cheaper of two routes per unit of progress, by a
    count of operations: `trapezoid`, `p̄ = ½(softmax(-u₀) + softmax(-u₁))`, while the margins move by about one a step;
    `entropic`, the extrapolated solution of the stiff system of margins, at any depth of loss.

    `step_size` is the largest `‖Δw‖/‖w‖` of a step. `rtol` bounds the difference of `p̄` at two orders, in the same
    unit. A step that does not settle, or exceeds it, is rejected and halved. `order=1` takes one Euler step of the
    system of margins in place of the extrapolation, to compare with.
    """

    order: int = 2
    rtol: float = 0.01
    step_size: float = 0.05
    smallest: float = 1e-10  # a step below this has stalled
    continuous: ClassVar[bool] = True

    def __post_init__(self):
        check_steps(self.rtol, self.step_size, self.smallest)
        if self.order not in (1, 2):
            raise InputError(
                expected="order 1 or 2",
                found=f"order={self.order!r}",
                remedy="pass order=2",
            )

    def init(self, objective: Objective, weights: Weights) -> State:
        """The state at the start of a run."""
        return State.start(objective, weights, dict.fromkeys((*_ROUTES, "escape"), self.step_size))

    def step(self, objective: Objective, state: State, most: float = math.inf) -> tuple[State, Step] | None:
        """One accepted step, or `None` when no step above `smallest` is acceptable or the velocity vanishes."""
        outlook = Outlook.of(objective, state)
        sizes, rejected, visited = dict(state.sizes), 0, state.examples_visited + objective.count
        while outlook.speed > 0 and math.isfinite(outlook.speed):
            far = min(sizes.get("escape", 0.0), most)
            if far >= _FAR * self.step_size and stands_still(outlook, far):
                tried = escape(objective, state, outlook, far, self.step_size**3 / 12)
                visited += tried.passes * objective.count
                if tried.accepted and tried.mismatch <= _CONSISTENT * torch.finfo(state.weights.dtype).eps:
                    longer = sizes["escape"] if far < sizes["escape"] else min(LONGEST, far * tried.factor)
                    return _escaped(objective, state, tried, sizes | {"escape": longer}, rejected, visited)
                sizes["escape"], rejected = far * min(tried.factor, 0.7), rejected + 1
                continue
            route = self._cheaper(objective, state, outlook, sizes)
            size = min(sizes[route], most)
            stretch = Stretch(objective, state, outlook, size / outlook.speed, self.order, precise=most < math.inf)
            attempt = _ROUTES[route](stretch)
            visited += attempt.visited
            if torch.equal(attempt.weights, state.weights):  # no force is left, though one was over the last step
                break
            if attempt.settled and attempt.error <= self.rtol:
                if size == sizes[route]:
                    sizes[route] = min(self.step_size, size * self._growth(attempt, _PASSES[route]))
                other = {name: min(self.step_size, _RETRIED * sizes[name]) for name in _ROUTES if name != route}
                other["escape"] = self._far(outlook, sizes)
                after, step = _advanced(stretch, attempt, route, sizes | other, rejected, visited)
                if step.mismatch <= _CONSISTENT * torch.finfo(state.weights.dtype).eps:
                    return after, step
                visited = after.examples_visited
            sizes[route], rejected = size / 2, rejected + 1
            if sizes[route] < self.smallest:
                break
        return None

    def _far(self, outlook: Outlook, sizes: dict[str, float]) -> float:
        """The size of a step of the escape, which is not taken until far longer than others."""
        far = sizes.get("escape", self.step_size)
        return min(LONGEST, _LONGER * far) if stands_still(outlook, far) else self.step_size

    def _growth(self, attempt: Attempt, most: int) -> float:
        """The factor on the next step's size: many passes, or an error near `rtol`, are the end of a step's reach."""
        within = 0.9 * math.sqrt(self.rtol / attempt.error) if attempt.error > 0 else math.inf
        return min(1.3, max(0.7, math.sqrt(most / attempt.passes)), max(0.5, within))

    def _cheaper(self, objective: Objective, state: State, outlook: Outlook, sizes: dict[str, float]) -> str:
        """The route whose passes cost less per unit of progress, from counts of operations alone.

        A loss without an exponential tail never becomes stiff, and its potentials are singular where it vanishes.
        """
        if not objective.loss.exponential_tail:
            return "trapezoid"
        reach = _REACH * outlook.speed / outlook.fastest if outlook.fastest > 0 else math.inf
        if sizes["trapezoid"] > reach:
            sizes["trapezoid"] = max(reach, sizes["trapezoid"] / 2)
        implicit = implicit_operations(objective, outlook, state.dual, sizes["entropic"] / outlook.speed)
        while math.isinf(implicit) and sizes["entropic"] > sizes["trapezoid"]:
            sizes["entropic"] /= 2
            implicit = implicit_operations(objective, outlook, state.dual, sizes["entropic"] / outlook.speed)
        return "entropic" if objective.operations / sizes["trapezoid"] > implicit / sizes["entropic"] else "trapezoid"


def _advanced(
    stretch: Stretch, attempt: Attempt, route: str, sizes: dict[str, float], rejected: int, visited: int
) -> tuple[State, Step]:
    """Converge the midpoint with everything else frozen, then move."""
    state, objective, span = stretch.state, stretch.objective, stretch.span
    weights, mismatch, iterations = converged(state, attempt, span)
    evaluation = objective.margins.evaluate(weights)
    moved, length = weights - state.weights, float((weights - state.weights).norm())
    examples = None if attempt.rows is None else objective.examples(attempt.rows)
    here = evaluation if examples is None else evaluation.take(examples)
    flow = velocity_at(attempt.on, weights, attempt.slopes, here)
    after = State(
        weights=weights,
        evaluation=evaluation,
        slopes=_merged(local_slopes(objective.margins, evaluation), objective, attempt),
        dual=torch.softmax(-objective.potential(evaluation), 0) if attempt.rows is None else attempt.dual,
        velocity=flow if attempt.rows is None else moved / span,
        steepness=float(flow.norm()),
        sizes=sizes,
        log_time=elapsed(objective, state, evaluation, length, (length / span, float(flow.norm()))),
        temperature=attempt.temperature,
        examples_visited=visited + iterations * attempt.on.count,
        taken=state.taken + 1,
        missed=state.missed + mismatch * float(weights.norm()),
    )
    active = len(attempt.dual if attempt.rows is None else attempt.rows)
    size = length / float(state.weights.norm())
    return after, Step(route, size, stretch.size, attempt.error, rejected, active, mismatch)


def _escaped(
    objective: Objective, state: State, taken: Escape, sizes: dict[str, float], rejected: int, visited: int
) -> tuple[State, Step]:
    """The state at the end of a step of the escape."""
    after = State(
        weights=taken.end,
        evaluation=taken.evaluation,
        slopes=state.slopes,
        dual=torch.softmax(-objective.potential(taken.evaluation), 0),
        velocity=taken.velocity,
        steepness=float(taken.velocity.norm()),
        sizes=sizes,
        log_time=later(state.log_time, math.log(taken.span) - objective.log_risk(taken.evaluation)),
        temperature=state.temperature,
        examples_visited=visited,
        taken=state.taken + 1,
        missed=state.missed + taken.mismatch * float(taken.end.norm()),
    )
    step = Step("escape", taken.size, taken.size, taken.error, rejected, len(after.dual), taken.mismatch)
    return after, step


def _merged(local: Slopes, objective: Objective, attempt: Attempt) -> Slopes:
    """Settled slopes of the active examples, one-sided slopes of the others."""
    if attempt.rows is None:
        return attempt.slopes
    for all_rows, settled in zip(local, attempt.slopes, strict=True):
        all_rows[objective.examples(attempt.rows)] = settled
    return local
