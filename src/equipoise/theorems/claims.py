"""One statement of a theorem about one network, and the statements of T3 about its linear tail."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from equipoise.measure.spectrum import spectra
from equipoise.theorems import growth, tail
from equipoise.theorems.assumptions import Assumption, Standing
from equipoise.theorems.evidence import Evidence, Named

Relation = Literal["≤", "≥"]
SINCE_START = ("laws conserved", "weights of the run")
LIMIT = ("homogeneous", "exponential tail", "separated", *SINCE_START)


@dataclass(frozen=True)
class Claim:
    """One statement of a theorem about this network: `measured ≤ bound`, or `≥` where `relation` says so.

    It stands no better than the worst of the assumptions it rests on. `trivial` is the bound that anything satisfies:
    the largest residual that a matrix of that shape can have, the norm that was there at the start.
    """

    name: str
    theorem: str
    quantity: str
    measured: float
    relation: Relation
    bound: float
    trivial: float
    rests_on: tuple[str, ...]
    standing: Standing

    @property
    def informative(self) -> bool:
        """Whether the bound excludes anything: lies below `trivial`, or above it where `relation` is `≥`."""
        return self.bound < self.trivial if self.relation == "≤" else self.bound > self.trivial

    @property
    def holds(self) -> bool:
        """Whether the inequality is satisfied and no assumption has failed; a NaN satisfies nothing."""
        satisfied = self.measured <= self.bound if self.relation == "≤" else self.measured >= self.bound
        return satisfied and self.standing != "failed"


@dataclass(frozen=True)
class Claimer:
    """Makes claims that stand as well as the assumptions they rest on; those that were not asked about do not count."""

    standings: dict[str, Standing]

    @classmethod
    def of(cls, found: Iterable[Assumption]) -> "Claimer":
        """From assumptions as they were found."""
        return cls({assumption.name: assumption.standing for assumption in found})

    def __call__(
        self,
        name: str,
        theorem: str,
        quantity: str,
        measured: float,
        relation: Relation,
        bound: float,
        trivial: float,
        rests_on: Iterable[str] = (),
    ) -> Claim:
        """The claim, with the standing of its worst assumption."""
        asked = tuple(assumption for assumption in rests_on if assumption in self.standings)
        standings = {self.standings[assumption] for assumption in asked}
        worst: Standing = "failed" if "failed" in standings else "observed" if "observed" in standings else "verified"
        return Claim(name, theorem, quantity, measured, relation, bound, trivial, asked, worst)

    def failed(self, name: str) -> bool:
        """Whether an assumption was asked about and failed."""
        return self.standings.get(name) == "failed"


def tail_claims(evidence: Evidence, claim: Claimer) -> tuple[Claim, ...]:
    """T3.1 for every layer of the tail, T3.2 for every pair, T3.3 for chains, T3.4 for the limit.

    From the matrices at initialisation, where they are known. If the laws did not survive since, the bounds from
    today's matrices are given too: those hold at any point, whatever the optimizer.
    """
    start, rests_on = (evidence.final, ()) if evidence.initial is None else (evidence.initial, SINCE_START)
    ranks = _ranks(evidence, claim, start, rests_on)
    claims = [*ranks, *_alignments(evidence, claim, start, rests_on), *_growths(evidence, claim)]
    if claim.failed("laws conserved") or claim.failed("weights of the run"):
        claims += _ranks(evidence, claim, evidence.final, (), " from today's matrices")
        claims += _alignments(evidence, claim, evidence.final, (), " from today's matrices")
    return (*claims, _limit(evidence, ranks, claim))


def from_rank(rank: int) -> str:
    """What a matrix has a distance from, in words."""
    return "rank one" if rank == 1 else f"rank {rank}"


def any_residual(matrix: Float[Tensor, "_ _ *_"], rank: int) -> float:
    """The largest residual of that rank that a matrix of this shape can have, that of equal singular values.

    >>> import torch
    >>> any_residual(torch.ones(4, 8), 1), any_residual(torch.ones(1, 8), 1)
    (0.75, 0.0)
    """
    return max(0.0, 1 - rank / min(tail.matrix(matrix).shape))


def beyond_rank(rank: int, what: str = "W") -> str:
    """What a claim of rank measures of a matrix, as a formula."""
    return f"1 - σ₁²/‖{what}‖²" if rank == 1 else f"1 - Σ_{{i≤{rank}}} σᵢ²/‖{what}‖²"


def _ranks(evidence: Evidence, claim: Claimer, start: Named, rests_on: Iterable[str], suffix: str = "") -> list[Claim]:
    bounds, ranks = tail.certified_bounds(evidence.tail, start, evidence.final), evidence.tail.ranks(start)
    measured = spectra({name: evidence.final[name] for name in bounds})
    return [
        claim(
            f"distance of {name} from {from_rank(rank)}{suffix}",
            "T3.1",
            beyond_rank(rank),
            measured[name].rank_residual(rank),
            "≤",
            bounds[name],
            any_residual(evidence.final[name], rank),
            rests_on,
        )
        for name, rank in ranks.items()
    ]


def _alignments(
    evidence: Evidence, claim: Claimer, start: Named, rests_on: Iterable[str], suffix: str = ""
) -> list[Claim]:
    bounds = tail.misalignment_bounds(evidence.tail, start, evidence.final)
    found = []
    for lower, upper in pairwise(evidence.tail.layers):
        writes, reads = tail.incoming(lower, evidence.final), tail.matrix(evidence.final[upper.weight])
        rank = evidence.tail.directions(lower, upper, evidence.final)
        name = f"misalignment of {lower.weight} with {upper.weight}{suffix}"
        measured, trivial = tail.sines(writes, reads, rank), float(tail.angles(len(writes), rank))
        found.append(claim(name, "T3.2", turned(rank), measured, "≤", bounds[lower.weight], trivial, rests_on))
    return found


def turned(rank: int) -> str:
    """What a claim of alignment measures, as a formula."""
    return "1 - ⟨v₊, u⟩²" if rank == 1 else f"‖sin Θ‖² of the top {rank} directions"


def _growths(evidence: Evidence, claim: Claimer) -> list[Claim]:
    """None but for chains without biases (the bound needs homogeneity), and none without a start (it says nothing)."""
    if evidence.chain is None or evidence.has_biases or evidence.initial is None:
        return []
    bounds = growth.norm_bounds(
        evidence.chain, evidence.initial, evidence.final, evidence.certain_margin, evidence.radius
    )
    return [
        claim(
            f"norm of {layer.weight}",
            "T3.3",
            "‖W‖_F, and at the start",
            float(evidence.final[layer.weight].norm()),
            "≥",
            bounds[layer.weight],
            float(evidence.initial[layer.weight].norm()),
            LIMIT,
        )
        for layer in evidence.tail.layers
    ]


def _limit(evidence: Evidence, ranks: list[Claim], claim: Claimer) -> Claim:
    """What gradient flow does from here on: growth and convergence are hypotheses where f is not homogeneous (§0)."""
    rests_on = (*(LIMIT[1:] if evidence.homogeneity.degree is None else LIMIT), "directional convergence")
    measured = max(found.measured for found in ranks)
    bound, trivial = max(found.bound for found in ranks), max(found.trivial for found in ranks)
    name = f"distance of the limit from {from_rank(evidence.tail.rank)}"
    quantity = f"worst {beyond_rank(evidence.tail.rank)} so far"
    return claim(name, "T3.4", quantity, measured, "≤", bound, trivial, rests_on)
