"""What is claimed below the tail: neurons that are on together (T4.2), rank by patterns (T4.3), linear layers.

In any network: chains, skip connections, convolutions. Where what reads a layer is promised to tend to rank `q`
(`descent`), so are the rows of each class of co-active neurons, and the whole layer to the rank of its classes. Where
it is not, a class is as near to rank one as what reads it, which is measured, and nothing is claimed of the layer.

What a class writes and what reads it are turned towards each other as two linear layers are, by the proof of T3.2 for
`C_S = V_SᵀV_S - W_SW_Sᵀ`: the reduced alignment of Le & Jegelka, the neurons that are off left out (T4.6).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from equipoise.measure.spectrum import spectrum
from equipoise.theorems import tail
from equipoise.theorems.assumptions import Assumption
from equipoise.theorems.claims import (
    SINCE_START,
    Claim,
    Claimer,
    Relation,
    any_residual,
    beyond_rank,
    from_rank,
    turned,
)
from equipoise.theorems.coactive import CoActive, sides
from equipoise.theorems.descent import Descended, Near
from equipoise.theorems.evidence import Evidence

CLASS_LAWS, CLASSES_STAY = "class laws conserved", "classes stay"


@dataclass(frozen=True)
class BoundedClass:
    """A class of more neurons than the rank that bounds it; `deficit` bounds `Σ_{i>rank} σ_i²` of its rows.

    `promised` where the rank is what its readers tend to, and not one by their measure.
    """

    found: CoActive
    rank: int
    deficit: float
    promised: bool


def bounded_classes(evidence: Evidence, one: Descended) -> Iterator[BoundedClass]:
    """The classes of a ReLU layer that T4.2 says something about."""
    if one.layer.linear:
        return
    _, columns = sides(one.layer.law, evidence.final)
    for found in one.layer.classes:
        rank = 1 if one.read is None else one.read.rank
        if len(found.members) > rank:
            above = spectrum(columns[found.members]).beyond(1) if one.read is None else one.read.deficit
            yield BoundedClass(found, rank, above + found.excess(rank), one.read is not None)


def class_laws(classes: Sequence[CoActive], tolerance: float) -> tuple[Assumption, ...]:
    """The law of every pattern class is what it was when it became co-active; observed where that is not known.

    `tolerance` is the drift up to which classes are known to have kept theirs.
    """
    known = [found.drift for found in classes if found.since is not None]
    assumptions = []
    if known:
        statement = "the law of a class of co-active neurons is what it was when they became co-active"
        why = (
            f"‖C_S - C_S(T)‖_F/‖w‖², the worst of {len(known)} classes, T the earliest saved point since which all are"
        )
        assumptions.append(Assumption(CLASS_LAWS, statement, "verified", max(known), tolerance, why))
    if len(known) < len(classes):
        statement = "neurons that are co-active now stay so"
        why = f"{len(classes) - len(known)} classes are known at the end only: bounds from their laws of today"
        assumptions.append(Assumption(CLASSES_STAY, statement, "observed", None, None, why))
    return tuple(assumptions)


def submatrix_claims(evidence: Evidence, layers: Sequence[Descended], claim: Claimer) -> Iterator[Claim]:
    """T4.2 for the classes of every ReLU layer; T4.3 for those promised a rank, and T3.1 for linear layers that are."""
    start = SINCE_START if evidence.initial is not None else ()
    for one in layers:
        rows, columns = sides(one.layer.law, evidence.final)
        for bounded in bounded_classes(evidence, one):
            members = bounded.found.members
            yield _of_class(one, bounded, rows[members], claim, start)
            if bounded.rank:  # what reads the class may all be off, and has no directions then
                yield _turned(one, bounded.found, bounded.rank, (rows[members], columns[members].T), claim, start)
        if one.written is not None and one.written.rank < min(rows.shape):
            yield _of_layer(one, one.written, rows, claim, start)
        if one.layer.linear and one.read is not None and one.read.rank:
            yield _turned(one, one.layer.classes[0], one.read.rank, (rows, columns.T), claim, start)


def _of_class(one: Descended, bounded: BoundedClass, rows: Tensor, claim: Claimer, start: tuple[str, ...]) -> Claim:
    found, rank = bounded.found, bounded.rank
    title = f"distance of {len(rows)} co-active neurons of {one.layer.name} {_members(found)} from {from_rank(rank)}"
    beside = "" if bounded.promised else ", beside what reads them"
    quantity = beyond_rank(rank, "W_S") + beside + since_when(found.since)
    rests_on = (CLASSES_STAY if found.since is None else CLASS_LAWS, *start)
    return claim(title, "T4.2", quantity, *_compared(rows, rank, bounded.deficit), rests_on)


def _turned(
    one: Descended, found: CoActive, rank: int, both: tuple[Tensor, Tensor], claim: Claimer, start: tuple[str, ...]
) -> Claim:
    """The alignment of what a class, or all of a linear layer, writes with what reads it."""
    writes, reads = both
    rank = min(rank, *writes.shape, *reads.shape)
    figures = tail.sines(writes, reads, rank), "≤", tail.sine_bound(found.spread(rank), writes, reads, rank)
    trivial = float(tail.angles(len(writes), rank))
    if one.layer.linear:
        name = f"misalignment of {one.layer.name} with {' + '.join(one.layer.law.consumers)}"
        return claim(name, "T3.2", turned(rank), *figures, trivial, start)
    name = f"misalignment of {len(writes)} co-active neurons of {one.layer.name} {_members(found)} with their readers"
    rests_on = (CLASSES_STAY if found.since is None else CLASS_LAWS, *start)
    return claim(name, "T4.6", turned(rank) + since_when(found.since), *figures, trivial, rests_on)


def _of_layer(one: Descended, near: Near, rows: Tensor, claim: Claimer, start: tuple[str, ...]) -> Claim:
    quantity, compared = beyond_rank(near.rank), _compared(rows, near.rank, near.deficit)
    if one.layer.linear:
        return claim(f"distance of {one.layer.name} from {from_rank(near.rank)}", "T3.1", quantity, *compared, start)
    by = f"by its {len(one.layer.classes)} pattern classes"
    title = f"distance of {one.layer.name} from {from_rank(near.rank)}, {by}"
    return claim(title, "T4.3", quantity, *compared, (CLASS_LAWS, CLASSES_STAY, *start))


def _compared(rows: Tensor, rank: int, deficit: float) -> tuple[float, Relation, float, float]:
    bound = min(1.0, tail.ratio(deficit, float(rows.square().sum())))
    return spectrum(rows).rank_residual(rank), "≤", bound, any_residual(rows, rank)


def _members(found: CoActive) -> str:
    first = ", ".join(map(str, found.members[:3].tolist()))
    return f"({first}, …)" if len(found.members) > 3 else f"({first})"


def since_when(since: float | None) -> str:
    """From which values a bound is."""
    return ", as known at the end" if since is None else f", from the values at s = {since:.2f}"
