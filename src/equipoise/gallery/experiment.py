"""An experiment: a claim in words, its source, a threshold argued for, and the measurement of one run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from equipoise.gallery.case import DATA, Case
from equipoise.references import REFERENCES, Reference

SEEDS = (0, 1, 2, 3, 4)

Verdict = Literal["holds", "fails", "no premise"]


Relation = Literal["≤", "≥"]


@dataclass(frozen=True)
class Criterion:
    """A pass rule: the statistic in words, its relation to a threshold, and `why` the threshold is where it is."""

    statistic: str
    relation: Relation
    threshold: float
    why: str

    def satisfied(self, value: float) -> bool:
        """Whether a value is on the right side of the threshold; a NaN is on none.

        >>> Criterion("drift", "≤", 1e-9, "rounding").satisfied(1e-12)
        True
        """
        return value <= self.threshold if self.relation == "≤" else value >= self.threshold


@dataclass(frozen=True)
class Measurement:
    """The figure of one run.

    Attributes:
        statistic: the figure that is compared with the threshold.
        curve: the (x, y) points that the picture draws.
        remark: further figures, in words.
        premise: the reason why the claim does not apply to this run (it stalled, no pair is co-active, …), or empty.
    """

    statistic: float
    curve: Sequence[tuple[float, float]] = ()
    remark: str = ""
    premise: str = ""

    @classmethod
    def without(cls, premise: str) -> "Measurement":
        """The measurement of a run to which the claim does not apply."""
        return cls(math.nan, premise=premise)


@dataclass(frozen=True)
class Picture:
    """How a claim's curves are drawn: titles of the axes, scales, and whether the threshold belongs among them."""

    across: str
    up: str
    logarithmic: bool = True
    level: float | None = None  # a line across, where the curves have something to be compared with
    logarithmic_across: bool = False


@dataclass(frozen=True)
class Experiment:
    """A claim and its test: it holds in runs whose statistic is `relation` the `threshold`, which `why` argues for."""

    name: str
    title: str
    statement: str
    theorem: str
    sources: tuple[str, ...]  # keys of references.REFERENCES
    statistic: str
    threshold: float
    why: str
    measure: Callable[[Case], Measurement]
    picture: Picture
    relation: Relation = "≤"
    data: tuple[str, ...] = DATA
    seeds: tuple[int, ...] = SEEDS

    def verdict(self, measurement: Measurement) -> Verdict:
        """Whether the claim holds in that run; a NaN satisfies nothing."""
        if measurement.premise:
            return "no premise"
        return "holds" if self.criterion.satisfied(measurement.statistic) else "fails"

    @property
    def criterion(self) -> Criterion:
        """Its pass rule."""
        return Criterion(self.statistic, self.relation, self.threshold, self.why)

    @property
    def references(self) -> tuple[Reference, ...]:
        """The papers that it is from."""
        return tuple(REFERENCES[key] for key in self.sources)
