"""The entropic midpoint step: gradient flow to any depth of loss (T6).

One step, in the order of this file: predict from the velocity of the start; near a saddle, try a step of prescribed
length; else choose the cheaper rule for the weights `p̄` of the examples, solve the implicit step, accept or halve it,
converge its midpoint to rounding, and move.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import ClassVar

import torch

from equipoise.arguments import checked_fields
from equipoise.errors import InputError
from equipoise.integrate.implicit.active_set import (
    implicit_operations,
    initial_active_set,
    landmarks,
    least_operations,
    violations,
)
from equipoise.integrate.implicit.dual_problem import resolved_temperature
from equipoise.integrate.implicit.dual_weights import EntropicWeights, TrapezoidalWeights
from equipoise.integrate.implicit.fixed_point import ImplicitStep, converge_midpoint, solve_implicit_step
from equipoise.integrate.implicit.step_problem import StepPredictor, StepProblem
from equipoise.integrate.margins.protocol import Slopes, Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.state import State, Step, velocity_at
from equipoise.integrate.steppers.chebyshev import ROUTE, stabilised_step
from equipoise.integrate.steppers.handover import (
    after_explicit,
    after_implicit,
    after_refusal,
    at_first,
    is_worth_trying,
    largest,
    may_be_explicit,
    next_is_explicit,
    without_explicit,
)
from equipoise.integrate.steppers.physical_time import elapsed
from equipoise.integrate.steppers.protocol import check_steps
from equipoise.integrate.steppers.saddle_escape import LONGEST, Escape, escape, margins_at_rest

_ITERATIONS = {"trapezoid": 25, "entropic": 40}  # iterations above which the next step is smaller
_REACH = 2.0  # how far the fastest margin may move in a trapezoidal step
_CONSISTENT = 500  # roundings by which w_mid may miss itself: smooth networks converge in small steps only
_RETRIED = 1.2  # growth of the step size of the rule not taken, per accepted step
_NEARLY = 2e-3  # of the size of a step, by which it may be made longer or shorter as it is
_FAR = 2.0  # times `step_size`, from which an escape step is worth its passes
_LONGER = 1.3  # growth of its size per accepted step of another kind

Taken = tuple[State, Step]


@dataclass(frozen=True)
class _Tries:
    """Step sizes by rule, rejected attempts and examples visited in the search for an acceptable step."""

    sizes: dict[str, float]
    rejected: int
    visited: int
    kernels: float = 0.0  # operations of kernels and their factors
    over: bool = False  # no acceptable step is left

    def operations(self, objective: Objective, state: State) -> float:
        """Operations of the tries from a state."""
        passes = (self.visited - state.examples_visited) / objective.count
        return passes * objective.operations + self.kernels


@checked_fields
@dataclass(frozen=True)
class EntropicMidpoint:
    """The entropic midpoint step (T6.1–T6.3): second order, free of stiffness, exact in every quadratic law.

    Each step is the implicit midpoint rule on a network with frozen slopes: of a pair that crosses its kink, its share
    of time above it. The weights `p̄` of the examples come from the cheaper of two rules per unit of progress, by a
    count of operations: `trapezoid`, `p̄ = ½(softmax(-u₀) + softmax(-u₁))`, while the margins move by about one a step;
    `entropic`, the extrapolated solution of the stiff system of margins, at any depth of loss.

    `step_size` is the largest `‖Δw‖/‖w‖` of a step. `rtol` bounds the difference of `p̄` at two orders, in the same
    unit. A step that does not converge, or exceeds it, is rejected and halved. `order=1` takes one Euler step of the
    system of margins in place of the extrapolation, to compare with.

    Where nothing is stiff yet and a pass over the data is long, steps of `RungeKuttaChebyshev` cost less for their
    length: they are taken for as long as they do, by what both have cost (T6.4). `explicit` allows them always or
    never; by default where a pass takes more than 1e9 operations.
    """

    order: int = 2
    rtol: float = 0.01
    step_size: float = 0.05
    smallest: float = 1e-10  # a step below this has stalled
    explicit: bool | None = None
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
        return State.start(objective, weights, dict.fromkeys(("trapezoid", "entropic", "escape"), self.step_size))

    def step(self, objective: Objective, state: State, max_size: float = math.inf) -> Taken | None:
        """One accepted step, or `None` when no step above `smallest` is acceptable or the velocity vanishes."""
        if not may_be_explicit(objective, self.explicit):
            return self._implicit(objective, state, StepPredictor.at(objective, state), max_size)
        first, predictor = at_first(state), cache(lambda: StepPredictor.at(objective, state))
        iteration = cache(lambda: self._iteration(objective, state, predictor(), first.sizes))
        asked = lambda: 0.0 if margins_at_rest(predictor(), self.step_size) else iteration()  # noqa: E731
        least = lambda: least_operations(objective, state) / largest(first.sizes)  # noqa: E731
        if not next_is_explicit(state, objective.operations, asked, least):
            taken = self._implicit(objective, first, predictor(), max_size, state.costs.get(ROUTE, math.inf))
            if taken is not None:
                return after_implicit(taken, state, iteration())
            state = after_refusal(state, iteration())
        taken = stabilised_step(objective, state, self.rtol, self.step_size, self.smallest, max_size)
        if taken is not None:
            return after_explicit(taken, state)
        state = without_explicit(state)
        taken = self._implicit(objective, state, predictor(), max_size)
        return taken and after_implicit(taken, state, iteration())

    def _iteration(
        self, objective: Objective, state: State, predictor: StepPredictor, sizes: dict[str, float]
    ) -> float:
        """The operations of an iteration of an implicit step over its size."""
        if not 0 < predictor.speed < math.inf:
            return math.inf
        rule, sizes = self._cheaper_rule(objective, state, predictor, sizes)
        if rule == "trapezoid":
            return objective.operations / sizes[rule]
        return implicit_operations(objective, predictor, state.dual, sizes[rule] / predictor.speed) / sizes[rule]

    def _implicit(
        self,
        objective: Objective,
        state: State,
        predictor: StepPredictor,
        max_size: float,
        worth: float = math.inf,
    ) -> Taken | None:
        """One accepted implicit step, or `None`; also where none is worth trying any more.

        `worth` are the operations of an explicit step over its size; a try may cost twice that before it is given up.
        """
        tries = _Tries(dict(state.sizes), 0, state.examples_visited + objective.count)
        while 0 < predictor.speed < math.inf and not tries.over:
            competes = tries.rejected and worth < math.inf
            if competes and not is_worth_trying(state, self._iteration(objective, state, predictor, tries.sizes)):
                return None
            far = min(tries.sizes.get("escape", 0.0), max_size)
            if far >= _FAR * self.step_size and margins_at_rest(predictor, far):
                taken, tries = self._escape_step(objective, state, predictor, far, tries)
            else:
                most = 2 * worth * largest(tries.sizes)
                taken, tries = self._implicit_step(objective, state, predictor, max_size, most, tries)
            if taken is not None:
                after, record = taken
                operations = replace(tries, visited=after.examples_visited).operations(objective, state)
                return after, replace(record, operations=operations)
        return None

    def _escape_step(
        self, objective: Objective, state: State, predictor: StepPredictor, size: float, tries: _Tries
    ) -> tuple[Taken | None, _Tries]:
        """A step of prescribed length, where no margin moves; shorter at the next try where it is refused."""
        tried = escape(objective, state, predictor, size, self.step_size**3 / 12)
        sizes, visited = tries.sizes, tries.visited + tried.passes * objective.count
        if tried.accepted:
            longer = sizes["escape"] if size < sizes["escape"] else min(LONGEST, size * tried.factor)
            after, record = _escaped(objective, state, tried, sizes | {"escape": longer}, tries.rejected, visited)
            if _consistent(record, state):
                return (after, record), tries
        shorter = sizes | {"escape": size * min(tried.factor, 0.7)}
        return None, replace(tries, sizes=shorter, rejected=tries.rejected + 1, visited=visited)

    def _implicit_step(
        self,
        objective: Objective,
        state: State,
        predictor: StepPredictor,
        max_size: float,
        worth: float,
        tries: _Tries,
    ) -> tuple[Taken | None, _Tries]:
        """An implicit midpoint step by the cheaper rule; of half the size at the next try where it is rejected."""
        rule, sizes = self._cheaper_rule(objective, state, predictor, tries.sizes)
        size = min(sizes[rule], max_size)
        step = StepProblem(objective, state, predictor, size / predictor.speed, self.order, worth=worth)
        solved = solve_trapezoidal(step) if rule == "trapezoid" else solve_entropic(step)
        visited, tries = tries.visited + solved.visited, replace(tries, kernels=tries.kernels + solved.kernels)
        if torch.equal(solved.weights, state.weights):  # the velocity vanishes here, though it did not on the last step
            return None, replace(tries, over=True)
        if solved.converged and solved.error <= self.rtol:
            grown = sizes[rule] if size < sizes[rule] else min(self.step_size, size * self._growth(solved, rule))
            nexts = self._next_sizes(predictor, sizes | {rule: grown}, rule)
            after, record = _advanced(step, solved, rule, nexts, tries.rejected, visited)
            if _consistent(record, state):
                resized = partial(_resized, step, solved, rule, nexts, tries.rejected, after.examples_visited)
                return (after, replace(record, resized=resized)), tries
            visited = after.examples_visited
        halved = size / 2
        sizes, over = sizes | {rule: halved}, halved < self.smallest
        return None, replace(tries, sizes=sizes, rejected=tries.rejected + 1, visited=visited, over=over)

    def _cheaper_rule(
        self, objective: Objective, state: State, predictor: StepPredictor, sizes: dict[str, float]
    ) -> tuple[str, dict[str, float]]:
        """The rule that costs less per unit of progress, from counts of operations alone, and sizes within reach.

        A loss without an exponential tail never becomes stiff, and its potentials are singular where it vanishes.
        """
        if not objective.loss.exponential_tail:
            return "trapezoid", sizes
        explicit, implicit = sizes["trapezoid"], sizes["entropic"]
        reach = _REACH * predictor.speed / predictor.fastest if predictor.fastest > 0 else math.inf
        if explicit > reach:
            explicit = max(reach, explicit / 2)
        operations = implicit_operations(objective, predictor, state.dual, implicit / predictor.speed)
        while math.isinf(operations) and implicit > explicit:
            implicit /= 2
            operations = implicit_operations(objective, predictor, state.dual, implicit / predictor.speed)
        cheaper = "entropic" if objective.operations / explicit > operations / implicit else "trapezoid"
        return cheaper, sizes | {"trapezoid": explicit, "entropic": implicit}

    def _growth(self, solved: ImplicitStep, rule: str) -> float:
        """The factor on the next step's size: below 1 after many iterations, or an error near `rtol`."""
        within = 0.9 * math.sqrt(self.rtol / solved.error) if solved.error > 0 else math.inf
        return min(1.3, max(0.7, math.sqrt(_ITERATIONS[rule] / solved.iterations)), max(0.5, within))

    def _next_sizes(self, predictor: StepPredictor, sizes: dict[str, float], rule: str) -> dict[str, float]:
        """The sizes after an accepted step: those of the other rule and of the escape grow unused."""
        other = "entropic" if rule == "trapezoid" else "trapezoid"
        far = sizes.get("escape", self.step_size)
        longer = min(LONGEST, _LONGER * far) if margins_at_rest(predictor, far) else self.step_size
        return sizes | {other: min(self.step_size, _RETRIED * sizes[other]), "escape": longer}


