"""What a claim of the gallery is: words, source, a threshold argued for, and the function that measures one run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from equipoise.gallery.case import DATA, Case
from equipoise.references import REFERENCES, Reference

SEEDS = (0, 1, 2, 3, 4)

Verdict = Literal["holds", "fails", "no premise"]


@dataclass(frozen=True)
class Finding:
    """What one run showed.

    `curve` is what the claim's picture draws of it, as (x, y) points. `premise` says why the claim says nothing about
    this run (it stalled, no pair is co-active, …); empty where it applies. `remark` holds further figures, in words.
    """

    statistic: float
    curve: Sequence[tuple[float, float]] = ()
    remark: str = ""
    premise: str = ""

    @classmethod
    def without(cls, premise: str) -> "Finding":
        """Of a run that the claim says nothing about."""
        return cls(math.nan, premise=premise)


@dataclass(frozen=True)
class Picture:
    """How a claim's curves are drawn: titles of the axes, scales, and whether the threshold belongs among them."""

    across: str
    up: str
    logarithmic: bool = True
    level: float | None = None  # a line across, where the curves have something to be compared with


@dataclass(frozen=True)
class Claim:
    """One claim: it holds in a run whose `statistic` is `relation` the `threshold`, which `why` argues for."""

    name: str
    title: str
    statement: str
    theorem: str
    sources: tuple[str, ...]  # keys of references.REFERENCES
    statistic: str
    threshold: float
    why: str
    measure: Callable[[Case], Finding]
    picture: Picture
    relation: Literal["≤", "≥"] = "≤"
    data: tuple[str, ...] = DATA
    seeds: tuple[int, ...] = SEEDS

    def verdict(self, finding: Finding) -> Verdict:
        """Whether the claim holds in that run; a NaN satisfies nothing."""
        if finding.premise:
            return "no premise"
        value = finding.statistic
        satisfied = value <= self.threshold if self.relation == "≤" else value >= self.threshold
        return "holds" if satisfied else "fails"

    @property
    def references(self) -> tuple[Reference, ...]:
        """The papers that it is from."""
        return tuple(REFERENCES[key] for key in self.sources)
