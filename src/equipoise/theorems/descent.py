"""From what reads a layer to what writes it, down from the linear tail: the rank each tends to (THEORY T4.2, T4.3).

What reads a layer is within `D` of rank `q`: the tail by T3.1, and every matrix whose own rows are. So the rows of each
class `S` of the layer are within `D + Σ_{i≤q} λ_i(C_S) - tr C_S` of rank `q`, and as the shares of the classes in `D`
add up to it, all rows together within `D + Σ_S (…)`, and the squares of the neurons that are off, of rank
`Σ_S min(|S|, q)`. A stream that its own blocks read and write has no end to start from: nothing is promised of it.
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
            read = _stacked(near[name] for name in layer.law.consumers)
            written = _written(evidence, layer, read)
            found[layer] = Descended(layer, read, written)
            near = {member.parameter: written for member in _members(layer, 1) if member.covers} | near
    silent = {layer: Descended(layer, None, None, _obstacle(layer, near)) for layer in waiting}
    return tuple((found | silent)[layer] for layer in (*below, *layers))


def _tail(evidence: Evidence) -> dict[str, Near]:
    start = evidence.final if evidence.initial is None else evidence.initial
    deficits = tail.deficit_bounds(evidence.tail, start, evidence.final)
    return {name: Near(evidence.tail.rank, bound, len(evidence.final[name])) for name, bound in deficits.items()}


def _obstacle(layer: MixedLayer, near: dict[str, Near]) -> str:
    """Why what reads the layer is not known to tend to low rank; empty where it is."""
    for member in _members(layer, -1):
        known = near.get(member.parameter)
        if known is None:
            return f"{member.label}, which reads it, is not known to tend to low rank"
        if not member.covers or member.index.numel() * known.rows != _entries(member) or member.index.shape[1] > 1:
            return f"{member.label} reads it at several places: another matrix than the one that tends to low rank"
    return ""


def _entries(member: Member) -> int:
    return torch.Size(member.view).numel()


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
    return Near(total, spilt + float(rows[layer.off].square().sum()), len(rows))
