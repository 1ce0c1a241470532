"""The convex problem inside an entropic step (T6.1).

One implicit Euler step of `du/dτ = K softmax(-u)` over `[0, h]` is the strictly convex problem

    p = argmin over the simplex of  ½ pᵀ A p + bᵀp + T Σ p log p,      A = hK,  T = 1,

whose optimality condition is `p = softmax(-(b + A p)/T)`. With `A` up to 1e14 it is a hard-margin SVM in all but name,
and with `A` small it is a softmax; Newton's method in `log p` covers both.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.implicit.operators import ShiftedFactor, SymmetricOperator

TOLERANCE = 1e-8  # Σ p |residual| / T at which an iterate is a solution
_ITERATIONS = 60
_FLOOR = 1e-13  # weight below which a warm start may not fall: Newton cannot revive an exact zero
_CHORD = 0.2  # a factor serves while every step with it leaves at most this share of the residual
_LADDER = 20.0  # factor between temperatures when a warm start fails
_ROUNDINGS = 4  # of the largest potential: the error of differences of potentials, and the least temperature


def precision_floor(dtype: torch.dtype) -> float:
    """`1/(4 ε)`, the largest potential at which differences of 1 are still resolved: where the temperature is 1.

    >>> f"{precision_floor(torch.float64):.1e}", f"{precision_floor(torch.float32):.1e}"
    ('1.1e+15', '2.1e+06')
    """
    return 1 / (_ROUNDINGS * torch.finfo(dtype).eps)


def resolved_temperature(potential: Float[Tensor, " potentials"]) -> float:
    """`T = max(1, 4 ε max|u|)`: above 1 where softmax(-u) would weigh examples by rounding.

    >>> resolved_temperature(torch.tensor([5e14, 1e14]).double())
    1.0
    """
    return max(1.0, float(potential.abs().max()) / precision_floor(potential.dtype))


class DualStart(NamedTuple):
    """A starting point: weights, not negative, and a factor of a nearby problem."""

    weights: Float[Tensor, " a"]
    factor: ShiftedFactor | None = None


@dataclass(frozen=True)
class DualSolution:
    """Weights on the simplex, the residual `Σ p |b + Ap + T log p + λ| / T` left, and the iterations they took."""

    weights: Float[Tensor, " a"]
    residual: float
    iterations: int
    converged: bool
    factor: ShiftedFactor | None = None  # the last of Newton's method
    operations: float = 0.0  # of all its factors

    @property
    def start(self) -> DualStart:
        """The starting point of a nearby problem."""
        return DualStart(self.weights, self.factor)


def entropic_minimum(
    operator: SymmetricOperator,
    linear: Float[Tensor, " a"],
    start: DualStart,
    temperature: float = 1.0,
    tolerance: float = TOLERANCE,
    most: float = math.inf,
) -> DualSolution:
    """The minimum of `½ pᵀAp + bᵀp + T Σ p log p` over the simplex (T6.1), warm-started.

    `operator` is `A`, `linear` is `b`. When Newton's method fails from `start`, the temperature is lowered to `T` in
    factors of 20 from the scale of `A`. `tolerance` is the residual `Σ p |b + Ap + T log p + λ| / T` at which an
    iterate is a solution; `most` the operations of factors after which it is given up.

    >>> from equipoise.integrate.implicit.operators import DenseOperator
    >>> zeros, start = DenseOperator(torch.zeros(2, 2).double()), DualStart(torch.tensor([0.9, 0.1]).double())
    >>> flat = entropic_minimum(zeros, torch.zeros(2).double(), start)
    >>> flat.weights
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    linear = linear - linear.min()
    found = _newton(operator, linear, start, temperature, tolerance, most)
    if found.converged or found.operations > most:
        return found
    weights, iterations, operations = torch.full_like(linear, 1 / len(linear)), found.iterations, found.operations
    for rung in _rungs(operator, linear, temperature):
        found = _newton(operator, linear, DualStart(weights), rung, tolerance, most - operations)
        weights, iterations = found.weights, iterations + found.iterations
        operations += found.operations
        if operations > most:
            break
    return replace(found, iterations=iterations, operations=operations)


