"""What becomes constant on the way to the limit: on/off states (T4.1) and signs of weights (T5.2).

Both follow from directional convergence. A number that is farther from zero at the limit than it still had to go at
some time `T` keeps its sign from `T` on; what is zero at the limit within its uncertainty is undecided.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from equipoise.graph.evaluate import kinks, recorded
from equipoise.theorems.claims import Claim, Claimer
from equipoise.theorems.directional import LimitDirection
from equipoise.theorems.evidence import Evidence, Named, Point

Read = Callable[[Named], Mapping[str, Tensor]]


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


def settled_activity(evidence: Evidence, direction: LimitDirection) -> tuple[Settled, ...]:
    """The on/off state of every neuron on every example, layer by layer (T4.1)."""
    return _settled(evidence.points, direction, preactivations_of(evidence))


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


def _normalised(weights: Named) -> Named:
    norm = torch.cat([tensor.flatten() for tensor in weights.values()]).norm()
    return {name: tensor / norm for name, tensor in weights.items()}


def preactivations_of(evidence: Evidence) -> Callable[[Named], dict[str, Tensor]]:
    """A function from weights to what every piecewise-linear activation reads, by the layer that writes it."""
    bent = kinks(evidence.captured)
    single = [k for k, kink in enumerate(bent) if kink.negative_slope is not None]  # a maximum is neither on nor off
    layers = [layer.weight for layer in evidence.chain or () if layer.negative_slope is not None]
    places = layers if evidence.chain is not None else [bent[k].source.name for k in single]

    def read(weights: Named) -> dict[str, Tensor]:
        with torch.no_grad():
            seen = recorded(evidence.captured, bent, weights, evidence.X)[1]
        return {place: seen[k].flatten(1) for place, k in zip(places, single, strict=True)}

    return read


def stability_claims(evidence: Evidence, direction: LimitDirection | None, claim: Claimer) -> Iterator[Claim]:
    """T4.1 for every layer with an activation and T5.2 for every parameter: settled before the last saved point.

    Where nothing is decided at the limit they are not informative.

    None where the run saved too few points to see a limit, and no T4.1 for a network that is not homogeneous: there
    the patterns at `w/‖w‖` are not those at `w`.
    """
    if direction is None or direction.rate is None:
        return
    last, end = (point.growth for point in evidence.points[-2:])  # whatever happens has happened by the end
    rests_on = ("directional convergence", "weights of the run")
    if evidence.homogeneity.degree is not None:
        for seen in settled_activity(evidence, direction):
            last_flip = evidence.recorded("activity", "last_flip", seen.place)
            name, quantity = f"stable activation of {seen.place}", _said(seen, "pairs", "pair flips", last_flip)
            yield claim(name, "T4.1", quantity, seen.since, "≤", last, end if seen.decided else last, rests_on)
    for seen in settled_signs(evidence, direction):
        last_change = evidence.recorded("signs", "last_sign_change", seen.place)
        name, quantity = f"constant signs of {seen.place}", _said(seen, "weights", "sign changes", last_change)
        yield claim(name, "T5.2", quantity, seen.since, "≤", last, end if seen.decided else last, rests_on)


def _said(seen: Settled, what: str, event: str, last: float | None) -> str:
    """The saved point can be rechecked; beside it the records of every step, where there are some, on all of them."""
    settled = f"s from which {seen.decided:,} of {seen.total:,} {what} hold; {seen.undecided:,} undecided at the limit"
    if last is None:
        return settled
    return f"{settled}; on record, no {event} {'at all' if math.isnan(last) else f'after s = {last:.4g}'}"
