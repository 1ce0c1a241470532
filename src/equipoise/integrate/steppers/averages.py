"""The weights `p̄` of the examples over a step: two routes (THEORY T6.1)."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from equipoise.integrate.entropic import Start, extrapolated_average, resolved_temperature
from equipoise.integrate.margins import Evaluation
from equipoise.integrate.objective import Forces, Objective, Tangent
from equipoise.integrate.quadratic import Quadratic
from equipoise.integrate.readout import Rows
from equipoise.integrate.steppers.passes import Outlook, Stretch, Warm
from equipoise.integrate.steppers.settling import Attempt, settle

_NEGLIGIBLE = 25.0  # an example whose u exceeds the least by this weighs under e^-25 of the heaviest
_SUPPORTS = 1e-6  # share of the heaviest above which an example of the last step enters the next: it rests on it
_ENTERING = 8  # missed examples that may enter at once, or half as many as there are: the worst hold up the others
_UNSEEN = 1e-3  # relative margin by which an example outside the active set may fall below the others in a step
_STEADY = 1e-3  # tolerance of the implicit problem below which the kernel of the last pass serves
_LARGEST = 4000  # rows of a kernel; others follow by iteration, if they hardly weigh
_UNCOVERED = 1e-3  # share of the weights that those may have
_LIGHT = 1e-5  # share of the weights that Newton's method does not factorise
_VERIFIED = 0.1  # passes over all examples for each over the active ones


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
    objective, potential = stretch.objective, stretch.outlook.potential
    temperature, dual, visited = resolved_temperature(potential), stretch.state.dual, 0
    support = (dual > _SUPPORTS * dual.max()).nonzero().squeeze(1)
    rows = torch.cat([active(stretch.outlook, stretch.span), support]).unique()
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


def implicit_operations(objective: Objective, outlook: Outlook, dual: Tensor, span: float, each: int) -> float:
    """About what a pass of `entropic` costs: the active examples, `each` for one, and a factor of the kernel."""
    rows = active(outlook, span)
    weights, _ = torch.maximum(torch.softmax(-outlook.potential, 0), dual)[rows].sort(descending=True)
    covered = weights.cumsum(0) / weights.sum()
    if len(rows) > _LARGEST and covered[_LARGEST - 1] < 1 - _UNCOVERED:
        return math.inf
    heavy = min(int((covered < 1 - _LIGHT).sum()) + 1, _LARGEST)
    return each * (len(objective.examples(rows)) + _VERIFIED * objective.count) + heavy**3 / 3


def active(outlook: Outlook, span: float) -> Rows:
    """Potentials that weigh at the start of the step, or would at its end."""
    after = outlook.potential + span * outlook.rates
    travelled = span * outlook.rates.abs().max()
    near = (outlook.potential - outlook.potential.min() < _NEGLIGIBLE) | (
        after - after.min() < _NEGLIGIBLE + 0.01 * travelled
    )
    return near.nonzero().squeeze(1)


def missed(after: Tensor, rows: Tensor) -> Tensor:
    """The worst outside the active set of those that weigh at the end of the step, beyond what its error explains."""
    level = after[rows].min()
    outside = torch.ones_like(after, dtype=torch.bool)
    outside[rows] = False
    below = (outside & (after < level + _NEGLIGIBLE - _UNSEEN * level.abs())).nonzero().squeeze(1)
    return below[after[below].argsort(stable=True)[: max(_ENTERING, len(rows) // 2)]]


def _entropic_on(stretch: Stretch, rows: Rows, temperature: float) -> Attempt:
    cold, span, objective = Start(stretch.state.dual[rows]), stretch.span, stretch.objective.restricted(rows)
    weighed = cold.weights + torch.softmax(-(stretch.outlook.potential + span / 2 * stretch.outlook.rates)[rows], 0)

    def average(
        here: Tangent, at: Evaluation, then: Evaluation, warm: Warm | None, tolerance: float
    ) -> tuple[Forces, Forces, Warm]:
        before, after = objective.potential(at), objective.potential(then)
        kernel = warm.kernel if warm is not None and tolerance < _STEADY else _kernel(here, weighed)
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


def _kernel(here: Tangent, weighed: Tensor) -> Quadratic:
    """`K`, or that of the rows that weigh most: what it lacks is in the drift."""
    if len(weighed) <= _LARGEST:
        return Quadratic(here.kernel())
    rows = weighed.topk(_LARGEST).indices.sort().values
    return Quadratic(here.kernel(rows), 1.0, rows, len(weighed))
