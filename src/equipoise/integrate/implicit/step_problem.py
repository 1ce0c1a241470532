"""The implicit step as a problem: where it starts, what it covers, and one iterate of its solution (T6.1, T6.2)."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.implicit.dual_problem import DualStart
from equipoise.integrate.implicit.operators import SymmetricOperator
from equipoise.integrate.margins.protocol import MarginEvaluation, Slopes, Weights
from equipoise.integrate.margins.readout import Rows
from equipoise.integrate.objective import Cotangents, Objective, PotentialLinearization
from equipoise.integrate.state import State


@dataclass(frozen=True)
class StepPredictor:
    """The flow to first order at the start of a step."""

    potential: Float[Tensor, " potentials"]  # u
    velocity: Weights  # -∇ log R, or its mean over the last implicit step
    rates: Float[Tensor, " potentials"]  # du/dτ
    kink_rates: tuple[Tensor, ...]  # dz/dτ at every kink
    speed: float  # ‖velocity‖ / ‖w‖

    @cached_property
    def fastest(self) -> float:
        """The largest `|du/dτ|`."""
        return float(self.rates.abs().max())

    @classmethod
    def at(cls, objective: Objective, state: State) -> "StepPredictor":
        """The predictor at a state of the flow."""
        linearization = objective.linearize(state.weights, state.slopes)
        velocity = state.velocity
        if velocity is None:
            velocity = linearization.vjp(objective.cotangents(state.evaluation))
        rates, kink_rates = linearization.jvp(velocity)
        speed = float(velocity.norm() / state.weights.norm())
        return cls(objective.potential(state.evaluation), velocity, rates, kink_rates, speed)


@dataclass(frozen=True)
class StepProblem:
    """The step `w₁ = w₀ + h J_u(w_mid)ᵀ p̄` of span `h` from a state."""

    objective: Objective
    state: State
    predictor: StepPredictor
    span: float  # h
    order: int = 2
    guess: Weights | None = None  # the end, where the step has been solved on fewer potentials
    off: float | None = None  # by how much of ‖w‖ the velocity of the start missed the end then
    worth: float = math.inf  # operations after which its solution is given up

    @property
    def size(self) -> float:
        """`‖Δw‖ / ‖w‖` at the velocity of the start."""
        return self.span * self.predictor.speed

    @property
    def predicted_end(self) -> Weights:
        """`w₀ + h v` with the velocity of the start, or a better guess."""
        return self.state.weights + self.span * self.predictor.velocity if self.guess is None else self.guess

    def resumed(self, end: Weights, slopes: Slopes, dual: Tensor, off: float) -> "StepProblem":
        """The step from its solution on fewer potentials."""
        return replace(self, state=replace(self.state, slopes=slopes, dual=dual), guess=end, off=off)

    def restricted(self, objective: Objective, rows: Rows | None) -> "ActiveProblem":
        """The step on some of the potentials; `objective` is the objective on these `rows`."""
        state, kink_rates = self.state, self.predictor.kink_rates
        if rows is None:
            return ActiveProblem(self, objective, state.evaluation, state.slopes, kink_rates)
        examples = self.objective.examples(rows)
        slopes, kink_rates = (tuple(each[examples] for each in both) for both in (state.slopes, kink_rates))
        return ActiveProblem(self, objective, state.evaluation.take(examples), slopes, kink_rates)


@dataclass(frozen=True)
class ActiveProblem:
    """A step on its active examples, as they are at the start."""

    step: StepProblem
    objective: Objective
    before: MarginEvaluation
    slopes: Slopes
    kink_rates: tuple[Tensor, ...]  # dz/dτ at every kink


class WarmStart(NamedTuple):
    """The dual problem of an iterate and its solutions, from which the next one starts."""

    kernel: SymmetricOperator  # K
    solutions: tuple[DualStart, DualStart, DualStart]
    mean: Tensor  # p̄

    def scattered(self, rows: Rows, like: Tensor) -> Tensor:
        """The weights over the whole step, at `rows` among all potentials, zero elsewhere."""
        return like.new_zeros(like.shape).index_copy(0, rows, self.solutions[0].weights)


@dataclass(frozen=True)
class Iterate:
    """One iterate of the fixed point: the end of the step, and what it was computed from."""

    end: Weights
    slopes: Slopes
    warm_start: WarmStart | None
    cotangents: Cotangents  # Dᵀ p̄
    doubt: Cotangents  # Dᵀ (p̄ - p of lower order)
    operations: float  # of kernels and their factors
    linearization: PotentialLinearization  # at the midpoint

    def error(self, step: StepProblem) -> float:
        """`h ‖J_uᵀ (p̄ - p of lower order)‖ / ‖w‖`: the local error estimate of the step."""
        return step.span * float(self.linearization.vjp(self.doubt).norm() / step.state.weights.norm())
