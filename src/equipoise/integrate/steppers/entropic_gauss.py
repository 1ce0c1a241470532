"""Two-stage Gauss collocation of the entropic flow: fourth order on networks without kinks (T6)."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.arguments import checked_fields
from equipoise.errors import InputError
from equipoise.integrate.implicit.active_set import predicted_active_set, violations
from equipoise.integrate.implicit.dual_problem import resolved_temperature
from equipoise.integrate.implicit.fixed_point import at_rounding
from equipoise.integrate.implicit.step_problem import StepPredictor
from equipoise.integrate.margins.protocol import Weights
from equipoise.integrate.margins.readout import Rows
from equipoise.integrate.objective import Cotangents, Objective
from equipoise.integrate.state import State, Step, velocity_at
from equipoise.integrate.steppers.physical_time import elapsed
from equipoise.integrate.steppers.protocol import check_steps

_NODES = ((1 / 4, 1 / 4 - 3**0.5 / 6), (1 / 4 + 3**0.5 / 6, 1 / 4))  # Butcher matrix; both weights are ½
_ITERATIONS = 40  # iterations after which a step is given up
_CONVERGED = 1e-12  # change of the stages relative to ‖w‖ at which they have converged
_TOLERABLE = 1e-9  # the same, where it falls no further
_CONVERGING = 60  # iterations of the stages alone
_CONSISTENT = 500  # roundings by which they may miss themselves
_NEWTON = 40
_LENGTHS = tuple(2.0**-k for k in range(7))  # of a Newton step, until it lowers the residual
_LOWER = 0.995  # by so much

Pair = tuple[Tensor, Tensor]


@checked_fields
@dataclass(frozen=True)
class EntropicGauss:
    """Gauss collocation with two stages, `w_j = w₀ + h Σ_k a_jk J_u(w_k)ᵀ p_k`, `p_k = softmax(-u(w_k))`.

    Fourth order, and exact in every quadratic law as the midpoint rule is: at each stage T1 holds for each example,
    hence for any `p_k`, and Gauss methods conserve quadratic invariants (Hairer, Lubich & Wanner, *Geometric Numerical
    Integration*, IV.2). The stiffness lies in the potentials of the active examples, where a damped Newton iteration
    solves both stages together; the stages themselves are then converged to rounding.

    For networks whose output is smooth in the weights: raises `InputError` where there are kinks, at which no method
    keeps its order. `step_size` is the largest `‖Δw‖/‖w‖` of a step, `rtol` bounds what one midpoint in place of both
    stages would change, in the same unit; a step that exceeds it or does not converge is halved.
    """

    rtol: float = 0.01
    step_size: float = 0.05
    smallest: float = 1e-10
    continuous: ClassVar[bool] = True

    def __post_init__(self):
        check_steps(self.rtol, self.step_size, self.smallest)

    def init(self, objective: Objective, weights: Weights) -> State:
        """The state at the start of a run."""
        if objective.margins.kinks:
            raise InputError(
                expected="a network without kinks, on which a method of fourth order keeps its order",
                found=f"{len(objective.margins.kinks)} layers with ReLU, a maximum, or the like",
                remedy="pass stepper=eq.steppers.EntropicMidpoint()",
            )
        return State.start(objective, weights, {"gauss": self.step_size})

    def step(self, objective: Objective, state: State, max_size: float = math.inf) -> tuple[State, Step] | None:
        """One accepted step, or `None` when no step above `smallest` is acceptable or the velocity vanishes."""
        predictor, wanted, rejected = StepPredictor.at(objective, state), state.sizes["gauss"], 0
        visited = state.examples_visited + objective.count
        while 0 < predictor.speed < math.inf and wanted >= self.smallest:
            size = min(wanted, max_size)
            taken = _collocated(objective, state, predictor, size / predictor.speed)
            visited += taken.visited
            if taken.converged and taken.error <= self.rtol:
                grown = wanted if size < wanted else min(self.step_size, 1.5 * size)
                return _advanced(objective, state, taken, size, {"gauss": grown}, rejected, visited)
            wanted, rejected = size / 2, rejected + 1
        return None


@dataclass(frozen=True)
class _Collocated:
    """The stages of a step, and its end."""

    end: Weights
    rows: Rows
    dual: Float[Tensor, " rows"]  # mean of p over the stages
    span: float
    error: float
    mismatch: float
    converged: bool
    visited: int
    temperature: float


def _collocated(objective: Objective, state: State, predictor: StepPredictor, span: float) -> _Collocated:
    """The step on the potentials that matter, verified on all of them."""
    rows, visited = predicted_active_set(predictor, span), 0
    while True:
        taken = _on(objective.restricted(rows), rows, state, predictor, span)
        visited += taken.visited + objective.count // 3
        out = (
            violations(objective.potential(objective.margins.evaluate(taken.end)), rows)
            if taken.converged
            else rows[:0]
        )
        if len(out) == 0:
            return replace(taken, visited=visited)
        rows = torch.cat([rows, out]).sort().values


def _on(on: Objective, rows: Rows, state: State, predictor: StepPredictor, span: float) -> _Collocated:
    """Stages and `p` together, by Newton's method on a kernel frozen between them; then the stages alone."""
    start, norm, changes = state.weights, float(state.weights.norm()), [1.0]
    temperature, dual = resolved_temperature(predictor.potential), state.dual[rows] / state.dual[rows].sum()
    stages: Pair = (start, start + span * predictor.velocity)
    weighed: Pair = (dual, dual)
    while changes[-1] > _CONVERGED and len(changes) <= _ITERATIONS and changes[-1] <= 1:
        flows = _flows(on, stages, _cotangents(on, stages, weighed))
        moved = _moved(start, span, flows)
        changes.append(max(float((new - old).norm()) / norm for new, old in zip(moved, stages, strict=True)))
        if len(changes) > 8 and min(changes[-4:]) >= min(changes[:-4]):
            break
        stages = moved
        kernel = on.linearize((stages[0] + stages[1]) / 2, state.slopes).kernel()
        weighed = _weighed(on, stages, span * kernel, weighed, temperature)
    cotangents = _cotangents(on, stages, weighed)
    stages, mismatch, iterations = _converged(on, start, span, stages, cotangents)
    end = start + span / 2 * sum(_flows(on, stages, cotangents))
    middle = on.linearize((stages[0] + stages[1]) / 2, state.slopes)
    doubt = end - start - span / 2 * middle.vjp(cotangents[0] + cotangents[1])
    converged = changes[-1] <= _TOLERABLE and mismatch <= _CONSISTENT * torch.finfo(start.dtype).eps
    visited = on.count * (3 * len(changes) + 2 * iterations)
    error, mean = float(doubt.norm()) / norm, (weighed[0] + weighed[1]) / 2
    return _Collocated(end, rows, mean, span, error, mismatch, converged, visited, temperature)


