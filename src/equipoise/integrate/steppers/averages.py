"""The weights `p̄` of the examples over a step: two routes (T6.1)."""

from dataclasses import replace

import torch

from equipoise.integrate.entropic import Start, extrapolated_average, resolved_temperature
from equipoise.integrate.margins import Evaluation
from equipoise.integrate.objective import Forces, Tangent
from equipoise.integrate.quadratic import LowRank, Quadratic, Whole
from equipoise.integrate.readout import Rows
from equipoise.integrate.steppers.coupling import entering, landmarks, missed
from equipoise.integrate.steppers.passes import Stretch, Warm
from equipoise.integrate.steppers.settling import Attempt, settle

_STEADY = 3e-3  # tolerance of the implicit problem below which the kernel of the last pass serves


def trapezoid(stretch: Stretch) -> Attempt:
    """The cheap route: all examples, no kernel; `p̄ = ½(softmax(-u₀) + softmax(-u₁))`."""
    objective = stretch.objective

    def average(
        here: Tangent, before: Evaluation, after: Evaluation, warm: Warm | None, tolerance: float
    ) -> tuple[Forces, Forces, None]:
        start, end = objective.forces(before), objective.forces(after)
        mean = end if stretch.order == 1 else (start + end) / 2
        return mean, (end - start) / 2, None

    return settle(stretch, objective, None, average)


def entropic(stretch: Stretch) -> Attempt:
    """The implicit route on the potentials that matter, verified on all of them afterwards."""
    objective, temperature, visited = stretch.objective, resolved_temperature(stretch.outlook.potential), 0
    rows = entering(stretch.outlook, stretch.state.dual, stretch.span)
    while True:
        attempt = _entropic_on(stretch, rows, temperature)
        visited += attempt.visited + objective.count // 3
        attempt = replace(attempt, visited=visited, temperature=temperature)
        if not attempt.settled:
            return attempt
        out = missed(objective.potential(objective.margins.evaluate(attempt.weights)), rows)
        if len(out) == 0:
            return attempt
        rows = torch.cat([rows, out]).sort().values


def _entropic_on(stretch: Stretch, rows: Rows, temperature: float) -> Attempt:
    span, dual, objective = stretch.span, stretch.state.dual, stretch.objective.restricted(rows)
    cold, places = Start(dual[rows]), landmarks(stretch.objective, stretch.outlook, dual, span, rows)

    def average(
        here: Tangent, at: Evaluation, then: Evaluation, warm: Warm | None, tolerance: float
    ) -> tuple[Forces, Forces, Warm]:
        before, after = objective.potential(at), objective.potential(then)
        kernel = warm.kernel if warm is not None and tolerance < _STEADY else _kernel(here, places)
        # What the frozen kernel does not explain of the way to u₁; with it the margins end where they really are.
        drift = torch.zeros_like(before) if warm is None else after - before - span * kernel.times(warm.mean)
        starts = (cold, cold, cold) if warm is None else warm.solutions
        found = extrapolated_average(kernel.scaled(span), before, drift, starts, temperature, tolerance)
        solutions = (found[0].start, found[1].start, found[2].start)
        whole, first, second = (solution.weights for solution in found)
        second_order = first + second - whole
        mean = whole if stretch.order == 1 else second_order
        return here.forces(mean), here.forces(second_order - whole), Warm(kernel, solutions, mean)

    return settle(stretch, objective, rows, average)


def _kernel(here: Tangent, places: Rows | None) -> Quadratic:
    """`K`, or as near as its columns at these places bring: what it lacks is in the drift."""
    return Whole(here.kernel()) if places is None else LowRank.through(here.kernel(places), places)