def solve_trapezoidal(step: StepProblem) -> ImplicitStep:
    """The step on all examples, without a kernel."""
    return solve_implicit_step(step, step.objective, None, TrapezoidalWeights(step.objective, step.order))


def solve_entropic(step: StepProblem) -> ImplicitStep:
    """The step on the potentials that matter; those of the others that turn out to weigh enter, and it is repeated."""
    objective, visited, kernels = step.objective, 0, 0.0
    temperature = resolved_temperature(step.predictor.potential)
    rows = initial_active_set(step.predictor, step.state.dual, step.span)
    while True:
        active, dual = objective.restricted(rows), step.state.dual
        places = landmarks(objective, step.predictor, dual, step.span, rows)
        weights = EntropicWeights(active, dual[rows], places, step.span, temperature, step.order)
        solved = solve_implicit_step(step, active, rows, weights)
        visited, kernels = visited + solved.visited + objective.count // 3, kernels + solved.kernels
        step = replace(step, worth=step.worth - solved.operations - objective.operations / 3)
        solved = replace(solved, visited=visited, kernels=kernels, temperature=temperature)
        if not solved.converged:
            return solved
        end = objective.margins.evaluate(solved.weights)
        out = violations(objective.potential(end), rows)
        if len(out) == 0:
            return solved
        slopes = _merged(local_slopes(objective.margins, end), objective, solved)
        step = step.resumed(solved.weights, slopes, solved.dual, solved.off)
        rows = torch.cat([rows, out]).sort().values


