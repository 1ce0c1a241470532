"""Results of a gallery: a tidy table, the curves of its pictures, and both in a folder."""

import json
import math
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from equipoise.errors import StoreError
from equipoise.gallery.experiment import Experiment, Measurement
from equipoise.store import finite, place

Row: TypeAlias = dict[str, Any]  # the columns, and the curve

COLUMNS = ("claim", "data", "seed", "statistic", "relation", "threshold", "verdict", "seconds", "premise", "remark")
POINTS = 100  # of a curve; more are not seen
FILE = "gallery.json"


def row(claim: Experiment, data: str, seed: int, measurement: Measurement, seconds: float) -> Row:
    """One line of the table, and the curve that belongs to it, thinned."""
    verdict = claim.verdict(measurement)
    fields = (claim.name, data, seed, measurement.statistic, claim.relation, claim.threshold, verdict, seconds)
    curve = [[float(x), float(y)] for x, y in thinned(list(measurement.curve))]
    return dict(zip(COLUMNS, (*fields, measurement.premise, measurement.remark), strict=True)) | {"curve": curve}


@dataclass(frozen=True)
class Results:
    """The rows of a gallery: claim × data set × seed, with statistic, threshold, verdict and seconds.

    `verdict` is holds, fails, or no premise, for a run to which the claim does not apply (`premise` says why).
    `seconds` are those of measuring, with the training of networks that no claim before had asked for.
    """

    rows: list[Row]
    seconds: float

    @property
    def table(self) -> pd.DataFrame:
        """One tidy DataFrame, a row for each claim, data set and seed; `holds` is its verdict as a truth value."""
        table = pd.DataFrame([{name: row[name] for name in COLUMNS} for row in self.rows], columns=list(COLUMNS))
        return table.assign(holds=table["verdict"] == "holds")

    @property
    def shares(self) -> pd.DataFrame:
        """Claims × data sets: runs in which the claim holds, runs to which it applies, and all runs."""
        counted = self.table.assign(applies=self.table["verdict"] != "no premise", runs=1)
        by = counted.groupby(["claim", "data"], sort=False, as_index=False)
        return by.agg(holds=("holds", "sum"), applies=("applies", "sum"), runs=("runs", "sum"))

    @property
    def failed(self) -> list[str]:
        """The claims that fail in some run."""
        return list(dict.fromkeys(row["claim"] for row in self.rows if row["verdict"] == "fails"))

    def worst(self, claim: str) -> float | None:
        """The statistic nearest failing, over the runs to which a claim applies; None where there are none."""
        rows = [row for row in self.rows if row["claim"] == claim and row["verdict"] != "no premise"]
        return worst(rows)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `gallery.json` and `gallery.csv`; results of other settings that are there already are kept."""
        folder = Path(folder)
        measured = {_setting(row) for row in self.rows}
        known = load(folder).rows if (folder / FILE).exists() else []
        kept = [row for row in known if _setting(row) not in measured]
        whole = Results([*kept, *self.rows], self.seconds)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(finite({"seconds": self.seconds, "rows": whole.rows}), indent=1)
            place(folder / FILE, text.encode())
            place(folder / "gallery.csv", whole.table.to_csv(index=False).encode())
        except OSError as error:
            raise StoreError(
                expected=f"to write {folder}", found=error.strerror or "an error", remedy="choose another folder"
            ) from None
        return folder / FILE


def load(folder: str | os.PathLike[str]) -> Results:
    """The results that `save` wrote. Raises `StoreError` where there are none."""
    path = Path(folder) / FILE
    try:
        saved = json.loads(path.read_text())
        rows = [
            {**row, "statistic": math.nan if row["statistic"] is None else row["statistic"]} for row in saved["rows"]
        ]
        return Results(rows, saved["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(
            expected=f"the results of a gallery in {path}",
            found="none that can be read",
            remedy="type equipoise gallery run --all",
        ) from None


def worst(rows: list[Row]) -> float | None:
    """The statistic nearest failing of runs of one claim, a NaN the worst of all; None of no runs."""
    values = [row["statistic"] for row in rows]
    if not values or any(map(math.isnan, values)):
        return math.nan if values else None
    return (max if rows[0]["relation"] == "≤" else min)(values)


def share(counts: Mapping[Hashable, Any]) -> str:
    """Of a row of `shares`: in how many of the runs to which it applies a claim holds.

    >>> share({"holds": 4, "applies": 4, "runs": 5})
    '4 of 4 (1 without premise)'
    """
    without = counts["runs"] - counts["applies"]
    return f"{counts['holds']} of {counts['applies']}" + (f" ({without} without premise)" if without else "")


def _setting(row: Row) -> tuple[str, str, int]:
    return row["claim"], row["data"], row["seed"]


def thinned(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` of the points of a curve, evenly chosen, the first and the last among them."""
    if len(curve) <= POINTS:
        return curve
    return [curve[round(k * (len(curve) - 1) / (POINTS - 1))] for k in range(POINTS)]
