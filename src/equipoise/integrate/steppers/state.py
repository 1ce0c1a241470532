"""Where a flow stands between two steps, and what a stepper is."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.margins import Evaluation, Slopes, Weights
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


@dataclass(frozen=True)
class Step:
    """What one accepted step did."""

    route: str
    size: float  # ‖Δw‖ / ‖w‖
    error: float  # local error estimate, relative to ‖w‖
    rejected: int
    active: int  # potentials that entered the implicit problem
    mismatch: float  # relative distance of w_mid from self-consistency: what laws may drift by


def physical_time(objective: Objective, before: Evaluation, after: Evaluation, span: float) -> float:
    """`log ∫ dτ / R`, the physical time of `dw/dτ = -∇ log R` over `span`, with `log R` linear in `τ` across it."""
    start = objective.log_risk(before)
    fall = start - objective.log_risk(after)
    shape = 0.0 if abs(fall) < 1e-12 else math.log(abs(-math.expm1(-abs(fall)) / fall))
    return math.log(span) - start + max(fall, 0.0) + shape


def later(log_time: float, log_span: float) -> float:
    """`log(t + Δt)` from the logarithms."""
    return float(torch.logaddexp(*torch.tensor([log_time, log_span], dtype=torch.float64)))
