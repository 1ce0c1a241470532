"""Explicit Runge–Kutta: the reference, while a flow can be followed explicitly."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from scipy.integrate import RK23, RK45

from equipoise.arguments import checked_fields
from equipoise.errors import InputError
from equipoise.integrate.margins.protocol import Weights, local_slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.state import State, Step, velocity_at
from equipoise.integrate.steppers.physical_time import elapsed
from equipoise.integrate.steppers.protocol import check_steps

METHODS = {"RK23": RK23, "RK45": RK45}
_GROWS, _SHRINKS, _SAFETY = 5.0, 0.2, 0.9  # scipy's own step control


@checked_fields
@dataclass(frozen=True)
class ExplicitRK:
    """`dw/dτ = -∇ log R` by Bogacki–Shampine (`RK23`) or Dormand–Prince (`RK45`), coefficients from scipy.

    The clock is arc length over `‖w‖`, so that a step of size `h` moves the weights by `h ‖w‖` or so. The local error,
    relative to `‖w‖`, is kept below `rtol`; a step above it is rejected. Steps shrink with the loss: for reference, not
    for depth. It keeps no law exactly. Raises `InputError` for another method, and an `rtol` that is not in (0, 1).
    """

    rtol: float = 1e-6
    method: str = "RK45"
    step_size: float = 0.1  # the largest
    smallest: float = 1e-14  # a step below this has stalled
    continuous: ClassVar[bool] = True

    def __post_init__(self):
        check_steps(self.rtol, self.step_size, self.smallest)
        if self.method not in METHODS or not self.rtol < 1:
            raise InputError(
                expected="method RK23 or RK45 and rtol in (0, 1)",
                found=f"method={self.method!r}, rtol={self.rtol}",
                remedy='pass method="RK45", rtol=1e-6',
            )

    def init(self, objective: Objective, weights: Weights) -> State:
        """The state at the start of a run."""
        return State.start(objective, weights, {"explicit": 1e-4})

    def step(self, objective: Objective, state: State, max_size: float = math.inf) -> tuple[State, Step] | None:
        """One accepted step, or `None` when none above `smallest` is acceptable or the velocity vanishes."""
        wanted, rejected, visited = state.sizes["explicit"], 0, 0
        order = METHODS[self.method].error_estimator_order + 1
        first = direction(objective, state.weights)
        while first is not None:
            size = min(wanted, max_size)
            weights, error = self._tried(objective, state.weights, first, size)
            visited += METHODS[self.method].n_stages * objective.count
            factor = _GROWS if error == 0 else min(_GROWS, max(_SHRINKS, _SAFETY * (self.rtol / error) ** (1 / order)))
            if error <= self.rtol:
                visited += objective.count
                grown = min(self.step_size, size * factor)
                return self._accepted(
                    objective, state, weights, max(grown, wanted) if size < wanted else grown, visited
                ), Step(
                    "explicit", float((weights - state.weights).norm() / state.weights.norm()), size, error, rejected
                )
            wanted, rejected = size * (factor if math.isfinite(error) else _SHRINKS), rejected + 1
            if wanted < self.smallest:
                break
        return None

    def _tried(self, objective: Objective, start: Weights, first: Weights, size: float) -> tuple[Weights, float]:
        """The end of a step, and its error relative to `‖w‖`."""
        method = METHODS[self.method]
        stages, norm = [first], float(start.norm())
        for row in method.A[1:]:
            middle = start + size * sum(float(a) * k for a, k in zip(row, stages, strict=False))
            stage = direction(objective, middle)
            if stage is None:
                return start, math.inf
            stages.append(stage)
        end = start + size * sum(float(b) * k for b, k in zip(method.B, stages, strict=True))
        last = direction(objective, end)
        if last is None:
            return start, math.inf
        doubt = size * sum(float(e) * k for e, k in zip(method.E, [*stages, last], strict=True))
        return end, float(torch.as_tensor(doubt).norm()) / norm

    def _accepted(self, objective: Objective, state: State, weights: Weights, size: float, visited: int) -> State:
        at, length = objective.margins.evaluate(weights), float((weights - state.weights).norm())
        slopes = local_slopes(objective.margins, at)
        speeds = (
            _speed(objective, (state.weights + weights) / 2),
            float(velocity_at(objective, weights, slopes, at).norm()),
        )
        return replace(
            state,
            gradient_norm=speeds[1],
            weights=weights,
            evaluation=at,
            slopes=slopes,
            sizes={"explicit": size},
            time=elapsed(objective, state, at, length, speeds),
            examples_visited=state.examples_visited + visited,
            taken=state.taken + 1,
        )


def direction(objective: Objective, weights: Weights) -> Weights | None:
    """`‖w‖ v/‖v‖` with `v = -∇ log R`; `None` where that is no direction."""
    flow = _flow(objective, weights)
    speed, norm = float(flow.norm()), float(weights.norm())
    return flow * (norm / speed) if 0 < speed < math.inf else None


def _speed(objective: Objective, weights: Weights) -> float:
    return float(_flow(objective, weights).norm())


def _flow(objective: Objective, weights: Weights) -> Weights:
    at = objective.margins.evaluate(weights)
    return velocity_at(objective, weights, local_slopes(objective.margins, at), at)
