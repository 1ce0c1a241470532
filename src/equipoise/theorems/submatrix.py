"""What ReLU layers do: stable activation, and the submatrices of neurons that are on together (THEORY T4.1–T4.3).

The law of a pattern class `S` of layer `k`, `C_S = [W_{k+1}]_{:,S}ᵀ [W_{k+1}]_{:,S} - [W_k b_k]_S [W_k b_k]_Sᵀ`, is
constant from the time at which its neurons became co-active. So what T3.1 does for a whole linear layer holds for the
rows `S`, from the values at that time; and the classes of a layer together bound the rank of all of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from equipoise.graph.chain import Layer
from equipoise.graph.evaluate import Kink, kinks, recorded
from equipoise.measure.activity import Patterns, pattern_classes, patterns
from equipoise.measure.spectrum import spectrum
from equipoise.theorems import tail
from equipoise.theorems.assumptions import LAW_TOLERANCE, Assumption
from equipoise.theorems.claims import SINCE_START, Claim, Claimer, Relation
from equipoise.theorems.evidence import Evidence, Named

CLASS_LAWS, CLASSES_STAY = "class laws conserved", "classes stay"


@dataclass(frozen=True)
class StableClass:
    """Co-active neurons of one layer, and the saved point since which they were co-active and their law was kept.

    `drift` is `‖C_S - C_S(T)‖_F/‖w‖²` since then; `since` is None where only the final state is known.
    """

    members: Tensor
    since: float | None
    start: Named
    drift: float


@dataclass(frozen=True)
class PatternedLayer:
    """A layer with an activation, the next one, its pattern classes, and the neurons that are off everywhere.

    `rank` is `q`, the rank that the next layer tends to; `total` that of this layer, `Σ_S min(|S|, q)`; `deficits`
    bound `Δ_q` of the rows of each class, and `whole` bounds `Δ_total` of all rows.
    """

    lower: Layer
    classes: tuple[StableClass, ...]
    off: Tensor
    rank: int
    total: int
    deficits: tuple[float, ...]
    whole: float


def patterned_layers(evidence: Evidence) -> tuple[PatternedLayer, ...]:
    """The layers of a chain below its tail, from the top down; none for other networks.

    Every bound comes from the one above: the columns `S` of `W_{k+1}` are within `D_{k+1}` of rank `q`, so the rows `S`
    of `W_k` are within `D_{k+1} + Σ_{i≤q} λ_i(C_S) - tr C_S`; and all rows of `W_k` within the sum of these, and the
    squares of the neurons that are off, of rank `Σ_S min(|S|, q)` (T4.2).
    """
    if evidence.chain is None or not evidence.tail.layers:
        return ()
    chain = evidence.chain
    history = _history(evidence)
    start = evidence.final if evidence.initial is None else evidence.initial
    first = evidence.tail.layers[0]
    above = tail.deficit_bounds(evidence.tail, start, evidence.final)[first.weight]
    rank, found = evidence.tail.rank, []
    position = chain.index(first)
    for lower, upper in zip(reversed(chain[:position]), reversed(chain[1 : position + 1]), strict=True):
        layer = _patterned(evidence, lower, upper, history[lower.weight], rank, above)
        found.append(layer)
        rank, above = layer.total, layer.whole
    return tuple(found)


def _patterned(
    evidence: Evidence, lower: Layer, upper: Layer, history: list[Patterns], rank: int, above: float
) -> PatternedLayer:
    found = pattern_classes(history[-1])
    off = found.all_off if lower.negative_slope == 0 else found.all_off[:0]
    groups = found.classes if len(off) == len(found.all_off) else (*found.classes, found.all_off)
    classes = tuple(_stable(evidence, lower, upper, members, history, rank) for members in groups)
    deficits = tuple(above + _class_excess(evidence, lower, upper, found, rank) for found in classes)
    idle = float(tail.incoming(lower, evidence.final)[off].square().sum())
    spilt = sum(bound for found, bound in zip(classes, deficits, strict=True) if len(found.members) > rank)
    total = sum(min(len(found.members), rank) for found in classes)
    return PatternedLayer(lower, classes, off, rank, total, deficits, spilt + idle)


def _class_excess(evidence: Evidence, lower: Layer, upper: Layer, found: StableClass, rank: int) -> float:
    """`Σ_{i≤q} λ_i(C_S) - tr C_S` from the values at the time the class became stable, drift and rounding added."""
    if len(found.members) <= rank:
        return 0.0
    final = _restricted(evidence.final, lower, upper, found.members)
    return tail.bounded(tail.excess, rank, lower, upper, found.start, final)


def _stable(
    evidence: Evidence, lower: Layer, upper: Layer, members: Tensor, history: list[Patterns], rank: int
) -> StableClass:
    """The earliest saved point since which the neurons were on together and the law of the class has not changed."""
    final = _restricted(evidence.final, lower, upper, members)
    if len(members) <= rank:  # of that rank whatever happened
        return StableClass(members, None, final, 0.0)
    now = tail.conserved_matrix(lower, upper, final)
    since, start, drift = None, final, 0.0
    for point, seen in zip(reversed(evidence.points[:-1]), reversed(history[:-1]), strict=True):
        words = seen.words[:, members]
        if not torch.equal(words, words[:, :1].expand_as(words)):
            break
        then = _restricted(point.weights, lower, upper, members)
        moved = float((now - tail.conserved_matrix(lower, upper, then)).norm()) / evidence.square
        if moved > LAW_TOLERANCE:
            break
        since, start, drift = point.growth, then, moved
    return StableClass(members, since, start, drift)


def _restricted(weights: Named, lower: Layer, upper: Layer, members: Tensor) -> Named:
    """The rows `S` of one layer and the columns `S` of the next, under their names."""
    rows = {name: weights[name][members] for name in (lower.weight, lower.bias) if name}
    return rows | {upper.weight: weights[upper.weight][:, members]}


def _history(evidence: Evidence) -> dict[str, list[Patterns]]:
    """The patterns of every layer with an activation at every saved point."""
    bent = kinks(evidence.captured)
    places = [layer.weight for layer in evidence.chain or () if layer.negative_slope is not None]
    found: dict[str, list[Patterns]] = {place: [] for place in places}
    for point in evidence.points:
        for place, z in zip(places, preactivations(evidence, bent, point.weights), strict=True):
            found[place].append(patterns(z.flatten(1)))
    return found


def preactivations(evidence: Evidence, bent: tuple[Kink, ...], weights: Named) -> tuple[Tensor, ...]:
    """What every activation of the network reads, on all examples."""
    with torch.no_grad():
        return recorded(evidence.captured, bent, weights, evidence.X)[1]


# --- assumption and claims ---


@runtime_checkable
class Followed(Protocol):
    """A class of co-active neurons, since when its law is known to have been kept, and how well."""

    @property
    def since(self) -> float | None:
        """Growth at the earliest saved point; None where only the end is known."""
        ...

    @property
    def drift(self) -> float:
        """`‖C_S - C_S(T)‖_F/‖w‖²`."""
        ...


def bounded_classes(layers: tuple[PatternedLayer, ...]) -> list[StableClass]:
    """The classes that T4.2 says something about: of more neurons than the rank they tend to."""
    return [found for layer in layers for found in layer.classes if len(found.members) > layer.rank]


def class_laws(classes: Sequence[Followed]) -> tuple[Assumption, ...]:
    """The law of every pattern class is what it was when it became co-active; observed where that is not known."""
    known = [found.drift for found in classes if found.since is not None]
    assumptions = []
    if known:
        statement = "the law of a class of co-active neurons is what it was when they became co-active"
        why = (
            f"‖C_S - C_S(T)‖_F/‖w‖², the worst of {len(known)} classes, T the earliest saved point since which all are"
        )
        assumptions.append(Assumption(CLASS_LAWS, statement, "verified", max(known), LAW_TOLERANCE, why))
    if len(known) < len(classes):
        statement = "neurons that are co-active now stay so"
        why = f"{len(classes) - len(known)} classes are known at the end only: bounds from their laws of today"
        assumptions.append(Assumption(CLASSES_STAY, statement, "observed", None, None, why))
    return tuple(assumptions)


def submatrix_claims(evidence: Evidence, layers: tuple[PatternedLayer, ...], claim: Claimer) -> Iterator[Claim]:
    """T4.2 for every class of more neurons than the rank it tends to, and T4.3 for every layer of fewer classes."""
    start = SINCE_START if evidence.initial is not None else ()
    for layer in layers:
        name = layer.lower.weight
        weight = tail.matrix(evidence.final[name])
        for found, deficit in zip(layer.classes, layer.deficits, strict=True):
            if len(found.members) > layer.rank:
                rows = weight[found.members]
                title = f"rank {layer.rank} of {len(found.members)} co-active neurons of {name} {_members(found)}"
                quantity = _quantity(layer.rank) + since_when(found.since)
                rests_on = (CLASSES_STAY if found.since is None else CLASS_LAWS, *start)
                yield claim(title, "T4.2", quantity, *_compared(rows, layer.rank, deficit), rests_on)
        if layer.total < min(weight.shape):
            title = f"rank {layer.total} of {name}, by its {len(layer.classes)} pattern classes"
            rests_on = (CLASS_LAWS, CLASSES_STAY, *start)
            yield claim(title, "T4.3", _quantity(layer.total), *_compared(weight, layer.total, layer.whole), rests_on)


def _compared(rows: Tensor, rank: int, deficit: float) -> tuple[float, Relation, float]:
    bound = min(1.0, tail.ratio(deficit, float(rows.square().sum())))
    return spectrum(rows).rank_residual(rank), "≤", bound


def _quantity(rank: int) -> str:
    return "1 - σ₁²/‖W_S‖²" if rank == 1 else f"1 - Σ_{{i≤{rank}}} σᵢ²/‖W_S‖²"


def _members(found: StableClass) -> str:
    first = ", ".join(map(str, found.members[:3].tolist()))
    return f"({first}, …)" if len(found.members) > 3 else f"({first})"


def since_when(since: float | None) -> str:
    """From which values a bound is."""
    return ", as known at the end" if since is None else f", from the values at s = {since:.2f}"
