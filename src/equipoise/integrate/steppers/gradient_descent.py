"""Gradient descent on the whole data set: the discrete method whose every change of a law is predicted (T2.2)."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch

from equipoise.arguments import checked_fields, require_real
from equipoise.errors import InputError
from equipoise.integrate.margins.protocol import Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.state import PhysicalTime, State, Step, Update, velocity
from equipoise.integrate.steppers.kink_selection import check_selection, selected_slopes

SCHEDULES = ("constant", "loss_scaled", "normalised")


@checked_fields
@dataclass(frozen=True)
class GradientDescent:
    """`w ← w - η ∇R`, with `η = lr` (`constant`), `lr / R` (`loss_scaled`) or `lr / ‖∇R‖` (`normalised`).

    `lr` is a number, a sequence with a number for each step, or a function from the index of a step (from 0) to one.
    Loss-scaled steps are Euler's method on the flow of `log R` (Lyu & Li 2020). Everything is formed from `∇ log R` and
    `log R`: nothing underflows but a constant step's own size.

    Whether a step was short enough is on record with it, as `decrease`: `(R(w) - R(w')) / (η ‖∇R‖²)` is 1 for steps
    that follow the flow, and at least ½ wherever `η` is at most `1/L`, `L` the smoothness on the way (the descent
    lemma, Nesterov 2004, §1.2.3); below 0 the loss rose, as where `η` exceeds 2 over the sharpness along the gradient.

    `at_kinks` is the slope of a ReLU at `z = 0`, as a share of the way from its left slope (0, as in PyTorch) to its
    right (1); `"minimum_norm"` takes the element of least norm that such shares give (the Clarke subdifferential's, for
    kinks of one layer). A maximum that is tied keeps its first place.

    Raises `InputError` for another schedule, and for rates that are not positive and finite.

    >>> GradientDescent([0.1, 0.05, 0.025]).lr
    (0.1, 0.05, 0.025)
    """

    lr: float | Sequence[float] | Callable[[int], float] = 0.1
    schedule: str = "constant"
    at_kinks: float | str = 0.0
    continuous: ClassVar[bool] = False

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise InputError(
                expected=f"a schedule among {', '.join(SCHEDULES)}",
                found=repr(self.schedule),
                remedy='pass schedule="constant"',
            )
        check_selection(self.at_kinks)
        given: object = self.lr
        if isinstance(given, Iterable) and not isinstance(given, str):
            object.__setattr__(self, "lr", given := tuple(given))
        if given == ():
            raise InputError(expected="learning rates", found="none", remedy="pass lr=0.1, or a rate for each step")
        if not callable(given):
            for rate in given if isinstance(given, tuple) else (given,):
                check_rate(rate)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0. Raises `InputError` where there is none."""
        if isinstance(self.lr, tuple) and step >= len(self.lr):
            raise InputError(
                expected=f"a learning rate for step {step}",
                found=f"a sequence of {len(self.lr)}",
                remedy=f"pass until=eq.Steps({len(self.lr)}), a longer sequence, or a function of the step",
            )
        given = self.lr(step) if callable(self.lr) else self.lr
        rate = given[step] if isinstance(given, tuple) else given
        check_rate(rate)
        return float(cast(float, rate))

    def init(self, objective: Objective, weights: Weights) -> State:
        """The state at the start of a run."""
        return State.start(objective, weights, {})

    def step(self, objective: Objective, state: State, max_size: float = math.inf) -> tuple[State, Step] | None:
        """One step, always whole; `None` where it moves nothing."""
        state = replace(state, slopes=selected_slopes(objective, state, self.at_kinks))
        gradient = -velocity(objective, state)  # of log R
        lr = self.rate(state.taken)
        log_risk, norm = objective.log_risk(state.evaluation), float(gradient.norm())
        if not 0 < norm < math.inf:
            return None
        log_rate = {
            "constant": math.log(lr) + log_risk,
            "loss_scaled": math.log(lr),
            "normalised": math.log(lr / norm),
        }[self.schedule]
        return descended(objective, state, Update(gradient, math.exp(min(log_rate, 700.0))), log_rate - log_risk, norm)


def check_rate(lr: object) -> None:
    """Refuse a learning rate that is not positive and finite."""
    require_real("the learning rate lr", lr, "pass lr=0.1", above=0)


def descended(
    objective: Objective, state: State, update: Update, log_span: float, gradient_norm: float, full: bool = True
) -> tuple[State, Step] | None:
    """The state after an update that takes `exp(log_span)` of physical time; `None` where it moves nothing.

    `gradient_norm` is that of `log R` where the gradient was taken: known without another one, a step late. `full` says
    that the gradient is that of the whole loss, with which its decrease can be compared.
    """
    weights = (1 - update.decay) * state.weights - update.rate * update.gradient
    at = objective.margins.evaluate(weights)
    moved = float((weights - state.weights).norm() / state.weights.norm())
    if not 0 < moved < math.inf or not bool(torch.isfinite(at.margins).all()):
        return None
    fall, size = (
        objective.log_risk(state.evaluation) - objective.log_risk(at),
        update.rate * float(update.gradient.norm()),
    )
    decrease = -math.expm1(min(-fall, 700.0)) / max(size * gradient_norm, sys.float_info.min) if full else math.nan
    after = replace(
        state,
        weights=weights,
        gradient_norm=gradient_norm,
        evaluation=at,
        slopes=local_slopes(objective.margins, at),
        time=state.time.later(PhysicalTime(log_span)),
        examples_visited=state.examples_visited + objective.count,
        taken=state.taken + 1,
    )
    return after, Step("descent", moved, moved, update=update, decrease=decrease)
