"""Where a flow stands between two steps, and what a stepper is."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.margins import Evaluation, Slopes, Weights, local_slopes
from equipoise.integrate.objective import Objective


@dataclass(frozen=True)
class State:
    """Everything a step needs; saved, it resumes a run bit for bit."""

    weights: Weights
    evaluation: Evaluation
    slopes: Slopes  # settled slopes of the last step: pairs that slide keep theirs
    dual: Float[Tensor, " potentials"]  # p of the last implicit step, the next one's warm start
    velocity: Weights | None = None  # mean velocity over the last implicit step: the next one's too, while it stays
    sizes: dict[str, float] = field(default_factory=dict)  # relative size of the next step, by route
    log_time: float = -math.inf  # log of physical time
    temperature: float = 1.0  # of the entropic term; above 1 at the precision floor
    examples_visited: int = 0  # examples propagated forward and backward, all told
    taken: int = 0  # steps

    @classmethod
    def start(cls, objective: Objective, weights: Weights, sizes: dict[str, float]) -> "State":
        """The state at the start of a run."""
        at = objective.margins.evaluate(weights)
        uniform = torch.full_like(at.margins, 1 / at.margins.numel()).flatten()
        return cls(weights, at, local_slopes(objective.margins, at), uniform, sizes=sizes)


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


def velocity(objective: Objective, state: State) -> Weights:
    """`-∇ log R`."""
    return objective.linearise(state.weights, state.slopes).pullback(objective.forces(state.evaluation))


def physical_time(objective: Objective, before: Evaluation, after: Evaluation, span: float) -> float:
    """`log ∫ dτ / R`, the physical time of `dw/dτ = -∇ log R` over `span`, with `log R` linear in `τ` across it."""
    start = objective.log_risk(before)
    fall = start - objective.log_risk(after)
    shape = 0.0 if abs(fall) < 1e-12 else math.log(abs(-math.expm1(-abs(fall)) / fall))
    return math.log(span) - start + max(fall, 0.0) + shape


def later(log_time: float, log_span: float) -> float:
    """`log(t + Δt)` from the logarithms."""
    return float(torch.logaddexp(*torch.tensor([log_time, log_span], dtype=torch.float64)))
