"""Stabilised explicit steps whose laws are restored by symmetry: flow over much data, before separation (T6.4).

A Runge–Kutta–Chebyshev step costs one pass over the data for each of its `s` stages and is stable for `h ρ ≲ 0.65 s²`,
`ρ` the spectral radius of the flow's Jacobian. No slope is frozen, no kernel formed: a pair that slides chatters
about its kink, and its part of the velocity averages over the stages. The step carries the laws off by its own error;
then the weights move along the symmetries behind the laws, which leaves the function alone, until every law has the
value of the start of the run again, to rounding.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import ClassVar, NamedTuple

import torch

from equipoise.arguments import checked_fields
from equipoise.errors import InputError
from equipoise.integrate.margins.protocol import Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.state import State, Step
from equipoise.integrate.steppers.physical_time import elapsed
from equipoise.integrate.steppers.protocol import check_steps
from equipoise.transform.restoring import Restored

ROUTE = "chebyshev"
_DAMPING = 2 / 13  # of Sommeijer, Shampine & Verwer (1998), as is the length 2/3 (1 - 2/15 ε) s² of the stable interval
_STABLE = 1.54  # s² over h ρ
_RADIUS_SAFETY = 1.2
_MOST_STAGES = 80
_COLD, _WARM = 10, 1  # power iterations, from the velocity and from the direction of the last step
_FADES = 0.8  # of the last spectral radius, that an estimate from one iteration may not fall below
_DIFFERENCE = 1e-4  # ‖Δw‖/‖w‖ over which the Jacobian is taken: kinks within it count with their share
_FIRST = 1e-3  # size of the first step
_GROWS, _SHRINKS, _SAFETY = 2.0, 0.3, 0.8
_LIGHTER = {True: 0.25, False: 0.5}  # seconds of a pass over those of an implicit step's, in float32 and in float64
_RESOLVED = 1e3  # potentials above which differences of 1e-4 need float64
_RESTORED = 1e-13  # ‖C - C₀‖/‖w‖² that may be left of a law
_ROUNDINGS = 500  # the same where the weights are in float32


@checked_fields
@dataclass(frozen=True)
class RungeKuttaChebyshev:
    """`dw/dτ = -∇ log R` by the second-order Runge–Kutta–Chebyshev method, with every law restored after each step.

    The formulas and the error estimate are those of RKC (Sommeijer, Shampine & Verwer 1998); the number of stages
    follows from the spectral radius, by power iteration on the flow itself, one pass a step. `rtol` bounds the
    estimated local error of a step relative to `‖w‖`, `step_size` its length in the same unit. Gradients are summed
    over blocks of examples, propagated in float32 while potentials are below 1e3: laws do not depend on it.

    For networks all of whose exact laws belong to symmetries that move the weights; raises `InputError` for others.
    """

    rtol: float = 0.01
    step_size: float = 0.05
    smallest: float = 1e-10
    continuous: ClassVar[bool] = True

    def __post_init__(self):
        check_steps(self.rtol, self.step_size, self.smallest)

    def init(self, objective: Objective, weights: Weights) -> State:
        """The state at the start of a run."""
        if objective.conserved is None:
            raise InputError(
                expected="a network whose laws all belong to symmetries that move its weights",
                found="a conserved quantity without such a symmetry",
                remedy="pass stepper=eq.steppers.EntropicMidpoint()",
            )
        return State.start(objective, weights, {ROUTE: _FIRST})

    def step(self, objective: Objective, state: State, max_size: float = math.inf) -> tuple[State, Step] | None:
        """One accepted step, or `None` when none above `smallest` is acceptable or the velocity vanishes."""
        return stabilised_step(objective, state, self.rtol, self.step_size, self.smallest, max_size)


def stabilised_step(
    objective: Objective, state: State, rtol: float, step_size: float, smallest: float, max_size: float = math.inf
) -> tuple[State, Step] | None:
    """One accepted step, or `None`; `state.costs` then has what it cost a unit of its length, in operations."""
    wanted, norm = min(state.sizes.get(ROUTE, _FIRST), step_size), float(state.weights.norm())
    field = _Field(objective, single=not max_size < wanted and _in_single(objective, state))
    known = state.stiffest is not None and state.velocity is not None and field.single
    velocity = state.velocity if known and state.velocity is not None else field(state.weights)
    speed = float(velocity.norm()) / norm if norm > 0 else 0.0
    if not 0 < speed < math.inf:
        return None
    stiffest, passes = _stiffest(field, state, velocity)
    radius, passes, rejected = float(stiffest.norm()) * _RADIUS_SAFETY, passes + (not known), 0
    while wanted >= smallest and math.isfinite(radius):
        stages = _stages(wanted / speed * radius)
        if stages == _MOST_STAGES:
            wanted = min(wanted, _reach(stages) / radius * speed)
        size = min(wanted, max_size)
        tried = _tried(field, state.weights, velocity, size / speed, stages)
        passes += stages
        worse = tried.error / norm / rtol if math.isfinite(tried.error) else math.inf
        factor = min(_GROWS, max(_SHRINKS, _SAFETY / math.sqrt(worse))) if worse > 0 else _GROWS
        if worse <= 1:
            weights, end = tried.end.clone(), tried.velocity.clone()
            left, operations = _restored(objective, weights, end)
            if left <= _restorable(weights):
                factor = min(factor, 1.0) if rejected else factor
                grown = state.sizes.get(ROUTE, _FIRST) if size < wanted else min(step_size, size * factor)
                record = Step(ROUTE, float((weights - state.weights).norm()) / norm, size, tried.error / norm, rejected)
                after = _advanced(objective, state, weights, end, size / speed, left, passes)
                cost = (passes * _LIGHTER[field.single] * objective.operations + operations) / record.size
                after = replace(
                    after, sizes=state.sizes | {ROUTE: grown}, costs=state.costs | {ROUTE: cost}, stiffest=stiffest
                )
                record = replace(record, mismatch=left, active=len(after.dual))
                return after, replace(record, resized=partial(_interpolated, objective, state, after, record))
        wanted, rejected = size * min(factor, 0.7), rejected + 1
    return None


def _interpolated(
    objective: Objective, state: State, after: State, step: Step, size: float
) -> tuple[State, Step] | None:
    """A part of the step from `state`, by interpolation; `None` where its laws cannot be restored.

    The cubic through both ends with both velocities is as near to the flow as the ends are; laws are restored on it as
    they are there. Two passes, where a step anew takes one for each of its stages.
    """
    assert after.velocity is not None
    field, share = _Field(objective, single=False), size / step.planned
    known = state.stiffest is not None and state.velocity is not None  # else it is the mean over an implicit step
    start = state.velocity if known and state.velocity is not None else field(state.weights)
    span = step.planned / float(start.norm()) * float(state.weights.norm())
    weights = _cubic(share, state.weights, span * start, after.weights, span * after.velocity)
    assert objective.conserved is not None
    left = objective.conserved.restore(objective.margins.layout.views(weights)).left
    if not left <= _restorable(weights):
        return None
    ends = _advanced(objective, state, weights, field(weights), share * span, left, 1)
    visited = after.examples_visited + objective.count + objective.count // 3
    length = float((weights - state.weights).norm()) / float(state.weights.norm())
    return replace(
        ends, examples_visited=visited, sizes=after.sizes, costs=after.costs, stiffest=after.stiffest
    ), replace(step, size=length, planned=size, mismatch=left)


def _cubic(share: float, start: Weights, begins: Weights, end: Weights, ends: Weights) -> Weights:
    """The cubic Hermite interpolant at this share of the way, from values and derivatives by the share."""
    rest = 1 - share
    values = rest**2 * (1 + 2 * share) * start + share**2 * (1 + 2 * rest) * end
    return values + share * rest**2 * begins - share**2 * rest * ends


def _restorable(weights: Weights) -> float:
    """The largest `‖C - C₀‖/‖w‖²` that may be left."""
    return max(_RESTORED, _ROUNDINGS * torch.finfo(weights.dtype).eps)


class _Field(NamedTuple):
    """The vector field `-∇ log R`."""

    objective: Objective
    single: bool

    def __call__(self, weights: Weights) -> Weights:
        return self.objective.flow(weights, single=self.single)[0]


class _Tried(NamedTuple):
    end: Weights
    velocity: Weights  # there
    error: float  # of the weights


def _in_single(objective: Objective, state: State) -> bool:
    """Whether float32 resolves the weights of the examples."""
    return float(objective.potential(state.evaluation).abs().max()) < _RESOLVED


def _stiffest(field: _Field, state: State, velocity: Weights) -> tuple[Weights, int]:
    """`J v` of the stiffest direction `v` met, by power iteration, and the passes it took.

    Its length, the spectral radius, does not fall below a share of what it was on the last step: one iteration may
    miss the direction that has become the stiffest.
    """
    before, image, count = state.stiffest, state.stiffest, _WARM
    if image is None:
        image, count = velocity, _COLD
    length = _DIFFERENCE * float(state.weights.norm())
    for _ in range(count):
        if not float(image.norm()) > 0:  # a flow that is the same all around
            break
        image = (field(state.weights + length / float(image.norm()) * image) - velocity) / length
    least = 0.0 if before is None else _FADES * float(before.norm())
    radius = float(image.norm())
    return (image * (max(radius, least) / radius) if radius > 0 else velocity), count


def _stages(stiffness: float) -> int:
    """The fewest stages that are stable for `h ρ`.

    >>> _stages(0.5), _stages(100.0)
    (2, 13)
    """
    return min(_MOST_STAGES, max(2, math.ceil(math.sqrt(1 + _STABLE * stiffness))))


def _reach(stages: int) -> float:
    """The largest `h ρ` for which this number of stages is stable."""
    return (stages**2 - 1) / _STABLE


class _Coefficients(NamedTuple):
    """Of `Y_j = (1 - μ - ν) w + μ Y_{j-1} + ν Y_{j-2} + h (μ̃ F_{j-1} + γ̃ F_0)`, `j` from 2; `μ̃₁` of the first stage."""

    first: float
    later: tuple[tuple[float, float, float, float], ...]


@cache
def _coefficients(stages: int) -> _Coefficients:
    """The coefficients of RKC with these stages, from Chebyshev polynomials and two derivatives at `w₀ > 1`."""
    at = 1 + _DAMPING / stages**2
    value, slope, curvature = [1.0, at], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, stages + 1):
        value.append(2 * at * value[-1] - value[-2])
        curvature.append(4 * slope[-1] + 2 * at * curvature[-1] - curvature[-2])
        slope.append(2 * value[-2] + 2 * at * slope[-1] - slope[-2])
    scale = slope[stages] / curvature[stages]
    shares = [curvature[j] / slope[j] ** 2 for j in range(2, stages + 1)]
    shares = [shares[0], shares[0], *shares]
    later = []
    for j in range(2, stages + 1):
        ratio = shares[j] / shares[j - 1]
        steep = 2 * ratio * scale
        later.append((2 * ratio * at, -shares[j] / shares[j - 2], steep, -(1 - shares[j - 1] * value[j - 1]) * steep))
    return _Coefficients(shares[1] * scale, tuple(later))


def _tried(field: _Field, start: Weights, velocity: Weights, span: float, stages: int) -> _Tried:
    """The end of a step of RKC, and its error, `0.8 (w₀ - w₁) + 0.4 h (F₀ + F₁)`."""
    coefficients = _coefficients(stages)
    before, now = start, start + coefficients.first * span * velocity
    for one, two, steep, drift in coefficients.later:
        change = span * (steep * field(now) + drift * velocity)
        before, now = now, (1 - one - two) * start + one * now + two * before + change
    last = field(now)
    return _Tried(now, last, float((0.8 * (start - now) + 0.4 * span * (velocity + last)).norm()))


def _restored(objective: Objective, weights: Weights, velocity: Weights) -> Restored:
    """Every law restored in place, the velocity carried along."""
    assert objective.conserved is not None
    views = objective.margins.layout.views
    return objective.conserved.restore(views(weights), views(velocity))


def _advanced(
    objective: Objective, state: State, weights: Weights, velocity: Weights, span: float, left: float, passes: int
) -> State:
    """The state at the end of a step."""
    at = objective.margins.evaluate(weights)
    length, speed = float((weights - state.weights).norm()), float(velocity.norm())
    return State(
        weights=weights,
        evaluation=at,
        slopes=local_slopes(objective.margins, at),
        dual=torch.softmax(-objective.potential(at), 0),
        velocity=velocity,
        gradient_norm=speed,
        time=elapsed(objective, state, at, length, (length / span, speed)),
        temperature=state.temperature,
        examples_visited=state.examples_visited + passes * objective.count + objective.count // 3,
        taken=state.taken + 1,
        missed=state.missed + left * float(weights.norm()),
    )