def _advanced(
    step: StepProblem, solved: ImplicitStep, rule: str, sizes: dict[str, float], rejected: int, visited: int
) -> Taken:
    """Converge the midpoint with all else frozen, then move."""
    state, objective, span = step.state, step.objective, step.span
    weights, mismatch, iterations = converge_midpoint(state, solved, span)
    evaluation = objective.margins.evaluate(weights)
    moved, length = weights - state.weights, float((weights - state.weights).norm())
    examples = None if solved.rows is None else objective.examples(solved.rows)
    active_evaluation = evaluation if examples is None else evaluation.take(examples)
    velocity = velocity_at(solved.objective, weights, solved.slopes, active_evaluation)
    after = State(
        weights=weights,
        evaluation=evaluation,
        slopes=_merged(local_slopes(objective.margins, evaluation), objective, solved),
        dual=torch.softmax(-objective.potential(evaluation), 0) if solved.rows is None else solved.dual,
        velocity=velocity if solved.rows is None else moved / span,
        gradient_norm=float(velocity.norm()),
        sizes=sizes,
        time=elapsed(objective, state, evaluation, length, (length / span, float(velocity.norm()))),
        temperature=solved.temperature,
        costs=state.costs,
        examples_visited=visited + iterations * solved.objective.count,
        taken=state.taken + 1,
        missed=state.missed + mismatch * float(weights.norm()),
    )
    active = len(solved.dual if solved.rows is None else solved.rows)
    size = length / float(state.weights.norm())
    return after, Step(rule, size, step.size, solved.error, rejected, active, mismatch=mismatch)


