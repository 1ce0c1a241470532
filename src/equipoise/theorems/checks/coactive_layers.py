"""Layers whose neurons mix, and the rank that each tends to, down from the linear tail (T2, T3.1, T4.1–T4.3).

A layer is all that writes its neurons, `W`, and all that reads them, `V`, side by side: with skips several matrices
each, of a convolution its channels and their taps. Were all neurons of a ReLU layer on together, the laws of the
network (`Laws.given`) would keep the matrix `C = Vᵀ V - W Wᵀ` between the two. While only the neurons of a class `S`
are, they keep the block `C_S` of it.

If `V` is within `D` of rank `q` (the tail by T3.1, and every matrix whose own rows are), the rows of each class `S` of
the layer are within `D + Σ_{i≤q} λ_i(C_S) - tr C_S` of rank `q`. As the shares of the classes in `D` add up to it, all
rows together are within `D + Σ_S (…)`, and the squares of the neurons that are off, of rank `Σ_S min(|S|, q)`.

The matrix that reads a layer need not be the one that is known to be near low rank: a convolution with `t` taps writes
as `out × (channels · t)` and reads as `(out · t) × channels`, and a fully connected layer reads a channel at all its
places. Of `Σ_i u_i v_iᵀ`, the rows of the second are combinations of the `q t` slices of the `v_i`: a tensor within `D`
of rank `q` by the first is within `D` of rank `q t` by the second. That bounds layers of more channels than `q t`.

Nothing is promised of a stream that its own blocks read and write: it has no end to start from.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.graph.chain import channel_axis
from equipoise.graph.evaluate import Kink, kinks
from equipoise.graph.interface import Member
from equipoise.graph.piecewise import Rectifier
from equipoise.laws import Law, Laws
from equipoise.measure.activity import Patterns, pattern_classes, patterns
from equipoise.theorems.evidence import Evidence
from equipoise.theorems.linear_tail import deficit_bounds
from equipoise.theorems.spectral_bounds import certainly, excess, gram_rounding, spread
from equipoise.theorems.weights import Weights


@dataclass(frozen=True, eq=False)
class CoActive:
    """Neurons that are on for the same examples, and the saved point since which they were and kept their law.

    Attributes:
        members: the neurons, by index.
        since: growth at that point; None where only the final state is known.
        start: `C_S` there.
        change: `C_S` now minus `start`.
        drift: `‖change‖_F/‖w‖²`.
        rounding: a bound on the rounding of `C_S`.
    """

    members: Tensor
    since: float | None
    start: Tensor
    change: Tensor
    drift: float
    rounding: float

    def excess(self, rank: int) -> float:
        """`Σ_{i≤q} λ_i(C_S) - tr C_S` from the values at `since`, drift and rounding added; 0 of `q` neurons or less.

        With `V_S` within `D` of rank `q`, the rows `W_S` are within `D + excess(q)` of it (T4.2).
        """
        if len(self.members) <= rank:
            return 0.0
        return certainly(excess, rank, self.start, self.change, self.rounding)

    def spread(self, rank: int) -> float:
        """`(Σ_{i≤q} (λ_i(C_S) - λ_{d+1-i}(C_S))²)^{1/2}` likewise: how far `W_S` and `V_S` can be turned (T3.2)."""
        return certainly(spread, rank, self.start, self.change, self.rounding)


@dataclass(frozen=True, eq=False)
class MixedLayer:
    """An interface with the classes of its neurons: one of all in a linear layer. `off` are off for every example."""

    law: Law
    classes: tuple[CoActive, ...]
    off: Tensor
    linear: bool = False

    @property
    def name(self) -> str:
        """The matrices that write it."""
        matrices = [member for member in self.law.interface.members if member.degree > 0 and len(member.view) > 1]
        return " + ".join(dict.fromkeys(member.label for member in matrices))


def linear_layers(evidence: Evidence) -> Iterator[MixedLayer]:
    """The interfaces on which every matrix acts: their law is one of the network, kept since the start."""
    for law in _matrix_laws(evidence.laws):
        conserved = [_conserved(law, point.weights) for point in (evidence.points[0], evidence.points[-1])]
        every, since = torch.arange(law.interface.width), None if evidence.initial is None else 0.0
        change = conserved[-1] - conserved[0]
        drift = float(change.norm()) / evidence.square
        whole = CoActive(every, since, conserved[0], change, drift, _rounding(law, every, evidence.final))
        yield MixedLayer(law, (whole,), every[:0], linear=True)


def rectified_layers(evidence: Evidence) -> tuple[tuple[MixedLayer, ...], tuple[str, ...]]:
    """The layers with a ReLU or another piecewise-linear activation of one slope; and those without a law, in words."""
    if evidence.laws.captured is None:
        return (), ()
    bent = tuple(kink for kink in kinks(evidence.captured) if isinstance(kink.map, Rectifier))
    seen = [_patterns(evidence, bent, point.weights) for point in evidence.points]
    found, without = [], []
    for kink, history in zip(bent, zip(*seen, strict=True), strict=True):
        law = _law_if_all_on(evidence.laws, kink, history[-1].words.shape[1])
        if law is not None:
            found.append(_classified(evidence, law, kink, history))
        else:
            without.append(f"{kink.source.name}: what it is written by, or read through, keeps its neurons apart")
    return tuple(found), tuple(without)


def sides(law: Law, weights: Weights) -> tuple[Tensor, Tensor]:
    """`W`, all that writes the neurons side by side, and `Vᵀ`, all that reads them: a row for each neuron."""
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for member in law.interface.members:
        slices = member.slices(weights[member.parameter].double())[0]  # (copies, width, rest)
        found[member.degree > 0].append(slices.transpose(0, 1).flatten(1))
    return torch.cat(found[True], 1), torch.cat(found[False], 1)


def _matrix_laws(laws: Laws) -> Iterator[Law]:
    """Those of one interface, between linear maps, on all of which every matrix acts."""
    for law in laws:
        face = law.interface
        plain = law.exact and law.kind != "shift" and face.symmetry == "full" and all(abs(q) == 1 for q in law.degrees)
        if plain and face.blocks == 1 and face.width > 1 and law.producers and law.consumers:
            yield law


def _law_if_all_on(laws: Laws, kink: Kink, neurons: int) -> Law | None:
    """The law that the layer would have were all its neurons on together; None where they could not mix even then."""
    always = {law.name for law in _matrix_laws(laws)}
    together = torch.ones(1, *kink.node.meta["val"].shape[1:], dtype=torch.bool)
    found = [law for law in _matrix_laws(laws.given({kink.node.name: together})) if law.name not in always]
    return found[0] if len(found) == 1 and found[0].interface.width == neurons else None


def _patterns(evidence: Evidence, bent: tuple[Kink, ...], weights: Weights) -> tuple[Patterns, ...]:
    """A column for each neuron or channel; examples, and positions or tokens, are rows."""
    seen = zip(bent, evidence.preactivations(bent, weights), strict=True)
    columns = (z.movedim(channel_axis(kink.source), -1).flatten(0, -2) for kink, z in seen)
    return tuple(map(patterns, columns))


def _classified(evidence: Evidence, law: Law, kink: Kink, history: Sequence[Patterns]) -> MixedLayer:
    found = pattern_classes(history[-1])
    idle = kink.negative_slope == 0
    groups = found.classes if idle or not len(found.all_off) else (*found.classes, found.all_off)
    conserved = [_conserved(law, point.weights) for point in evidence.points]
    classes = tuple(_followed(evidence, law, members, history, conserved) for members in groups)
    return MixedLayer(law, classes, found.all_off if idle else found.all_off[:0])


def _followed(
    evidence: Evidence, law: Law, members: Tensor, history: Sequence[Patterns], conserved: list[Tensor]
) -> CoActive:
    """From the earliest saved point since which the neurons were on together and the law of the class was kept."""
    blocks = [matrix[members][:, members] for matrix in conserved]
    now, since, drift = len(blocks) - 1, None, 0.0
    start = now
    for past in reversed(range(now) if len(members) > 1 else ()):
        words = history[past].words[:, members]
        moved = float((blocks[now] - blocks[past]).norm()) / evidence.square
        if not torch.equal(words, words[:, :1].expand_as(words)) or moved > evidence.law_tolerance:
            break
        start, since, drift = past, evidence.points[past].growth, moved
    change = blocks[now] - blocks[start]
    return CoActive(members, since, blocks[start], change, drift, _rounding(law, members, evidence.final))


def _conserved(law: Law, weights: Weights) -> Tensor:
    rows, columns = sides(law, weights)
    return columns @ columns.T - rows @ rows.T


def _rounding(law: Law, members: Tensor, weights: Weights) -> float:
    return sum(gram_rounding(side[members]) for side in sides(law, weights))


# --- down from the tail ---


@dataclass(frozen=True)
class NearLowRank:
    """A matrix is within `deficit` of rank `rank`: `Σ_{i>rank} σ_i² ≤ deficit`; it has `rows` rows."""

    rank: int
    deficit: float
    rows: int

    def within(self, columns: int) -> "NearLowRank":
        """The same of as many rows and this many columns: a small matrix has no higher rank than its shape.

        >>> NearLowRank(3, 0.5, 8).within(2)
        NearLowRank(rank=2, deficit=0.0, rows=8)
        """
        most = min(self.rows, columns)
        return self if self.rank < most else NearLowRank(most, 0.0, self.rows)


@dataclass(frozen=True)
class RankedLayer:
    """A layer, the distance from low rank of its readers and so of its writers; or the obstacle to such a promise."""

    layer: MixedLayer
    read: NearLowRank | None
    written: NearLowRank | None
    obstacle: str = ""


def ranked_layers(evidence: Evidence, layers: Sequence[MixedLayer]) -> tuple[RankedLayer, ...]:
    """Linear layers below the tail and `layers`, each with the distance from low rank that its readers promise.

    From the tail down: the writers of one layer are the readers of those below.
    """
    near = _tail(evidence)
    below = [layer for layer in linear_layers(evidence) if near.keys().isdisjoint(layer.law.producers)]
    waiting, found = [*below, *layers], dict[MixedLayer, RankedLayer]()
    while ready := [layer for layer in waiting if not _obstacle(layer, near)]:
        for layer in ready:
            waiting.remove(layer)
            parts = [_read(member, near[member.parameter]) for member in _members(layer, -1)]
            read = _stacked(parts).within(layer.law.interface.width)
            written = _written(evidence, layer, read)
            found[layer] = RankedLayer(layer, read, written)
            near = {member.parameter: written for member in _members(layer, 1) if member.covers} | near  # parts of it
    silent = {layer: RankedLayer(layer, None, None, _obstacle(layer, near)) for layer in waiting}
    return tuple((found | silent)[layer] for layer in (*below, *layers))


def _tail(evidence: Evidence) -> dict[str, NearLowRank]:
    start = evidence.final if evidence.initial is None else evidence.initial
    deficits, ranks = deficit_bounds(evidence.tail, start, evidence.final), evidence.tail.ranks(start)
    return {name: NearLowRank(ranks[name], bound, len(evidence.final[name])) for name, bound in deficits.items()}


def _obstacle(layer: MixedLayer, near: dict[str, NearLowRank]) -> str:
    """The reason why the readers of a layer are not known to tend to low rank; empty where they are."""
    for member in _members(layer, -1):
        known = near.get(member.parameter)
        if known is None:
            return f"{member.label}, which reads it, is not known to tend to low rank"
        if not member.covers or (_places(member, known) > 1 and _read(member, known).rank >= member.index.shape[2]):
            return f"{member.label} reads it at several places: another matrix than the one that tends to low rank"
    return ""


def _read(member: Member, known: NearLowRank) -> NearLowRank:
    """The distance of a matrix from low rank as it reads a layer, from that as it writes the next."""
    places = _places(member, known)
    return NearLowRank(known.rank * places, known.deficit, known.rows * places)


def _places(member: Member, known: NearLowRank) -> int:
    """Taps and positions through which each row of a matrix reads each component."""
    return torch.Size(member.view).numel() // (known.rows * member.index.shape[2])


def _members(layer: MixedLayer, side: int) -> list[Member]:
    return [member for member in layer.law.interface.members if member.degree * side > 0]


def _stacked(parts: Iterable[NearLowRank]) -> NearLowRank:
    """Matrices one above the other: ranks, distances and rows add up."""
    parts = list(parts)
    return NearLowRank(
        sum(part.rank for part in parts), sum(part.deficit for part in parts), sum(part.rows for part in parts)
    )


def _written(evidence: Evidence, layer: MixedLayer, read: NearLowRank) -> NearLowRank:
    rows, _ = sides(layer.law, evidence.final)
    wide = [found for found in layer.classes if len(found.members) > read.rank]
    total = sum(min(len(found.members), read.rank) for found in layer.classes)
    spilt = sum((found.excess(read.rank) for found in wide), read.deficit if wide else 0.0)
    return NearLowRank(total, spilt + float(rows[layer.off].square().sum()), len(rows)).within(rows.shape[1])
