"""The hand-over between stabilised explicit steps and implicit ones, by what each has cost for its length (T6.4).

Costs are operations over `‖Δw‖/‖w‖`, counted while the steps were taken, so that a resumed run chooses alike. An
explicit run asks now and then what an implicit step would cost: by the operations of one iteration, times the
iterations that the last one took. An implicit run that has cost more than the last explicit step goes back to it, and
so does one attempt at an implicit step that has.
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
_WORSE = 4.0  # than an explicit step, after implicit ones were given up
_NEVER = 1e300


def may_be_explicit(objective: Objective, asked: bool | None) -> bool:
    """Whether explicit steps compete with implicit ones: asked for, or by default where a pass is long."""
    return objective.conserved is not None and (objective.operations > _LONG if asked is None else asked)


def next_is_explicit(state: State, operations: float, iteration: Callable[[], float]) -> bool:
    """Whether the next step is an explicit one.

    Args:
        state: before the step.
        operations: of a pass.
        iteration: counts the operations of an implicit iteration over its size; zero at a saddle, which steps of
            prescribed length leave.

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
    asked = state.taken % _ASKED == 0 or explicit * state.sizes.get(ROUTE, 0.0) > _DEAR * operations
    return not asked or explicit <= state.costs.get("iterations", _ITERATIONS) * iteration()


def after_explicit(taken: tuple[State, Step]) -> tuple[State, Step]:
    """The step, after which the iterations of the last implicit one count for less."""
    state, step = taken
    iterations = _ITERATIONS + _REMEMBERED * (state.costs.get("iterations", _ITERATIONS) - _ITERATIONS)
    return replace(state, costs=state.costs | {"iterations": iterations}), step


def after_implicit(taken: tuple[State, Step], before: State, iteration: float) -> tuple[State, Step]:
    """The step with its cost.

    Args:
        taken: the step.
        before: the state before it.
        iteration: the operations of one iteration over the size of the step, as they were expected.
    """
    state, step = taken
    cost = step.operations / step.size
    return replace(state, costs=before.costs | {"implicit": cost, "iterations": cost / iteration}), step


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
