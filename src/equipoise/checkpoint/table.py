"""Rows as data frames: one checkpoint, or two side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from equipoise.checkpoint.matrices import WeightMatrix
from equipoise.checkpoint.spectra.measures import NULLED, Row

KEYS = ["name", "aliases", "type", "shape", "dtype", "reason", "note"]
RANGED = ["spectral_norm", "nuclear_norm", "stable_rank", "effective_rank", "participation_ratio", "rank_one_residual"]
MEASURES = [
    "frobenius_norm",
    "spectral_norm",
    "nuclear_norm",
    "stable_rank",
    "effective_rank",
    "participation_ratio",
    "numerical_rank",
    "rank_tolerance",
    "rank_one_residual",
    "singular_values",
    "next",
    "alignment_next",
    "mp_edge",
    "outliers",
    "heavy_tail_exponent",
    "heavy_tail_error",
    "heavy_tail_distance",
]
NULLS = [f"null_{name}" for name in ("spectral_norm", *NULLED, "alignment_next")]
LAST = ["method", "accuracy", "spectrum"]
_TEXTS = frozenset({"singular_values", "next", "method", "spectrum", *KEYS})
_WHOLE = ("numerical_rank", "outliers")  # numbers that have no decimals, and may be missing


class Columns:
    """The values of rows by column, as they come: a million rows take the room of their values and no more.

    The columns are always the same, with the ranges of `RANGED` in fast mode.
    """

    def __init__(self, count: int, fast: bool = False):
        ranges = [f"{name}_{end}" for name in RANGED for end in ("low", "high")] if fast else []
        names = [*KEYS, *MEASURES, *ranges, *NULLS, *LAST]
        self._columns = {
            name: np.full(count, None, object) if name in _TEXTS else np.full(count, np.nan) for name in names
        }

    def put(self, place: int, row: Row) -> None:
        """The values of a row; what it does not have is missing."""
        for name, value in row.items():
            if value is not None:
                self._columns[name][place] = value

    def frame(self) -> pd.DataFrame:
        """One row a matrix or tensor."""
        columns = {
            name: pd.Series(values, dtype=object if name in _TEXTS else None, copy=False)
            for name, values in self._columns.items()
        }
        return pd.DataFrame(columns, copy=False).astype(dict.fromkeys(_WHOLE, "Int64"))


def records(frame: pd.DataFrame) -> list[Row]:
    """The rows as plain dictionaries for JSON, without the whole spectra; what is missing is None."""
    kept = frame.loc[:, [not str(name).startswith("spectrum") for name in frame.columns]].astype(object)
    return [{str(name): _plain(value) for name, value in row.items()} for row in kept.to_dict("records")]


def _plain(value: Any) -> object:
    if isinstance(value, list | tuple):
        return list(value)
    return None if pd.isna(value) else value


def side_by_side(
    first: pd.DataFrame,
    second: pd.DataFrame,
    of_first: Mapping[str, WeightMatrix],
    of_second: Mapping[str, WeightMatrix],
) -> pd.DataFrame:
    """Both tables joined by name, in the order of the first, with `distance = ‖B - A‖_F / ‖A‖_F` where shapes agree."""
    joined = first.merge(second, on="name", how="outer", suffixes=("_a", "_b"), sort=False, indicator=True)
    order = {name: place for place, name in enumerate(dict.fromkeys([*first["name"], *second["name"]]))}
    joined = joined.sort_values("name", key=lambda names: names.map(order), ignore_index=True)
    for side, lost in (("_a", "right_only"), ("_b", "left_only")):
        joined.loc[joined["_merge"] == lost, f"reason{side}"] = "it is not in this checkpoint"
    measured = joined["reason_a"].isna() & joined["reason_b"].isna()
    distances = [
        _distance(of_first[name], of_second[name]) if both else float("nan")
        for name, both in zip(joined["name"], measured, strict=True)
    ]
    joined.insert(1, "distance", distances)
    return joined.drop(columns="_merge")


def _distance(first: WeightMatrix, second: WeightMatrix) -> float:
    if first.sides != second.sides:
        return float("nan")
    a, b = first.unfolded().detach(), second.unfolded().detach()
    rows = max((1 << 18) // a.shape[1], 1)
    moved = size = 0.0
    for before, after in zip(a.split(rows), b.split(rows), strict=True):
        before = before.to("cpu", torch.float64)
        moved += float(torch.linalg.vector_norm(after.to("cpu", torch.float64) - before).square())
        size += float(torch.linalg.vector_norm(before).square())
    return (moved / size) ** 0.5 if size else float("nan")
