"""Co-active neurons of networks that are no chain: skip connections and convolutions (THEORY T4.2).

The laws of the piece of the network that the training set stays on (`Laws.given`) say what a class `S` of co-active
neurons conserves, whatever writes and reads it: `C_S = V_Sᵀ V_S - W_S W_Sᵀ`, all producers side by side, all consumers
one above the other. So its rows are within `Σ_{i>1} σ_i(V_S)² + λ_1(C_S) - tr C_S` of rank one: what reads them is
measured, not bounded, for no rank is promised of it here. The channels of a convolution are on together where they
agree at every position.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.graph.evaluate import kinks
from equipoise.laws import Law, Laws
from equipoise.laws.collection import kink_names
from equipoise.measure.spectrum import spectrum
from equipoise.theorems import tail
from equipoise.theorems.assumptions import LAW_TOLERANCE
from equipoise.theorems.claims import SINCE_START, Claim, Claimer
from equipoise.theorems.evidence import Evidence, Named
from equipoise.theorems.submatrix import CLASS_LAWS, CLASSES_STAY, preactivations, since_when

Key = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Block:
    """One class of co-active neurons: the number of its block in a law, and since when that law has been kept.

    `deficit` bounds `Σ_{i>1} σ_i²` of its rows; `drift` is `‖C_S - C_S(T)‖_F/‖w‖²` since then.
    """

    law: Law
    number: int
    since: float | None
    drift: float
    deficit: float

    @property
    def members(self) -> Key:
        """The producers and the slices of each that belong to the class."""
        return _key(self.law, self.number)


def co_active_blocks(evidence: Evidence) -> tuple[Block, ...]:
    """The classes of two neurons and more at the final weights; none of a chain, which `patterned_layers` reads."""
    if evidence.chain is not None or evidence.laws.captured is None:
        return ()
    laws = [_pieces(evidence, point.weights) for point in evidence.points]
    history = [{_key(law, number) for law, number in pieces} for pieces in laws]
    return tuple(_block(evidence, law, number, history) for law, number in laws[-1])


def _pieces(evidence: Evidence, weights: Named) -> list[tuple[Law, int]]:
    """What the laws of the present piece of the network have beyond those of the network, block by block."""
    always = {_key(law, number) for law, number in _matrices(evidence.laws)}
    found = _matrices(evidence.laws.given(_activity(evidence, weights)))
    return [(law, number) for law, number in found if _key(law, number) not in always]


def _activity(evidence: Evidence, weights: Named) -> Mapping[str, Tensor]:
    bent, known = kinks(evidence.captured), set(kink_names(evidence.captured))
    seen = zip(bent, preactivations(evidence, bent, weights), strict=True)
    return {kink.node.name: z > 0 for kink, z in seen if kink.node.name in known}


def _matrices(laws: Laws) -> Iterator[tuple[Law, int]]:
    """Every block of two components and more on which all matrices act, between linear maps."""
    for law in laws:
        plain = law.exact and law.interface.symmetry == "full" and all(abs(q) == 1 for q in law.degrees)
        if plain and law.interface.width > 1 and law.producers and law.consumers:
            yield from ((law, number) for number in range(law.interface.blocks))


def _key(law: Law, number: int) -> Key:
    members = law.interface.members
    return tuple((one.parameter, tuple(one.index[number].flatten().tolist())) for one in members if one.degree > 0)


def _block(evidence: Evidence, law: Law, number: int, history: list[set[Key]]) -> Block:
    key, now = _key(law, number), _conserved(law, number, evidence.final)
    start, since, drift = now, None, 0.0
    for point, there in zip(reversed(evidence.points[:-1]), reversed(history[:-1]), strict=True):
        then = _conserved(law, number, point.weights)
        moved = float((now - then).norm()) / evidence.square
        if key not in there or moved > LAW_TOLERANCE:
            break
        start, since, drift = then, point.growth, moved
    rows, columns = sides(law, number, evidence.final)
    rounding = tail.gram_rounding(rows) + tail.gram_rounding(columns)
    read = spectrum(columns)
    above = read.rank_residual(1) * read.frobenius_norm**2
    return Block(law, number, since, drift, above + tail.certainly(tail.excess, 1, start, now - start, rounding))


def _conserved(law: Law, number: int, weights: Named) -> Tensor:
    rows, columns = sides(law, number, weights)
    return columns @ columns.T - rows @ rows.T


def sides(law: Law, number: int, weights: Named) -> tuple[Tensor, Tensor]:
    """`W_S`, all that writes the class side by side, and `V_Sᵀ`, all that reads it."""
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for member in law.interface.members:
        slices = member.slices(weights[member.parameter].double())[number]  # (copies, width, rest)
        found[member.degree > 0].append(slices.transpose(0, 1).flatten(1))
    return torch.cat(found[True], 1), torch.cat(found[False], 1)


def block_claims(evidence: Evidence, blocks: tuple[Block, ...], claim: Claimer) -> Iterator[Claim]:
    """T4.2 for every class: its distance to rank one against that of what reads it, and its law."""
    start = SINCE_START if evidence.initial is not None else ()
    for block in blocks:
        rows, _ = sides(block.law, block.number, evidence.final)
        names = " + ".join(block.law.producers)
        first = ", ".join(map(str, block.members[0][1][:3]))
        title = f"rank 1 of {len(rows)} co-active neurons of {names} ({first}{', …' if len(rows) > 3 else ''})"
        quantity = f"1 - σ₁²/‖W_S‖², beside what reads them{since_when(block.since)}"
        bound = min(1.0, tail.ratio(block.deficit, float(rows.square().sum())))
        rests_on = (CLASSES_STAY if block.since is None else CLASS_LAWS, *start)
        yield claim(title, "T4.2", quantity, spectrum(rows).rank_one_residual, "≤", bound, rests_on)
