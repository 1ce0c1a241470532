"""Steps of prescribed length for the escape from a saddle, where margins do not move (T6.2).

Near a saddle at zero every margin is as good as zero, `softmax(-u)` stays what it is, and the flow is that of one
homogeneous function: its direction settles, its length grows by a factor in every unit of time. A step that is a share
of the weights takes as many as the growth has e-foldings. Here the length of the step is prescribed and its time is
what follows, `w₁ - w₀ = ℓ v/‖v‖` with `v = Jᵀf` at the midpoint: along a direction that has settled it is exact for any
`ℓ`, and every quadratic law is conserved as by any midpoint step, for `w₁ - w₀` is a multiple of `Jᵀf` there.
"""

import math
import sys
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.integrate.implicit.fixed_point import at_rounding
from equipoise.integrate.implicit.step_problem import StepPredictor
from equipoise.integrate.margins.protocol import MarginEvaluation, Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.state import PhysicalTime, State, velocity_at

LONGEST = 8.0  # ‖Δw‖/‖w‖ of one step
_STILL = 0.01  # how far a potential may move in a step for `softmax(-u)` to stay as it is
_CONTRACTING = 1 / 3  # the largest ratio of successive changes of the end, which is half the step times a growth rate
_RESOLVED = 1e4  # roundings above which such a ratio is no noise
_PASSES = 30


class Escape(NamedTuple):
    """A step of prescribed length: its end, or how much shorter it must be."""

    size: float  # ‖Δw‖/‖w₀‖
    end: Weights
    evaluation: MarginEvaluation
    velocity: Weights  # -∇ log R at the end
    span: float  # ∫ dτ
    span_error: float  # its difference from that of speeds at both ends alone
    mismatch: float
    error: float  # of the direction, relative to ‖w₁‖
    passes: int
    factor: float  # by which the next step may be longer; below 1 where this one is refused
    accepted: bool

    def time(self, before: float, after: float) -> PhysicalTime:
        """The physical time of the step, from `log R` at both ends, over which it hardly changes."""
        log_risk, error = (before + after) / 2, self.span_error + self.span * abs(before - after) / 2
        return PhysicalTime(math.log(self.span) - log_risk, math.log(max(error, sys.float_info.min)) - log_risk)


def margins_at_rest(predictor: StepPredictor, size: float) -> bool:
    """Whether no margin moves appreciably in a step of this size, at the rates of the start."""
    return predictor.fastest * size <= 0.1 * _STILL * predictor.speed


def escape(objective: Objective, state: State, predictor: StepPredictor, size: float, tolerance: float) -> Escape:
    """The step of this size, iterated to rounding.

    Plainly, so that its contraction shows how the step compares with the growth rates of the linearised flow: along a
    direction of growth rate `λ` a change of the end comes back `hλ/2`-fold. Where that exceeds a third the midpoint
    rule would not follow that growth, and the step is refused; likewise where a potential moves, where a pair leaves
    its side of a kink, and where the direction, by Simpson's rule against the midpoint, is off by more than
    `tolerance`.
    """
    start, norm = state.weights, float(state.weights.norm())
    length, first = size * norm, _unit(predictor.velocity)
    end, changes, at, cotangents = start + length * first, [], state.evaluation, objective.cotangents(state.evaluation)
    middle = first
    while len(changes) < _PASSES:
        linearization = objective.linearize((start + end) / 2, state.slopes)
        at = objective.margins.evaluate(end)
        middle = linearization.vjp((cotangents + objective.cotangents(at)) / 2)
        before, end = end, start + length * _unit(middle)
        changes.append(float((end - before).norm() / end.norm()))
        if not changes[-1] < 1 or at_rounding(changes, torch.finfo(start.dtype).eps):
            break
    at = objective.margins.evaluate(end)
    after = velocity_at(objective, end, state.slopes, at)
    ratio, error = _contraction(changes, start), _error(first, _unit(middle), _unit(after), length) / float(end.norm())
    moved = float((objective.potential(at) - objective.potential(state.evaluation)).abs().max())
    worst = max(ratio / _CONTRACTING, (error / tolerance) ** (1 / 3), moved / _STILL)
    stays = _one_sided(objective, state, at)
    span = _span(length, (predictor.velocity, middle, after), (start, (start + end) / 2, end))
    converged = changes[-1] <= _RESOLVED * torch.finfo(start.dtype).eps
    factor = min(2.0, max(0.3, 0.9 / worst)) if worst > 0 and math.isfinite(worst) else (2.0 if worst == 0 else 0.3)
    accepted = stays and converged and worst <= 1
    return Escape(
        size=size,
        end=end,
        evaluation=at,
        velocity=after,
        span=span,
        span_error=abs(span - _span(length, (predictor.velocity, after), (start, end))),
        mismatch=changes[-1],
        error=error,
        passes=len(changes) + 1,
        factor=factor if stays and converged else min(factor, 0.5),
        accepted=accepted,
    )


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def _contraction(changes: list[float], start: Weights) -> float:
    """The largest ratio of successive changes above rounding."""
    floor = _RESOLVED * torch.finfo(start.dtype).eps
    return max((later / earlier for earlier, later in pairwise(changes) if later > floor), default=0.0)


def _error(first: Tensor, middle: Tensor, last: Tensor, length: float) -> float:
    """The difference of Simpson's rule and the midpoint rule, across the path: along it only time differs."""
    doubt = first - 2 * middle + last
    return length / 6 * float((doubt - (doubt @ middle) * middle).norm())


def _one_sided(objective: Objective, state: State, after: MarginEvaluation) -> bool:
    """Whether every pair keeps the side of its kink that its slope of the start implies, at both ends."""
    ends = (local_slopes(objective.margins, at) for at in (state.evaluation, after))
    return all(torch.equal(slope, kept) for end in ends for slope, kept in zip(end, state.slopes, strict=True))


def _span(length: float, flows: tuple[Tensor, ...], points: tuple[Tensor, ...]) -> float:
    """`∫ dℓ/‖v‖`, with `‖v‖` a power of `‖w‖` on each of the equal parts of the way between these points."""
    speeds, norms = ([float(each.norm()) for each in ends] for ends in (flows, points))
    parts = zip(pairwise(speeds), pairwise(norms), strict=True)
    means = [_mean_inverse(*ends, after / before) for ends, (before, after) in parts]
    return length * sum(means) / len(means)


def _mean_inverse(before: float, after: float, ratio: float) -> float:
    """The mean of `1/‖v‖` along a way on which `‖w‖` grows by `ratio`, and `‖v‖` as a power of it."""
    growth = math.log(ratio)
    if abs(growth) < 1e-3:
        return (1 / before + 1 / after) / 2
    exponent = 1 - math.log(after / before) / growth  # ∫ x^(exponent - 1) dx from 1 to ratio
    whole = growth if abs(exponent * growth) < 1e-9 else math.expm1(exponent * growth) / exponent
    return whole / (ratio - 1) / before
