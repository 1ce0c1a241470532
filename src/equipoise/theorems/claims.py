"""Assumptions, statements and claims: the types that a certificate is made of, and the wording they share.

A theorem states an inequality on named assumptions. Once these are decided the statement becomes a claim, with the
standing of the worst assumption it rests on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from equipoise.theorems.spectral_bounds import matrix

Standing: TypeAlias = Literal["verified", "observed", "failed"]
Relation: TypeAlias = Literal["≤", "≥"]

SINCE_START = ("laws conserved", "weights of the run")
LIMIT = ("homogeneous", "exponential tail", "separated", *SINCE_START)


@dataclass(frozen=True)
class Assumption:
    """One hypothesis of a theorem, decided from weights and data.

    Attributes:
        name: its name, by which claims rest on it.
        statement: the hypothesis in a formula.
        standing: *verified* (proved from the artefacts, rounding included), *observed* (true so far, unprovable in
            finite time) or *failed*.
        measured: the figure that is compared, where there is one.
        tolerance: the figure it is compared with.
        why: a description of the comparison.
    """

    name: str
    statement: str
    standing: Standing
    measured: float | None
    tolerance: float | None
    why: str


@dataclass(frozen=True)
class Statement:
    """An inequality that a theorem states of a network: `measured ≤ bound`, or `≥` where `relation` says so.

    Attributes:
        name: the bounded quantity and its place.
        theorem: the number of the theorem.
        quantity: the formula of `measured`.
        measured: the figure at the present weights.
        relation: `≤` or `≥`.
        bound: the bound of the theorem.
        trivial: the bound that anything satisfies: the largest residual that a matrix of that shape can have, the norm
            that was there at the start.
        rests_on: names of assumptions; those that a certificate did not decide do not count.
    """

    name: str
    theorem: str
    quantity: str
    measured: float
    relation: Relation
    bound: float
    trivial: float
    rests_on: tuple[str, ...]

    @property
    def informative(self) -> bool:
        """Whether the bound excludes anything: lies below `trivial`, or above it where `relation` is `≥`."""
        return self.bound < self.trivial if self.relation == "≤" else self.bound > self.trivial

    @property
    def satisfied(self) -> bool:
        """Whether the inequality is true; a NaN satisfies none."""
        return self.measured <= self.bound if self.relation == "≤" else self.measured >= self.bound


@dataclass(frozen=True)
class Claim(Statement):
    """A statement with `standing`, that of the worst of the assumptions it rests on."""

    standing: Standing

    @property
    def holds(self) -> bool:
        """Whether the inequality is satisfied and no assumption has failed."""
        return self.satisfied and self.standing != "failed"


def claimed(statement: Statement, standings: Mapping[str, Standing]) -> Claim:
    """The claim of a statement, by the standings of the assumptions that were decided.

    >>> bound = Statement("norm", "T3.3", "‖W‖", 2.0, "≥", 1.0, 0.0, ("separated", "not decided"))
    >>> claim = claimed(bound, {"separated": "observed"})
    >>> claim.standing, claim.rests_on, claim.holds
    ('observed', ('separated',), True)
    """
    decided = tuple(name for name in statement.rests_on if name in standings)
    found = {standings[name] for name in decided}
    worst: Standing = "failed" if "failed" in found else "observed" if "observed" in found else "verified"
    return Claim(**vars(replace(statement, rests_on=decided)), standing=worst)


@dataclass(frozen=True)
class CheckResult:
    """The result of checking one theorem: its statements, the assumptions decided on the way, and notes in words."""

    statements: tuple[Statement, ...]
    assumptions: tuple[Assumption, ...] = ()
    notes: tuple[str, ...] = ()


# --- wording ---


def from_rank(rank: int) -> str:
    """The name of a rank: "rank one", "rank 2"."""
    return "rank one" if rank == 1 else f"rank {rank}"


def beyond_rank(rank: int, symbol: str = "W") -> str:
    """The formula of the residual of a rank."""
    return f"1 - σ₁²/‖{symbol}‖²" if rank == 1 else f"1 - Σ_{{i≤{rank}}} σᵢ²/‖{symbol}‖²"


def turned(rank: int) -> str:
    """The formula of a misalignment."""
    return "1 - ⟨v₊, u⟩²" if rank == 1 else f"‖sin Θ‖² of the top {rank} directions"


def largest_residual(weight: Float[Tensor, "_ _ *_"], rank: int) -> float:
    """The largest residual of that rank that a matrix of this shape can have, that of equal singular values.

    >>> import torch
    >>> largest_residual(torch.ones(4, 8), 1), largest_residual(torch.ones(1, 8), 1)
    (0.75, 0.0)
    """
    return max(0.0, 1 - rank / min(matrix(weight).shape))
