"""Where a flow stands between two steps, and what a stepper is."""

import math
import sys
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.margins import Evaluation, Slopes, Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.validation import require_real

_PIECES = 60  # of the way over which time is integrated
_STILL = 1e-6  # of the mean speed, the least that is counted at an end: time would be infinite where the flow ends


@dataclass(frozen=True)
class State:
    """Everything a step needs; saved, it resumes a run bit for bit."""

    weights: Weights
    evaluation: Evaluation
    slopes: Slopes  # settled slopes of the last step: pairs that slide keep theirs
    dual: Float[Tensor, " potentials"]  # p of the last implicit step, the next one's warm start
    velocity: Weights | None = None  # -∇ log R here, or its mean over the last implicit step; None: not known
    steepness: float = math.nan  # ‖∇ log R‖ here
    sizes: dict[str, float] = field(default_factory=dict)  # relative size of the next step, by route
    log_time: float = -math.inf  # log of physical time
    temperature: float = 1.0  # of the entropic term; above 1 at the precision floor
    examples_visited: int = 0  # examples propagated forward and backward, all told
    taken: int = 0  # steps
    missed: float = 0.0  # Σ ‖w₁ - w₀ - h J(w_mid)ᵀ f‖ over the steps: what laws may drift by

    @classmethod
    def start(cls, objective: Objective, weights: Weights, sizes: dict[str, float]) -> "State":
        """The state at the start of a run."""
        at = objective.margins.evaluate(weights)
        uniform = torch.full_like(at.margins, 1 / at.margins.numel()).flatten()
        state = cls(weights, at, local_slopes(objective.margins, at), uniform, sizes=sizes)
        return replace(state, steepness=float(velocity(objective, state).norm()))


@dataclass(frozen=True)
class Update:
    """A step of gradient descent `w ← (1 - decay) w - rate · gradient`: what T2.2 predicts from."""

    gradient: Weights
    rate: float
    decay: float = 0.0


@dataclass(frozen=True)
class Step:
    """What one accepted step did."""

    route: str
    size: float  # ‖Δw‖ / ‖w‖
    asked: float  # the same as it was planned: what a shorter step is a part of
    error: float = 0.0  # local error estimate, relative to ‖w‖
    rejected: int = 0
    active: int = 0  # potentials that entered the implicit problem
    mismatch: float = 0.0  # relative distance of w_mid from self-consistency: what laws may drift by
    update: Update | None = None  # of a discrete method
    decrease: float = math.nan  # (R - R') / (η ‖∇R‖²) of gradient descent


@runtime_checkable
class Stepper(Protocol):
    """How a flow is advanced: a frozen value; whatever changes is in the state."""

    continuous: ClassVar[bool]  # follows the flow, so that a shorter step ends at an earlier point of it

    def init(self, objective: Objective, weights: Weights) -> State:
        """The state at the start of a run."""
        ...

    def step(self, objective: Objective, state: State, most: float = math.inf) -> tuple[State, Step] | None:
        """One accepted step, of relative size at most `most`; `None` where none can be taken."""
        ...


def check_steps(rtol: float, step_size: float, smallest: float) -> None:
    """Refuse a tolerance that is not positive, and sizes without `0 < smallest < step_size ≤ 1`."""
    require_real("rtol", rtol, "pass rtol=0.01", above=0)
    require_real("step_size", step_size, "pass step_size=0.05", above=0, most=1)
    require_real("smallest", smallest, "pass smallest=1e-10, or leave it out", above=0, below=step_size)


def velocity(objective: Objective, state: State) -> Weights:
    """`-∇ log R`."""
    return velocity_at(objective, state.weights, state.slopes, state.evaluation)


def velocity_at(on: Objective, weights: Weights, slopes: Slopes, at: Evaluation) -> Weights:
    """`-∇ log R` from the examples of `on` alone, `at` their evaluation: where the others do not weigh."""
    return on.linearise(weights, slopes).pullback(on.forces(at))


def physical_time(log_risks: tuple[float, float], length: float, speeds: tuple[float, float, float]) -> float:
    """`log ∫ dℓ/(‖∇ log R‖ R)`, the time that `dw/dt = -∇R` takes over a step of this `length`.

    `speeds` are `‖∇ log R‖` at its start, midpoint and end. Along it `log R` is the cubic with `d log R/dℓ` minus the
    speed at both ends (kept monotone as by Fritsch & Carlson 1980), the logarithm of the speed a parabola. Where `R`
    falls by many factors nearly all the time is spent at the end: the mesh is graded towards it, and the integrand
    taken for an exponential on each of its pieces.

    >>> math.isclose(physical_time((0.0, -1e4), 1.0, (1e4, 1e4, 1e4)), 1e4 - math.log(1e8))  # R falls as e^(-1e4 ℓ)
    True
    """
    fall, least = max(log_risks[0] - log_risks[1], 0.0), max(_STILL * speeds[1], sys.float_info.min)
    first, middle, last = (math.log(max(speed, least)) for speed in speeds)
    leaving, arriving = (min(speed * length, 3 * fall) for speed in (speeds[0], speeds[2]))
    back = np.concatenate([[0.0], np.geomspace(1e-3 / (1 + arriving), 1.0, _PIECES)])  # from the end
    ahead = 1 - back
    depth = -fall * back**2 * (3 - 2 * back) - back * ahead * (arriving * ahead - leaving * back)
    speed = first * back * (2 * back - 1) + 4 * middle * back * ahead + last * ahead * (2 * ahead - 1)
    pieces, widths = depth - speed, np.diff(back)
    drops = np.abs(np.diff(pieces))
    means = np.where(drops < 1e-6, 1 - drops / 2, -np.expm1(-drops) / np.maximum(drops, 1e-6))
    whole = np.logaddexp.reduce(np.maximum(pieces[1:], pieces[:-1]) + np.log(means) + np.log(widths))
    return math.log(length) - log_risks[1] + float(whole)


def elapsed(
    objective: Objective, before: State, after: Evaluation, length: float, speeds: tuple[float, float]
) -> float:
    """`log t` at the end of a step: `speeds` are `‖∇ log R‖` at its midpoint and its end."""
    log_risks = objective.log_risk(before.evaluation), objective.log_risk(after)
    return later(before.log_time, physical_time(log_risks, length, (before.steepness, *speeds)))


def later(log_time: float, log_span: float) -> float:
    """`log(t + Δt)` from the logarithms."""
    return float(torch.logaddexp(*torch.tensor([log_time, log_span], dtype=torch.float64)))
