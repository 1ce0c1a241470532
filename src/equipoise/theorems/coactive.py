"""Interfaces whose components mix: linear layers, and the co-active neurons of ReLU layers (T2, T4.1, T4.2).

A layer is all that writes its neurons, `W`, and all that reads them, `V`, side by side: with skips several matrices
each, of a convolution its channels and their taps. Were all neurons of a ReLU layer on together, the laws of the
network (`Laws.given`) would keep the matrix `C = Vᵀ V - W Wᵀ` between the two. While only the neurons of a class `S`
are, they keep the block `C_S` of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.graph.chain import channel_axis
from equipoise.graph.evaluate import Kink, kinks, recorded
from equipoise.graph.piecewise import Rectifier
from equipoise.laws import Law, Laws
from equipoise.measure.activity import Patterns, pattern_classes, patterns
from equipoise.theorems import tail
from equipoise.theorems.assumptions import law_tolerance
from equipoise.theorems.evidence import Evidence, Named


@dataclass(frozen=True, eq=False)
class CoActive:
    """Neurons that are on for the same examples, and the saved point since which they were and kept their law.

    `start` is `C_S` there, `change` what it changed by since and `drift` is `‖change‖_F/‖w‖²`; `since` is None where
    only the final state is known. `rounding` bounds that of `C_S`.
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
        return tail.certainly(tail.excess, rank, self.start, self.change, self.rounding)

    def spread(self, rank: int) -> float:
        """`(Σ_{i≤q} (λ_i(C_S) - λ_{d+1-i}(C_S))²)^{1/2}` likewise: how far `W_S` and `V_S` can be turned (T3.2)."""
        return tail.certainly(tail.spread, rank, self.start, self.change, self.rounding)


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
    """The layers with a ReLU or another piecewise-linear activation of one slope, and in words those without a law."""
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


def preactivations(evidence: Evidence, bent: tuple[Kink, ...], weights: Named) -> tuple[Tensor, ...]:
    """What every activation of the network reads, on all examples."""
    with torch.no_grad():
        return recorded(evidence.captured, bent, weights, evidence.X)[1]


def sides(law: Law, weights: Named) -> tuple[Tensor, Tensor]:
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


def _patterns(evidence: Evidence, bent: tuple[Kink, ...], weights: Named) -> tuple[Patterns, ...]:
    """A column for each neuron or channel; examples, and positions or tokens, are rows."""
    seen = zip(bent, preactivations(evidence, bent, weights), strict=True)
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
        if not torch.equal(words, words[:, :1].expand_as(words)) or moved > law_tolerance(evidence):
            break
        start, since, drift = past, evidence.points[past].growth, moved
    change = blocks[now] - blocks[start]
    return CoActive(members, since, blocks[start], change, drift, _rounding(law, members, evidence.final))


def _conserved(law: Law, weights: Named) -> Tensor:
    rows, columns = sides(law, weights)
    return columns @ columns.T - rows @ rows.T


def _rounding(law: Law, members: Tensor, weights: Named) -> float:
    return sum(tail.gram_rounding(side[members]) for side in sides(law, weights))
