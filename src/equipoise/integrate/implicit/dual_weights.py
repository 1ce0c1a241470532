"""The weights `p̄` of the examples over a step: by the trapezoidal rule, or from the dual problem (T6.1)."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.implicit.active_set import forming_operations
from equipoise.integrate.implicit.dual_problem import DualStart, extrapolated_average
from equipoise.integrate.implicit.operators import DenseOperator, LowRankOperator, SymmetricOperator
from equipoise.integrate.implicit.step_problem import WarmStart
from equipoise.integrate.margins.protocol import MarginEvaluation
from equipoise.integrate.margins.readout import Rows
from equipoise.integrate.objective import Cotangents, Objective, PotentialLinearization

_STEADY = 3e-3  # tolerance of the dual problem below which the kernel of the last iterate serves


class Average(NamedTuple):
    """`p̄` over a step, as cotangents of the margins."""

    mean: Cotangents  # Dᵀ p̄
    doubt: Cotangents  # Dᵀ (p̄ - p of lower order)
    warm_start: WarmStart | None = None  # of the next iterate
    operations: float = 0.0  # of kernels and their factors


class DualWeights(Protocol):
    """A rule for `p̄`."""

    def average(
        self,
        linearization: PotentialLinearization,
        before: MarginEvaluation,
        after: MarginEvaluation,
        warm_start: WarmStart | None,
        tolerance: float,
        most: float = math.inf,
    ) -> Average:
        """`p̄` as cotangents of the margins.

        Args:
            linearization: of the potentials at the midpoint.
            before: the active examples at the start of the step.
            after: the same at its end, as far as it is known.
            warm_start: the dual problem of the iterate before; None at the first.
            tolerance: residual at which the dual problem is solved.
            most: operations of factors after which it is given up.
        """
        ...


@dataclass(frozen=True)
class TrapezoidalWeights:
    """`p̄ = ½(softmax(-u₀) + softmax(-u₁))`: no kernel, for margins that move by about one in a step."""

    objective: Objective
    order: int = 2

    def average(
        self,
        linearization: PotentialLinearization,
        before: MarginEvaluation,
        after: MarginEvaluation,
        warm_start: WarmStart | None,
        tolerance: float,
        most: float = math.inf,
    ) -> Average:
        """The mean of both ends, and half their difference; there is no dual problem."""
        start, end = self.objective.cotangents(before), self.objective.cotangents(after)
        mean = end if self.order == 1 else (start + end) / 2
        return Average(mean, (end - start) / 2)


@dataclass(frozen=True)
class EntropicWeights:
    """`p̄` of the stiff system of margins, `du/dτ = K softmax(-u)`, by extrapolated implicit Euler steps.

    `landmarks` are the potentials whose columns of the kernel are formed; `None`: all of them.
    """

    objective: Objective  # on the active potentials
    cold_start: Float[Tensor, " rows"]  # the weights of the last step
    landmarks: Rows | None
    span: float
    temperature: float
    order: int = 2

    def average(
        self,
        linearization: PotentialLinearization,
        before: MarginEvaluation,
        after: MarginEvaluation,
        warm_start: WarmStart | None,
        tolerance: float,
        most: float = math.inf,
    ) -> Average:
        """The extrapolated average, its difference to first order, and the solutions to start from."""
        u0, u1 = self.objective.potential(before), self.objective.potential(after)
        serves = warm_start is not None and tolerance < _STEADY
        formed = 0.0 if serves else forming_operations(self.objective, len(u0), self.landmarks)
        if warm_start is None:
            cold = DualStart(self.cold_start)
            kernel, drift, starts = self._kernel(linearization), torch.zeros_like(u0), (cold, cold, cold)
        else:
            kernel = warm_start.kernel if serves else self._kernel(linearization)
            # The part of u₁ - u₀ that the frozen kernel does not explain: with it the margins end where they are
            drift, starts = u1 - u0 - self.span * kernel.matmul(warm_start.mean), warm_start.solutions
        scaled, most = kernel.scaled(self.span), most - formed
        found = extrapolated_average(scaled, u0, drift, starts, self.temperature, tolerance, most)
        whole, first, second = (solution.weights for solution in found)
        second_order = first + second - whole
        mean = whole if self.order == 1 else second_order
        solutions = (found[0].start, found[1].start, found[2].start)
        doubt = linearization.cotangents(second_order - whole)
        operations = formed + sum(solution.operations for solution in found)
        return Average(linearization.cotangents(mean), doubt, WarmStart(kernel, solutions, mean), operations)

    def _kernel(self, linearization: PotentialLinearization) -> SymmetricOperator:
        """`K`, or its approximation from the columns of the landmarks: what that lacks is in the drift."""
        if self.landmarks is None:
            return DenseOperator(linearization.kernel())
        return LowRankOperator.through(linearization.kernel(self.landmarks), self.landmarks)
