"""Rows of the runs of papers, each with the raw log that it came from and the hash of that log."""

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from equipoise.errors import StoreError
from equipoise.gallery.literature.catalogue import catalogue
from equipoise.gallery.literature.paper import Outcome, Paper, PaperVerdict
from equipoise.gallery.results import thinned
from equipoise.store import append_json, finite, place, read_json_lines

ROWS, LOGS = "papers.jsonl", "logs"
_PACKAGES = ("equipoise", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class PaperRow:
    """One run: a paper, a setting (`quick` or `full`), a seed, and all that was found.

    `values` are in the order of the paper's criteria, None where there is none; `log` is a path below the folder of the
    results, `sha256` that of its bytes; `seconds` are of the processor, on one thread.
    """

    paper: str
    setting: str
    seed: int
    verdict: PaperVerdict
    values: Sequence[float | None]
    comparisons: Sequence[Mapping[str, object]]
    curves: Sequence[Mapping[str, object]]
    remark: str
    premise: str
    seconds: float
    command: str
    versions: Mapping[str, str]
    log: str = ""
    sha256: str = ""

    @property
    def case(self) -> tuple[str, str, int]:
        """Paper, setting and seed."""
        return self.paper, self.setting, self.seed


def paper_row(paper: Paper, full: bool, seed: int, outcome: Outcome, seconds: float) -> PaperRow:
    """The row of a case; its log is not yet written."""
    setting = "full" if full else "quick"
    return PaperRow(
        paper=paper.key,
        setting=setting,
        seed=seed,
        verdict=paper.verdict(outcome),
        values=finite([float(value) for value in outcome.values]),
        comparisons=[finite(asdict(each)) for each in outcome.comparisons],
        curves=[{"name": each.name, "points": finite(thinned(list(each.points)))} for each in outcome.curves],
        remark=outcome.remark,
        premise=outcome.premise,
        seconds=round(seconds, 2),
        command=command_of(paper.key, full, seed),
        versions=versions(),
    )


def command_of(key: str, full: bool, seed: int | None = None) -> str:
    """The command that runs a case again.

    >>> command_of("yunis2024approaching", True, 1)
    'equipoise gallery run yunis2024approaching --full --seeds 1'
    """
    seeds = [] if seed is None else [f"--seeds {seed}"]
    return " ".join(["equipoise gallery run", key, *(["--full"] if full else []), *seeds])


@cache
def versions() -> Mapping[str, str]:
    """Of Python and the packages that the figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


@dataclass(frozen=True)
class PaperResults:
    """The latest row of each case, in the order of the papers."""

    rows: tuple[PaperRow, ...]

    @classmethod
    def of(cls, rows: Sequence[PaperRow]) -> "PaperResults":
        """Of rows in the order in which they were made: a later one takes the place of an earlier one."""
        latest = {row.case: row for row in rows}
        places = {key: place for place, key in enumerate(catalogue())}
        known = [row for row in latest.values() if row.paper in places and _is_current(row)]
        return cls(tuple(sorted(known, key=lambda row: (places[row.paper], row.setting != "quick", row.seed))))

    def about(self, key: str, setting: str | None = None) -> tuple[PaperRow, ...]:
        """The rows of one paper, in one setting or in both."""
        return tuple(row for row in self.rows if row.paper == key and setting in (None, row.setting))

    def verdict(self, key: str, setting: str | None = None) -> PaperVerdict | None:
        """Of all its rows: it differs where one does; None where it was not run."""
        found = {row.verdict for row in self.about(key, setting)}
        order: tuple[PaperVerdict, ...] = ("differs", "holds", "no premise")
        return next((verdict for verdict in order if verdict in found), None)

    def seconds(self, key: str, setting: str | None = None) -> float:
        """The time of all its rows."""
        return sum((row.seconds for row in self.about(key, setting)), 0.0)

    @property
    def differing(self) -> list[str]:
        """Keys of the papers that differ in some case."""
        return list(dict.fromkeys(row.paper for row in self.rows if row.verdict == "differs"))

    @property
    def table(self) -> pd.DataFrame:
        """One tidy table: a row for each case and criterion, with statistic, value, threshold, verdict and seconds."""
        lines = []
        for row in self.rows:
            values = row.values or (None,) * len(catalogue()[row.paper].criteria)
            for criterion, value in zip(catalogue()[row.paper].criteria, values, strict=True):
                case = (*row.case, criterion.statistic, value, criterion.relation, criterion.threshold)
                lines.append((*case, row.verdict, row.seconds))
        columns = ("paper", "setting", "seed", "statistic", "value", "relation", "threshold", "verdict", "seconds")
        return pd.DataFrame(lines, columns=list(columns))


def _is_current(row: PaperRow) -> bool:
    """Whether a row has a value for each criterion of today; others were measured for another pass rule."""
    return len(row.values) in (0, len(catalogue()[row.paper].criteria))


def save_row(folder: Path, row: PaperRow, log: str) -> PaperRow:
    """Write the raw log of a row, and add the row to those in the folder; returns the row with its log.

    Nothing that was recorded before is changed.

    Raises:
        StoreError: where the folder cannot be written.
    """
    digest = hashlib.sha256(log.encode()).hexdigest()
    name = f"{LOGS}/{row.paper}-{row.setting}-seed{row.seed}-{digest[:10]}.jsonl"
    kept = PaperRow(**{**vars(row), "log": name, "sha256": digest})
    try:
        (folder / LOGS).mkdir(parents=True, exist_ok=True)
        place(folder / name, log.encode())
        append_json(folder / ROWS, asdict(kept))
    except OSError as error:
        raise StoreError(
            expected=f"to write {folder}", found=error.strerror or "an error", remedy="choose another folder"
        ) from None
    return kept


def load_papers(folder: str | os.PathLike[str]) -> PaperResults:
    """The latest rows of a folder; none where no paper was run. Raises `StoreError` for rows that cannot be read."""
    path = Path(folder) / ROWS
    if not path.exists():
        return PaperResults(())
    try:
        return PaperResults.of([PaperRow(**fields) for fields in read_json_lines(path)])
    except (OSError, ValueError, TypeError):
        raise StoreError(
            expected=f"the rows of papers in {path}",
            found="some that cannot be read",
            remedy="move the file away, and type equipoise gallery run --papers",
        ) from None
