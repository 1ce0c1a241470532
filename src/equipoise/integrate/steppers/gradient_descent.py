"""Gradient descent on the whole data set: the discrete method whose every change of a law is predicted (T2.2)."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from equipoise.errors import InputError
from equipoise.integrate.margins import Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.steppers.state import State, Step, Update, later, velocity

SCHEDULES = ("constant", "loss_scaled", "normalised")


@dataclass(frozen=True)
class GradientDescent:
    """`w ← w - η ∇R`, with `η = lr` (`constant`), `lr / R` (`loss_scaled`) or `lr / ‖∇R‖` (`normalised`).

    Loss-scaled steps are Euler's method on the flow of `log R` (Lyu & Li 2020). Everything is formed from `∇ log R` and
    `log R`: nothing underflows but a constant step's own size. Raises `InputError` for another schedule, or a learning
    rate that is not positive and finite.
    """

    lr: float = 0.1
    schedule: str = "constant"
    continuous: ClassVar[bool] = False

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise InputError(
                expected=f"a schedule among {', '.join(SCHEDULES)}",
                found=repr(self.schedule),
                remedy='pass schedule="constant"',
            )
        check_rate(self.lr)

    def init(self, objective: Objective, weights: Weights) -> State:
        """The state at the start of a run."""
        return State.start(objective, weights, {})

    def step(self, objective: Objective, state: State, most: float = math.inf) -> tuple[State, Step] | None:
        """One step, always whole; `None` where it moves nothing."""
        gradient = -velocity(objective, state)  # of log R
        log_risk, norm = objective.log_risk(state.evaluation), float(gradient.norm())
        if not 0 < norm < math.inf:
            return None
        log_rate = {
            "constant": math.log(self.lr) + log_risk,
            "loss_scaled": math.log(self.lr),
            "normalised": math.log(self.lr / norm),
        }[self.schedule]
        return descended(objective, state, Update(gradient, math.exp(min(log_rate, 700.0))), log_rate - log_risk)


def check_rate(lr: float) -> None:
    """Refuse a learning rate that is not positive and finite."""
    if not 0 < lr < math.inf:
        raise InputError(expected="a positive finite learning rate", found=f"lr={lr}", remedy="pass lr=0.1")


def descended(objective: Objective, state: State, update: Update, log_span: float) -> tuple[State, Step] | None:
    """The state after an update that takes `exp(log_span)` of physical time; `None` where it moves nothing."""
    weights = (1 - update.decay) * state.weights - update.rate * update.gradient
    at = objective.margins.evaluate(weights)
    moved = float((weights - state.weights).norm() / state.weights.norm())
    if not 0 < moved < math.inf or not bool(torch.isfinite(at.margins).all()):
        return None
    after = replace(
        state,
        weights=weights,
        evaluation=at,
        slopes=local_slopes(objective.margins, at),
        log_time=later(state.log_time, log_span),
        examples_visited=state.examples_visited + objective.count,
        taken=state.taken + 1,
    )
    return after, Step("descent", moved, moved, update=update)
