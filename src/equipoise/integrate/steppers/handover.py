"""The hand-over between stabilised explicit steps and implicit ones, by what each has cost for its length (T6.4).

Costs are operations over `‖Δw‖/‖w‖`, counted while the steps were taken, so that a resumed run chooses alike: over the
length that a step came, which is a small share of the planned one where explicit stages chatter about kinks. An
explicit run asks what an implicit step would cost, now and then and where few examples weigh: by the operations of one
iteration, times the iterations that the last one took. An implicit run that has cost more than explicit steps goes back
to them, and so does one attempt at an implicit step that has.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from equipoise.integrate.objective import Objective
from equipoise.integrate.state import State, Step
from equipoise.integrate.steppers.chebyshev import ROUTE

_LONG = 1e9  # operations of a pass, below which steps are so short that the choice is not worth its cost
_ASKED = 8  # explicit steps between two questions
_DEAR = 100.0  # passes that an explicit step has cost, from which there is a question before each: it costs two
_ITERATIONS = 25.0  # of an implicit step, before one was taken
_REMEMBERED = 0.9  # of the difference from that, per explicit step
_LEAP = 2.0  # sizes of the next explicit step
_RULES = ("trapezoid", "entropic")
_WORSE = 2.0  # than an explicit step, after implicit ones were given up
_NEVER = 1e300


def may_be_explicit(objective: Objective, asked: bool | None) -> bool:
    """Whether explicit steps compete with implicit ones: asked for, or by default where a pass is long."""
    return objective.conserved is not None and (objective.operations > _LONG if asked is None else asked)


def next_is_explicit(
    state: State, operations: float, iteration: Callable[[], float], least: Callable[[], float] = lambda: math.inf
) -> bool:
    """Whether the next step is an explicit one.

    Args:
        state: before the step.
        operations: of a pass.
        iteration: counts the operations of an implicit iteration over its size; zero at a saddle, which steps of
            prescribed length leave.
        least: the same from below, without a pass.

    >>> import torch
    >>> from equipoise.integrate.margins.protocol import MarginEvaluation
    >>> zero = torch.zeros(1)
    >>> costs = {"chebyshev": 9.0, "implicit": 3.0}
    >>> after_implicit_step = State(zero, MarginEvaluation(zero, ()), (), zero, costs=costs)
    >>> next_is_explicit(after_implicit_step, 1.0, lambda: 1.0)
    False
    """
    explicit = state.costs.get(ROUTE)
    if explicit is None:
        return iteration() > 0
    if state.stiffest is None:  # the last step was implicit
        return explicit < state.costs.get("implicit", 0.0)
    dear = explicit * state.sizes.get(ROUTE, 0.0) > _DEAR * operations
    asked = dear or state.taken % _ASKED == 0 or is_worth_trying(state, least())
    return not asked or not is_worth_trying(state, iteration())


def is_worth_trying(state: State, iteration: float) -> bool:
    """Whether an implicit step, by the operations of an iteration over its size, costs less than an explicit one."""
    return state.costs.get("iterations", _ITERATIONS) * iteration < state.costs.get(ROUTE, math.inf)


def largest(sizes: dict[str, float]) -> float:
    """The larger of the sizes of the two implicit rules.

    >>> largest({"trapezoid": 0.01, "entropic": 0.05, "escape": 0.1})
    0.05
    """
    return max(sizes[rule] for rule in _RULES)


def at_first(state: State) -> State:
    """The state with the sizes at which implicit steps are tried first, where the last step was explicit.

    The velocity changes as fast for both: what is far beyond the size of an explicit step does not converge.
    """
    if state.stiffest is None:
        return state
    most = _LEAP * state.sizes[ROUTE]
    return replace(state, sizes=state.sizes | {rule: min(state.sizes.get(rule, most), most) for rule in _RULES})


def after_explicit(taken: tuple[State, Step], before: State) -> tuple[State, Step]:
    """The step, whose cost counts half, and after which the iterations of the last implicit one count for less.

    Args:
        taken: the step.
        before: the state before it.
    """
    state, step = taken
    cost, known = state.costs[ROUTE], before.costs.get(ROUTE, _NEVER)
    iterations = _ITERATIONS + _REMEMBERED * (state.costs.get("iterations", _ITERATIONS) - _ITERATIONS)
    costs = {ROUTE: cost if known == _NEVER else (cost + known) / 2, "iterations": iterations}
    return replace(state, costs=state.costs | costs), step


def after_implicit(taken: tuple[State, Step], before: State, iteration: float) -> tuple[State, Step]:
    """The step with its cost: after an explicit one over its planned size, since the velocity there may chatter.

    Args:
        taken: the step.
        before: the state before it.
        iteration: the operations of one iteration over the planned size of the step, as they were expected.
    """
    state, step = taken
    length = step.size if before.stiffest is None else step.planned
    costs = {"implicit": step.operations / length, "iterations": step.operations / step.planned / iteration}
    return replace(state, costs=before.costs | costs), step


def after_refusal(state: State, iteration: float) -> State:
    """The state after implicit steps were tried for more than an explicit one costs: they are not soon tried again.

    Args:
        state: the state that they began at.
        iteration: the operations of one of their iterations over its size, as they were expected.
    """
    explicit = state.costs.get(ROUTE, 0.0)
    iterations = _WORSE * explicit / iteration if 0 < iteration < math.inf else _ITERATIONS
    return replace(state, costs=state.costs | {"implicit": _NEVER, "iterations": iterations})


def without_explicit(state: State) -> State:
    """The state after an attempt at an explicit step that found none."""
    return replace(state, costs=state.costs | {ROUTE: _NEVER})
