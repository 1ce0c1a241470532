"""The state of a flow between two steps, its physical time, the record of a step, and the progress of a run."""

import math
from collections.abc import Callable
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


@dataclass(frozen=True)
class PhysicalTime:
    """`log t` of `dw/dt = -∇R` since the start of a run, and the logarithm of the estimated error of `t`."""

    log: float = -math.inf
    log_error: float = -math.inf

    @property
    def relative_error(self) -> float:
        """The estimated error over `t`; 0 at the start.

        >>> round(PhysicalTime(math.log(10), math.log(0.1)).relative_error, 12)
        0.01
        """
        return 0.0 if self.log == -math.inf else math.exp(min(self.log_error - self.log, 700.0))

    def later(self, step: "PhysicalTime") -> "PhysicalTime":
        """The time after a step; errors add up."""
        return PhysicalTime(_log_sum(self.log, step.log), _log_sum(self.log_error, step.log_error))


def _log_sum(one: float, other: float) -> float:
    """`log(e^one + e^other)`."""
    return float(np.logaddexp(one, other))


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
    costs: dict[str, float] = field(default_factory=dict)  # what the last steps cost, by route, where routes compete
    stiffest: Weights | None = None  # J v for the unit vector v of the stiffest direction met, after a stabilised step
    time: PhysicalTime = PhysicalTime()
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
    operations: float = 0.0  # of an implicit step, with the tries before it
    resized: "Callable[[float], tuple[State, Step] | None] | None" = field(default=None, repr=False, compare=False)
    """The step at another planned size, cheaply; `None` where that would be too coarse."""


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