def extrapolated_average(
    operator: SymmetricOperator,
    initial: Float[Tensor, " a"],
    drift: Float[Tensor, " a"],
    start: tuple[DualStart, DualStart, DualStart],
    temperature: float = 1.0,
    tolerance: float = TOLERANCE,
    most: float = math.inf,
) -> tuple[DualSolution, DualSolution, DualSolution]:
    """One implicit Euler step over `[0, h]`, and two over its halves, of `du/dτ = K softmax(-u) + drift/h`.

    The time average of `softmax(-u)` is `p̄ = p_a + p_b - p_1` to second order (T6.1); `p_1` alone is first.
    Returned as `(p_1, p_a, p_b)`. `operator` is `hK`, `initial` is `u(0)`, `start` three warm starts. Solved in
    float64, also for a network in float32: the problem is small, and its weights are near zero and one. `most` bounds
    the operations of all factors; what is not solved within them has not converged.
    """
    given = initial.dtype
    operator, initial, drift = operator.double(), initial.double(), drift.double()
    whole_start, first_start, second_start = (one._replace(weights=one.weights.double()) for one in start)
    half = operator.scaled(0.5)
    whole = entropic_minimum(operator, initial + drift, whole_start, temperature, tolerance, most)
    most -= whole.operations
    first = entropic_minimum(half, initial + drift / 2, first_start, temperature, tolerance, most)
    most -= first.operations
    moved = initial + drift + half.matmul(first.weights)
    second = entropic_minimum(half, moved, second_start, temperature, tolerance, most)
    whole, first, second = (replace(found, weights=found.weights.to(given)) for found in (whole, first, second))
    return whole, first, second


def _rungs(operator: SymmetricOperator, linear: Tensor, temperature: float) -> list[float]:
    """Temperatures from the scale of the problem down to the one asked for."""
    rungs = [temperature]
    scale = float(operator.diagonal.max() + linear.max())
    while rungs[-1] < scale:
        rungs.append(rungs[-1] * _LADDER)
    return rungs[::-1]


def _newton(
    operator: SymmetricOperator, linear: Tensor, start: DualStart, temperature: float, tolerance: float, most: float
) -> DualSolution:
    """Newton's method in `log p`, with steps that stay positive; stops where rounding does, or beyond `most`."""
    weights, factor, operations = _normalised(start.weights.clamp(min=_FLOOR)), start.factor, 0.0
    epsilon = torch.finfo(linear.dtype).eps
    rounding = 4 * epsilon * (linear + operator.diagonal + operator.matmul(weights).abs())
    slope = _slope(operator, linear, weights, temperature)
    residual = float("inf")
    for iteration in range(_ITERATIONS):
        slope = slope - weights @ slope
        floor = float(weights @ rounding) / temperature
        before, residual = residual, float(weights @ slope.abs()) / temperature
        if residual <= max(tolerance, floor):
            return DualSolution(weights, residual, iteration, True, factor, operations)
        if operations > most:
            return DualSolution(weights, residual, iteration, False, factor, operations)
        if factor is None or residual > _CHORD * before:
            factor = operator.factor(weights, temperature)
            operations += factor.operations
        direction = factor.direction(slope)
        if not bool(torch.isfinite(direction).all()):
            return DualSolution(weights, residual, iteration, False, operations=operations)
        weights, slope = _advance(operator, linear, weights, slope, direction, temperature, floor)
    return DualSolution(weights, residual, _ITERATIONS, False, operations=operations)


def _slope(operator: SymmetricOperator, linear: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """The objective's gradient, up to a constant."""
    return linear + operator.matmul(weights) + temperature * torch.log(weights)


def _advance(
    operator: SymmetricOperator,
    linear: Tensor,
    weights: Tensor,
    slope: Tensor,
    direction: Tensor,
    temperature: float,
    floor: float,
) -> tuple[Tensor, Tensor]:
    """The longest step `t = 1, ½, ¼, …` at whose end the objective does not rise faster than it fell at the start.

    A growing weight moves along `p(1 + t d)`, a shrinking one along `p/(1 - t d)`: both are Newton's step to first
    order and neither leaves the simplex. A gradient test, unlike one of objective values, survives `A = 1e14`.
    """
    length = 1.0
    while True:
        move = length * direction
        trial = _normalised(torch.where(move >= 0, weights * (1 + move), weights / (1 - move)))
        trial_slope = _slope(operator, linear, trial, temperature)
        change = trial - weights
        if float(change @ trial_slope) <= 0.5 * abs(float(change @ slope)) + temperature * floor or length < 1e-6:
            return trial, trial_slope
        length /= 2


def _normalised(weights: Tensor) -> Tensor:
    weights = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    return weights / weights.sum()
