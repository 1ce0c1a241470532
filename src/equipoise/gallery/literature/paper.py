"""A paper of the gallery: its claim, its settings, criteria argued for beforehand, and the measurement of one case."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Generic, Literal, TypeVar, cast

import pandas as pd
import torch

from equipoise.gallery.experiment import SEEDS, Criterion, Picture
from equipoise.references import REFERENCES, Reference

S = TypeVar("S")

PaperVerdict = Literal["holds", "differs", "no premise"]


@dataclass(frozen=True)
class Curve:
    """A line of a picture: its name in the legend, and its points. Curves of one name share a colour."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Comparison:
    """A figure of ours beside the published one, which is None where the paper prints none."""

    figure: str
    ours: float
    published: float | str | None = None


@dataclass(frozen=True)
class Outcome:
    """The measurement of one case.

    Attributes:
        values: one figure for each criterion of the paper, in their order; none without the premise.
        comparisons: further figures, beside the published ones.
        curves: the lines of the picture.
        remark: anything else, in words.
        premise: the reason why the claim does not apply to this case, or empty.
    """

    values: tuple[float, ...] = ()
    comparisons: Sequence[Comparison] = ()
    curves: Sequence[Curve] = ()
    remark: str = ""
    premise: str = ""

    @classmethod
    def without(cls, premise: str) -> "Outcome":
        """The outcome of a case to which the claim does not apply."""
        return cls(premise=premise)


@dataclass(frozen=True)
class PaperCase(Generic[S]):
    """A setting and a seed, and the journal of what happens in it, which becomes the raw log of the run.

    `deadline` is the instant of `time.monotonic()` at which trainings stop short; None for as long as they take.
    """

    setting: S
    seed: int
    journal: list[Mapping[str, object]] = field(default_factory=list, repr=False, compare=False)
    deadline: float | None = None

    def generator(self, stream: int = 0) -> torch.Generator:
        """A generator of random numbers of its own, the same for the same seed and stream."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + stream)

    def log(self, **fields: object) -> None:
        """Write one line into the raw log."""
        self.journal.append(fields)

    def log_table(self, table: pd.DataFrame, **fields: object) -> None:
        """Write the records of a run into the raw log, a line each, with `fields` that say which run."""
        self.journal.extend({**fields, **cast("dict[str, object]", row)} for row in table.to_dict("records"))


@dataclass(frozen=True)
class Paper(Generic[S]):
    """A paper's claim and its test.

    A case holds if every criterion is satisfied; else it differs.

    Attributes:
        key: of `references.REFERENCES`, and the name of the entry on the command line.
        claim: one sentence.
        basis: where the statement is from: read in the paper, derived here, or recalled and not checked.
        quick: the setting that takes seconds, a dataclass.
        criteria: statistic, relation, threshold, and the argument for it.
        measure: from a case to its outcome.
        picture: how the curves are drawn.
        full: the paper's own setting, where it is larger; None where `quick` is all there is.
        tried: what was tried where the claim does not reproduce.
        beside: keys of further references.
        seeds: of the cases.
        sampled: whether the test suite runs it, with the first seed.
    """

    key: str
    claim: str
    basis: str
    quick: S
    criteria: tuple[Criterion, ...]
    measure: Callable[[PaperCase[S]], Outcome]
    picture: Picture
    full: S | None = None
    tried: str = ""
    beside: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    sampled: bool = False

    @property
    def reference(self) -> Reference:
        """The paper itself."""
        return REFERENCES[self.key]

    @property
    def references(self) -> tuple[Reference, ...]:
        """The paper, and the further ones."""
        return tuple(REFERENCES[key] for key in (self.key, *self.beside))

    def setting(self, *, full: bool) -> S:
        """The setting asked for: `quick` where there is no other."""
        return self.full if full and self.full is not None else self.quick

    def fields(self, *, full: bool) -> dict[str, object]:
        """The setting as names and values."""
        return asdict(self.setting(full=full))  # pyright: ignore[reportArgumentType] - settings are dataclasses

    def verdict(self, outcome: Outcome) -> PaperVerdict:
        """Whether the claim holds in that case; a NaN satisfies nothing."""
        if outcome.premise:
            return "no premise"
        pairs = zip(self.criteria, outcome.values, strict=True)
        return "holds" if all(criterion.satisfied(value) for criterion, value in pairs) else "differs"


def failed_outcome(paper: Paper, error: Exception) -> Outcome:
    """The outcome of a case that raised: it differs, and says why."""
    return Outcome((math.nan,) * len(paper.criteria), remark=f"raised {type(error).__name__}: {error}")