def _resized(
    step: StepProblem,
    solved: ImplicitStep,
    rule: str,
    sizes: dict[str, float],
    rejected: int,
    visited: int,
    size: float,
) -> Taken | None:
    """The step over nearly the same span, `None` elsewhere: the weights of its examples and its slopes are kept.

    Both are means over the step, which change by the share `‖Δv‖/‖v‖` of themselves in its whole length; laws are
    exact for any.
    """
    ratio, start = size / step.size, step.state.weights
    if abs(ratio - 1) > _NEARLY:
        return None
    near = replace(solved, weights=start + ratio * (solved.weights - start))
    after, record = _advanced(replace(step, span=ratio * step.span), near, rule, sizes, rejected, visited)
    return (after, record) if _consistent(record, step.state) else None


def _consistent(record: Step, state: State) -> bool:
    """Whether `w_mid` is at its fixed point to rounding, so that the laws are exact."""
    return record.mismatch <= _CONSISTENT * torch.finfo(state.weights.dtype).eps


def _merged(local: Slopes, objective: Objective, solved: ImplicitStep) -> Slopes:
    """Slopes of the step for the active examples, one-sided slopes for the others."""
    if solved.rows is None:
        return solved.slopes
    for all_rows, active in zip(local, solved.slopes, strict=True):
        all_rows[objective.examples(solved.rows)] = active
    return local


def _escaped(
    objective: Objective, state: State, taken: Escape, sizes: dict[str, float], rejected: int, visited: int
) -> Taken:
    """The state at the end of an escape step."""
    after = State(
        weights=taken.end,
        evaluation=taken.evaluation,
        slopes=state.slopes,
        dual=torch.softmax(-objective.potential(taken.evaluation), 0),
        velocity=taken.velocity,
        gradient_norm=float(taken.velocity.norm()),
        sizes=sizes,
        costs=state.costs,
        time=state.time.later(taken.time(objective.log_risk(state.evaluation), objective.log_risk(taken.evaluation))),
        temperature=state.temperature,
        examples_visited=visited,
        taken=state.taken + 1,
        missed=state.missed + taken.mismatch * float(taken.end.norm()),
    )
    step = Step("escape", taken.size, taken.size, taken.error, rejected, len(after.dual), mismatch=taken.mismatch)
    return after, step
