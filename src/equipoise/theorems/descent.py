"""From what reads a layer to what writes it, down from the linear tail: the rank each tends to (T3.1, T4.2, T4.3).

What reads a layer is within `D` of rank `q`: the tail by T3.1, and every matrix whose own rows are. So the rows of each
class `S` of the layer are within `D + Σ_{i≤q} λ_i(C_S) - tr C_S` of rank `q`, and as the shares of the classes in `D`
add up to it, all rows together within `D + Σ_S (…)`, and the squares of the neurons that are off, of rank
`Σ_S min(|S|, q)`.

What reads a layer need not be the matrix that is known to be near low rank: a convolution with `t` taps writes as
`out × (channels · t)` and reads as `(out · t) × channels`, and a fully connected layer reads a channel at all its
places. Of `Σ_i u_i v_iᵀ`, the rows of the second are combinations of the `q t` slices of the `v_i`: a tensor within `D`
of rank `q` by the first is within `D` of rank `q t` by the second. That says something of more channels than `q t`.

A stream that its own blocks read and write has no end to start from: nothing is promised of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from equipoise.graph.interface import Member
from equipoise.theorems import tail
from equipoise.theorems.coactive import MixedLayer, linear_layers, sides
from equipoise.theorems.evidence import Evidence


@dataclass(frozen=True)
class Near:
    """A matrix is within `deficit` of rank `rank`: `Σ_{i>rank} σ_i² ≤ deficit`; it has `rows` rows."""

    rank: int
    deficit: float
    rows: int

    def within(self, columns: int) -> "Near":
        """What is known of as many rows and this many columns: a small matrix has no higher rank than its shape.

        >>> Near(3, 0.5, 8).within(2)
        Near(rank=2, deficit=0.0, rows=8)
        """
        most = min(self.rows, columns)
        return self if self.rank < most else Near(most, 0.0, self.rows)


@dataclass(frozen=True)
class Descended:
    """A layer, how near to low rank what reads it is, and so all that writes it; or why nothing is promised."""

    layer: MixedLayer
    read: Near | None
    written: Near | None
    obstacle: str = ""


def descended(evidence: Evidence, layers: Sequence[MixedLayer]) -> tuple[Descended, ...]:
    """Linear layers below the tail and these, with what their readers promise, themselves promised by theirs."""
    near = _tail(evidence)
    below = [layer for layer in linear_layers(evidence) if near.keys().isdisjoint(layer.law.producers)]
    waiting, found = [*below, *layers], dict[MixedLayer, Descended]()
    while ready := [layer for layer in waiting if not _obstacle(layer, near)]:
        for layer in ready:
            waiting.remove(layer)
            parts = [_read(member, near[member.parameter]) for member in _members(layer, -1)]
            read = _stacked(parts).within(layer.law.interface.width)
            written = _written(evidence, layer, read)
            found[layer] = Descended(layer, read, written)
            near = {member.parameter: written for member in _members(layer, 1) if member.covers} | near  # parts of it
    silent = {layer: Descended(layer, None, None, _obstacle(layer, near)) for layer in waiting}
    return tuple((found | silent)[layer] for layer in (*below, *layers))


def _tail(evidence: Evidence) -> dict[str, Near]:
    start = evidence.final if evidence.initial is None else evidence.initial
    deficits, ranks = tail.deficit_bounds(evidence.tail, start, evidence.final), evidence.tail.ranks(start)
    return {name: Near(ranks[name], bound, len(evidence.final[name])) for name, bound in deficits.items()}


def _obstacle(layer: MixedLayer, near: dict[str, Near]) -> str:
    """Why what reads the layer is not known to tend to low rank; empty where it is."""
    for member in _members(layer, -1):
        known = near.get(member.parameter)
        if known is None:
            return f"{member.label}, which reads it, is not known to tend to low rank"
        if not member.covers or (_places(member, known) > 1 and _read(member, known).rank >= member.index.shape[2]):
            return f"{member.label} reads it at several places: another matrix than the one that tends to low rank"
    return ""


def _read(member: Member, known: Near) -> Near:
    """What is known of a matrix as it reads a layer, from what is known of it as it writes the next."""
    places = _places(member, known)
    return Near(known.rank * places, known.deficit, known.rows * places)


def _places(member: Member, known: Near) -> int:
    """Taps and positions through which each row of a matrix reads each component."""
    return torch.Size(member.view).numel() // (known.rows * member.index.shape[2])


def _members(layer: MixedLayer, side: int) -> list[Member]:
    return [member for member in layer.law.interface.members if member.degree * side > 0]


def _stacked(parts: Iterable[Near]) -> Near:
    """Matrices one above the other: ranks, distances and rows add up."""
    parts = list(parts)
    return Near(*(sum(getattr(part, name) for part in parts) for name in ("rank", "deficit", "rows")))


def _written(evidence: Evidence, layer: MixedLayer, read: Near) -> Near:
    rows, _ = sides(layer.law, evidence.final)
    wide = [found for found in layer.classes if len(found.members) > read.rank]
    total = sum(min(len(found.members), read.rank) for found in layer.classes)
    spilt = sum((found.excess(read.rank) for found in wide), read.deficit if wide else 0.0)
    return Near(total, spilt + float(rows[layer.off].square().sum()), len(rows)).within(rows.shape[1])
