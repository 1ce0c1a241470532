"""T4.1 and T5.2: on/off states and signs of weights become constant on the way to the limit of `w/‖w‖`.

Both follow from directional convergence. A number that is farther from zero at the limit than it still had to go at
some time `T` keeps its sign from `T` on; what is zero at the limit within its uncertainty is undecided.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import pandas as pd

from equipoise.arguments import checked
from equipoise.errors import InputError
from equipoise.modes import default_modes
from equipoise.theorems.assumptions import directional_convergence
from equipoise.theorems.claims import CheckResult, Statement
from equipoise.theorems.direction import LimitDirection, Undecided, extrapolate
from equipoise.theorems.evidence import Evidence
from equipoise.theorems.evidence_builder import FinishedRun, evidence_of_run, run_points
from equipoise.theorems.weights import Point, Weights, weight_norm

Read: TypeAlias = Callable[[Weights], Weights]


@dataclass(frozen=True)
class Settled:
    """The signs of the numbers of one place (pre-activations or weights), and the growth `since` when they are settled.

    At the saved point `since`, `decided` of `total` were farther from zero at the limit than they still had to go,
    uncertainty added, and none of these changed sign at a later saved point. It is the earliest point such that this
    is true of all later ones, and that no fewer than half of what is decided at the last one were decided already.
    `undecided` are zero at the limit within the uncertainty.
    """

    place: str
    since: float
    total: int
    decided: int
    undecided: int


def check(evidence: Evidence) -> CheckResult:
    """T4.1 for every layer with an activation and T5.2 for every parameter: settled before the last saved point.

    No statement where the run saved too few points for a limit, and no T4.1 for a network that is not homogeneous: the
    patterns at `w/‖w‖` are not those at `w` there.
    """
    direction = evidence.direction
    found = () if direction is None or direction.rate is None else tuple(_statements(evidence, direction))
    return CheckResult(found, assumptions=(directional_convergence(direction),))


def settled_activity(evidence: Evidence, direction: LimitDirection) -> tuple[Settled, ...]:
    """The on/off state of every neuron on every example, layer by layer (T4.1)."""
    return _settled(evidence.points, direction, evidence.preactivations_by_layer)


def settled_signs(evidence: Evidence, direction: LimitDirection) -> tuple[Settled, ...]:
    """The sign of every weight, parameter by parameter (T5.2)."""
    return _settled(evidence.points, direction, lambda weights: weights)


def _settled(points: tuple[Point, ...], direction: LimitDirection, read: Read) -> tuple[Settled, ...]:
    """Backwards from the end, one saved point at a time, each place until the first point of which it is not true."""
    at = [read(weights) for weights in (direction.limit, *direction.others)]
    limit, end = at[0], points[-1]
    error = {place: direction.spread_of([values[place] for values in at]) for place in limit}
    flipped = {place: (values > 0) != (limit[place] > 0) for place, values in read(end.weights).items()}
    found = {
        place: Settled(place, end.growth, values.numel(), 0, int((values.abs() <= error[place]).sum()))
        for place, values in limit.items()
    }
    going, final = set(limit), dict[str, int]()
    for point in reversed(points[:-1]):
        for place, values in read(_normalised(point.weights)).items():
            decided = limit[place].abs() > (values - limit[place]).abs() + error[place]
            count = int(decided.sum())
            most = final.setdefault(place, count)
            if place in going and 2 * count >= most and not bool((decided & flipped[place]).any()):
                found[place] = replace(found[place], since=point.growth, decided=count)
            else:
                going.discard(place)
            flipped[place] |= (values > 0) != (limit[place] > 0)
        if not going:
            break
    return tuple(found.values())


def _normalised(weights: Weights) -> Weights:
    norm = weight_norm(weights)
    return {name: tensor / norm for name, tensor in weights.items()}


def _statements(evidence: Evidence, direction: LimitDirection) -> Iterator[Statement]:
    if evidence.homogeneity.degree is not None:
        for seen in settled_activity(evidence, direction):
            last_flip = evidence.recorded("activity", "last_flip", seen.place)
            quantity = _described(seen, "pairs", "pair flips", last_flip)
            yield _statement(evidence, f"stable activation of {seen.place}", "T4.1", quantity, seen)
    for seen in settled_signs(evidence, direction):
        last_change = evidence.recorded("signs", "last_sign_change", seen.place)
        quantity = _described(seen, "weights", "sign changes", last_change)
        yield _statement(evidence, f"constant signs of {seen.place}", "T5.2", quantity, seen)


def _statement(evidence: Evidence, name: str, theorem: str, quantity: str, seen: Settled) -> Statement:
    """Settled before the last saved point; not informative where nothing is decided at the limit."""
    last, end = (point.growth for point in evidence.points[-2:])  # nothing can settle later than the end
    return Statement(
        name=name,
        theorem=theorem,
        quantity=quantity,
        measured=seen.since,
        relation="≤",
        bound=last,
        trivial=end if seen.decided else last,
        rests_on=("directional convergence", "weights of the run"),
    )


def _described(seen: Settled, kind: str, event: str, last: float | None) -> str:
    """The saved point can be rechecked; beside it the records of every step, where there are some, on all of them."""
    settled = f"s from which {seen.decided:,} of {seen.total:,} {kind} hold; {seen.undecided:,} undecided at the limit"
    if last is None:
        return settled
    return f"{settled}; on record, no {event} {'at all' if math.isnan(last) else f'after s = {last:.4g}'}"


# --- the limit itself ---


@checked
@default_modes()
def limit_direction(run: FinishedRun) -> LimitDirection | None:
    """Rate and extrapolated limit of `w/‖w‖` along a run, with an uncertainty.

    Args:
        run: a run of `eq.flow`, with weights kept on the way (`save_at=`; every quarter of growth by default).

    Returns:
        The limit; None from fewer than three points.

    >>> from equipoise import data, flow, networks
    >>> run = flow(networks.mlp([5, 4, 1]), data.load("separable", n=20, d=5), until="growth=1.5")
    >>> found = limit_direction(run)
    >>> found.rate > 0, found.uncertainty < 1
    (True, True)
    """
    return extrapolate(run_points(run))


@checked
@default_modes()
def undecided_pairs(run: FinishedRun) -> pd.DataFrame:
    """The neuron-example pairs that are on their kink at the limit, `z(x; w̄) = 0` within the uncertainty (T4.1).

    Args:
        run: a run of `eq.flow`.

    Returns:
        Columns `layer`, `example`, `neuron`, `value` and `error`, at the scale of `‖w‖ = 1`. All pairs where no limit
        is seen yet; none of a run with too few points.

    Raises:
        InputError: for a network that is not homogeneous, whose patterns at `w/‖w‖` are not those at `w`.
    """
    evidence = evidence_of_run(run)
    if evidence.homogeneity.degree is None:
        raise InputError(
            expected="a homogeneous network, whose patterns are those of the direction of its weights",
            found=evidence.homogeneity.obstacle,
            remedy="leave out skips, and biases above the first layer",
        )
    direction = evidence.direction
    listed = [] if direction is None else list(direction.undecided(evidence.preactivations_by_layer))
    return pd.DataFrame(listed, columns=list(Undecided._fields))
