"""T4.2, T4.3 and T4.6: neurons that are on together, rank by patterns, reduced alignment; linear layers below the tail.

In any network: chains, skip connections, convolutions. Where the readers of a layer are promised to tend to rank `q`
(`coactive_layers`), so are the rows of each class of co-active neurons, and the whole layer to the rank of its classes.
Where they are not, a class is as near to rank one as its readers, which is measured, and nothing is claimed of the
layer.

What a class writes and what reads it are turned towards each other as two linear layers are, by the proof of T3.2 for
`C_S = V_SᵀV_S - W_SW_Sᵀ`: the reduced alignment of Le & Jegelka, the neurons that are off left out (T4.6).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from equipoise.measure.spectrum import spectrum
from equipoise.theorems.checks.coactive_layers import (
    CoActive,
    NearLowRank,
    RankedLayer,
    ranked_layers,
    rectified_layers,
    sides,
)
from equipoise.theorems.claims import (
    SINCE_START,
    Assumption,
    CheckResult,
    Relation,
    Statement,
    beyond_rank,
    from_rank,
    largest_residual,
    turned,
)
from equipoise.theorems.evidence import Evidence
from equipoise.theorems.spectral_bounds import angles, ratio, sine_bound, sines

CLASS_LAWS, CLASSES_STAY = "class laws conserved", "classes stay"


def check(evidence: Evidence) -> CheckResult:
    """T4.2 for the classes of every ReLU layer; T4.3 for layers promised a rank, T3.1 for linear ones."""
    rectified, apart = rectified_layers(evidence)
    layers = ranked_layers(evidence, rectified)
    classes = [bounded.found for layer in layers for bounded in bounded_classes(evidence, layer)]
    return CheckResult(
        statements=tuple(_statements(evidence, layers)),
        assumptions=_class_laws(classes, evidence.law_tolerance),
        notes=_notes(layers, apart),
    )


@dataclass(frozen=True)
class BoundedClass:
    """A class of more neurons than the rank that bounds it; `deficit` bounds `Σ_{i>rank} σ_i²` of its rows.

    `promised` where the rank is the one that its readers tend to, and not one by their measure.
    """

    found: CoActive
    rank: int
    deficit: float
    promised: bool


def bounded_classes(evidence: Evidence, one: RankedLayer) -> Iterator[BoundedClass]:
    """The classes of a ReLU layer that T4.2 bounds."""
    if one.layer.linear:
        return
    _, columns = sides(one.layer.law, evidence.final)
    for found in one.layer.classes:
        rank = 1 if one.read is None else one.read.rank
        if len(found.members) > rank:
            above = spectrum(columns[found.members]).beyond(1) if one.read is None else one.read.deficit
            yield BoundedClass(found, rank, above + found.excess(rank), one.read is not None)


def _class_laws(classes: Sequence[CoActive], tolerance: float) -> tuple[Assumption, ...]:
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


def _statements(evidence: Evidence, layers: Sequence[RankedLayer]) -> Iterator[Statement]:
    start = SINCE_START if evidence.initial is not None else ()
    for one in layers:
        rows, columns = sides(one.layer.law, evidence.final)
        for bounded in bounded_classes(evidence, one):
            members = bounded.found.members
            yield _of_class(one, bounded, rows[members], start)
            if bounded.rank:  # the readers of the class may all be off, and have no directions then
                yield _alignment(one, bounded.found, bounded.rank, (rows[members], columns[members].T), start)
        if one.written is not None and one.written.rank < min(rows.shape):
            yield _of_layer(one, one.written, rows, start)
        if one.layer.linear and one.read is not None and one.read.rank:
            yield _alignment(one, one.layer.classes[0], one.read.rank, (rows, columns.T), start)


def _of_class(one: RankedLayer, bounded: BoundedClass, rows: Tensor, start: tuple[str, ...]) -> Statement:
    found, rank = bounded.found, bounded.rank
    beside = "" if bounded.promised else ", beside what reads them"
    return Statement(
        name=f"distance of {len(rows)} co-active neurons of {one.layer.name} {_members(found)} from {from_rank(rank)}",
        theorem="T4.2",
        quantity=beyond_rank(rank, "W_S") + beside + _since_when(found.since),
        **_residual(rows, rank, bounded.deficit),
        rests_on=(_assumed(found), *start),
    )


def _alignment(
    one: RankedLayer, found: CoActive, rank: int, both: tuple[Tensor, Tensor], start: tuple[str, ...]
) -> Statement:
    """The alignment of a class, or all of a linear layer, with its readers."""
    writes, reads = both
    rank = min(rank, *writes.shape, *reads.shape)
    figures = _Figures(
        measured=sines(writes, reads, rank),
        relation="≤",
        bound=sine_bound(found.spread(rank), writes, reads, rank),
        trivial=float(angles(len(writes), rank)),
    )
    if one.layer.linear:
        name = f"misalignment of {one.layer.name} with {' + '.join(one.layer.law.consumers)}"
        return Statement(name, "T3.2", turned(rank), **figures, rests_on=start)
    name = f"misalignment of {len(writes)} co-active neurons of {one.layer.name} {_members(found)} with their readers"
    quantity = turned(rank) + _since_when(found.since)
    return Statement(name, "T4.6", quantity, **figures, rests_on=(_assumed(found), *start))


def _of_layer(one: RankedLayer, near: NearLowRank, rows: Tensor, start: tuple[str, ...]) -> Statement:
    title = f"distance of {one.layer.name} from {from_rank(near.rank)}"
    quantity, figures = beyond_rank(near.rank), _residual(rows, near.rank, near.deficit)
    if one.layer.linear:
        return Statement(title, "T3.1", quantity, **figures, rests_on=start)
    title = f"{title}, by its {len(one.layer.classes)} pattern classes"
    return Statement(title, "T4.3", quantity, **figures, rests_on=(CLASS_LAWS, CLASSES_STAY, *start))


class _Figures(TypedDict):
    """The figures of a statement."""

    measured: float
    relation: Relation
    bound: float
    trivial: float


def _residual(rows: Tensor, rank: int, deficit: float) -> _Figures:
    return _Figures(
        measured=spectrum(rows).rank_residual(rank),
        relation="≤",
        bound=min(1.0, ratio(deficit, float(rows.square().sum()))),
        trivial=largest_residual(rows, rank),
    )


def _assumed(found: CoActive) -> str:
    return CLASSES_STAY if found.since is None else CLASS_LAWS


def _members(found: CoActive) -> str:
    first = ", ".join(map(str, found.members[:3].tolist()))
    return f"({first}, …)" if len(found.members) > 3 else f"({first})"


def _since_when(since: float | None) -> str:
    """The source of a bound, in words."""
    return ", as known at the end" if since is None else f", from the values at s = {since:.2f}"


def _notes(layers: Sequence[RankedLayer], apart: Sequence[str]) -> tuple[str, ...]:
    """The statements that are not made of layers with an activation, a line each."""
    bent = [one for one in layers if not one.layer.linear]
    names = ", ".join(one.layer.name for one in bent)
    whole = (f"{names}: followed by an activation, rank one is not claimed of all of the matrix (T4.4)",)
    silent = [f"no rank by patterns (T4.3) of {one.layer.name}: {one.obstacle}" for one in bent if one.obstacle]
    together = [f"nothing is claimed of neurons together (T4.2, T4.3) of {line}" for line in apart]
    return (*(whole if bent else ()), *silent, *together)