def _cotangents(on: Objective, stages: Pair, weighed: Pair) -> tuple[Cotangents, Cotangents]:
    """`Dᵀ p` at both stages."""
    first, second = (on.linearize(w, ()).cotangents(p) for w, p in zip(stages, weighed, strict=True))
    return first, second


def _flows(on: Objective, stages: Pair, cotangents: tuple[Cotangents, Cotangents]) -> Pair:
    """`Jᵀ f` at both stages."""
    first, second = (on.linearize(w, ()).vjp(f) for w, f in zip(stages, cotangents, strict=True))
    return first, second


def _moved(start: Weights, span: float, flows: Pair) -> Pair:
    first, second = (start + span * (row[0] * flows[0] + row[1] * flows[1]) for row in _NODES)
    return first, second


def _converged(
    on: Objective, start: Weights, span: float, stages: Pair, cotangents: tuple[Cotangents, Cotangents]
) -> tuple[Pair, float, int]:
    """Fixed-point iteration of the stages alone, to rounding: the only source of drift in the laws (T6.2)."""
    mismatches, rounding = [], torch.finfo(start.dtype).eps
    while len(mismatches) < _CONVERGING and not at_rounding(mismatches, rounding):
        before, stages = stages, _moved(start, span, _flows(on, stages, cotangents))
        mismatches.append(max(float((new - old).norm() / new.norm()) for new, old in zip(stages, before, strict=True)))
    return stages, mismatches[-1], len(mismatches)


def _weighed(on: Objective, stages: Pair, stiffness: Tensor, weighed: Pair, temperature: float) -> Pair:
    """`p_j = softmax(-u_j/T)`, `u_j` as it answers both: `u_j + h Σ_k a_jk K (p_k' - p_k)`; by damped Newton."""
    count, present = len(weighed[0]), torch.cat(weighed).double()
    coupling = torch.kron(torch.tensor(_NODES).to(present), stiffness.double())
    seen = torch.cat([on.potential(on.margins.evaluate(stage)) for stage in stages]).double()
    base, identity = seen - coupling @ present, torch.eye(2 * count).to(present)

    def shares(weights: Tensor) -> Tensor:
        return torch.softmax(-(base + coupling @ weights).view(2, count) / temperature, 1).flatten()

    gap = present - shares(present)
    for _ in range(_NEWTON):
        inside = (present - gap).view(2, count)
        slope = torch.block_diag(*(torch.diag(p) - torch.outer(p, p) for p in inside)) / temperature
        direction = torch.linalg.solve(identity + slope @ coupling, -gap)
        trials = (present + length * direction for length in _LENGTHS)
        better = ((trial, trial - shares(trial)) for trial in trials)
        found = next(((trial, new) for trial, new in better if float(new.norm()) < _LOWER * float(gap.norm())), None)
        if found is None:  # as near as rounding lets it
            break
        present, gap = found
    first, second = present.to(weighed[0]).view(2, count)
    return first, second


def _advanced(
    objective: Objective,
    state: State,
    taken: _Collocated,
    size: float,
    sizes: dict[str, float],
    rejected: int,
    visited: int,
) -> tuple[State, Step]:
    evaluation, moved = objective.margins.evaluate(taken.end), taken.end - state.weights
    here = evaluation.take(objective.examples(taken.rows))
    length = float(moved.norm())
    flow = velocity_at(objective.restricted(taken.rows), taken.end, (), here)
    after = State(
        gradient_norm=float(flow.norm()),
        weights=taken.end,
        evaluation=evaluation,
        slopes=state.slopes,
        dual=torch.zeros_like(state.dual).index_copy(0, taken.rows, taken.dual.clamp(min=0)),
        velocity=moved / taken.span,
        sizes=sizes,
        time=elapsed(objective, state, evaluation, length, (length / taken.span, float(flow.norm()))),
        temperature=taken.temperature,
        examples_visited=visited,
        taken=state.taken + 1,
        missed=state.missed + taken.mismatch * float(taken.end.norm()),
    )
    step = Step(
        "gauss",
        length / float(state.weights.norm()),
        size,
        taken.error,
        rejected,
        len(taken.rows),
        mismatch=taken.mismatch,
    )
    return after, step
