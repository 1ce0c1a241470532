"""The state of a flow between two steps, the record of a step, the progress of a run, and physical time."""

import math
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.margins.protocol import MarginEvaluation, Slopes, Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.laws.evaluate import LawReadings
from equipoise.observers import StateLike
from equipoise.store import Record

_PIECES = 60  # of the way over which time is integrated
_STILL = 1e-6  # of the mean speed, the least that is counted at an end: time would be infinite where the flow ends


@dataclass(frozen=True)
class State:
    """Everything a step needs; saved, it resumes a run bit for bit."""

    weights: Weights
    evaluation: MarginEvaluation
    slopes: Slopes  # slopes of the last step: pairs that slide keep theirs
    dual: Float[Tensor, " potentials"]  # p of the last implicit step, the next one's warm start
    velocity: Weights | None = None  # -∇ log R here, or its mean over the last implicit step; None: not known
    gradient_norm: float = math.nan  # ‖∇ log R‖ here
    sizes: dict[str, float] = field(default_factory=dict)  # relative size of the next step, by route
    log_time: float = -math.inf  # log of physical time
    temperature: float = 1.0  # of the entropic term; above 1 at the precision floor
    examples_visited: int = 0  # examples propagated forward and backward, in all
    taken: int = 0  # steps
    missed: float = 0.0  # Σ ‖w₁ - w₀ - h J(w_mid)ᵀ f‖ over the steps: bounds the drift of laws

    @classmethod
    def start(cls, objective: Objective, weights: Weights, sizes: dict[str, float]) -> "State":
        """The state at the start of a run."""
        at = objective.margins.evaluate(weights)
        uniform = torch.full_like(at.margins, 1 / at.margins.numel()).flatten()
        state = cls(weights, at, local_slopes(objective.margins, at), uniform, sizes=sizes)
        return replace(state, gradient_norm=float(velocity(objective, state).norm()))


@dataclass(frozen=True)
class Update:
    """A step of gradient descent `w ← (1 - decay) w - rate · gradient`, from which T2.2 predicts the laws."""

    gradient: Weights
    rate: float
    decay: float = 0.0


@dataclass(frozen=True)
class Step:
    """The record of an accepted step."""

    route: str
    size: float  # ‖Δw‖ / ‖w‖
    planned: float  # the same as it was planned: a shorter step is a part of it
    error: float = 0.0  # local error estimate, relative to ‖w‖
    rejected: int = 0
    active: int = 0  # potentials that entered the implicit problem
    mismatch: float = 0.0  # relative distance of w_mid from self-consistency: bounds the drift of laws
    update: Update | None = None  # of a discrete method
    decrease: float = math.nan  # (R - R') / (η ‖∇R‖²) of gradient descent


@dataclass(frozen=True)
class Progress:
    """The progress of a run: all that a checkpoint holds."""

    step: int
    state: State
    observed: tuple[StateLike, ...]  # the state of each observer
    falls: tuple[float, ...] = ()  # log-losses of the last steps
    slopes: tuple[float, ...] = ()  # ‖∇ log R‖ ‖w‖ at the same points
    sizes: tuple[float, ...] = ()  # ‖Δw‖/‖w‖ of the last steps
    records: list[Record] = field(default_factory=list, repr=False)  # a log, only ever appended to
    written: int = 0  # records that are on disk
    saved: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)  # likewise only ever added to
    seconds: float = 0.0
    committed: float = 0.0  # of these, at the last checkpoint
    before: LawReadings | None = None  # of the laws, before the discrete step that is being taken


def velocity(objective: Objective, state: State) -> Weights:
    """`-∇ log R`."""
    return velocity_at(objective, state.weights, state.slopes, state.evaluation)


def velocity_at(on: Objective, weights: Weights, slopes: Slopes, at: MarginEvaluation) -> Weights:
    """`-∇ log R` from the examples of `on` alone, `at` their evaluation: where the others do not weigh."""
    return on.linearize(weights, slopes).vjp(on.cotangents(at))


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
    objective: Objective, before: State, after: MarginEvaluation, length: float, speeds: tuple[float, float]
) -> float:
    """`log t` at the end of a step: `speeds` are `‖∇ log R‖` at its midpoint and its end."""
    log_risks = objective.log_risk(before.evaluation), objective.log_risk(after)
    return later(before.log_time, physical_time(log_risks, length, (before.gradient_norm, *speeds)))


def later(log_time: float, log_span: float) -> float:
    """`log(t + Δt)` from the logarithms."""
    return float(torch.logaddexp(*torch.tensor([log_time, log_span], dtype=torch.float64)))
