"""The page of an analysed checkpoint: its spectra, its measures by depth, and the whole table."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from equipoise.checkpoint import Row, records
from equipoise.errors import visible
from equipoise.page.render import embedded, render, require_libraries, write
from equipoise.page.words import plain

COLUMNS = (
    ("stable_rank", "stable rank"),
    ("effective_rank", "effective rank"),
    ("participation_ratio", "participation"),
    ("numerical_rank", "numerical rank"),
    ("rank_one_residual", "1 − σ₁²/‖W‖²"),
    ("spectral_norm", "σ₁"),
    ("alignment_next", "alignment with next"),
    ("outliers", "outliers"),
    ("heavy_tail_exponent", "α"),
)
_BY_DEPTH = (
    ("stable_rank", "Stable rank", "‖W‖²/σ₁²: how many directions carry the norm."),
    ("outliers", "Singular values above the bulk", "More than a random matrix of that shape and norm would have."),
    ("effective_rank", "Effective rank", "exp of the entropy of σ/Σσ."),
    (
        "heavy_tail_exponent",
        "Tail exponent α",
        "Of a power law fitted to the largest σ²: a fit, whether or not it is one.",
    ),
)


def checkpoint_page(
    table: pd.DataFrame, path: str | os.PathLike[str] = "spectra.html", *, label: str = "", other: str | None = None
) -> Path:
    """Write the page of a table that `eq.analyze` gave, for one checkpoint or for two; returns where it is.

    One file with all its scripts and no network, as `eq.report` writes. Raises `InputError` without plotly and jinja2,
    and `StoreError` for a path that cannot be written.
    """
    require_libraries()
    sides = ("_a", "_b") if "reason_a" in table.columns else ("",)
    tables = [_side(table, side) for side in sides]
    return write(Path(path), _page(table, tables, visible(label), other and visible(other)))


def _side(table: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """The rows that one checkpoint has, with its columns under their own names."""
    if not suffix:
        return table
    kept = ["name", *(name for name in table.columns if name.endswith(suffix))]
    there = table.loc[table[f"type{suffix}"].notna(), kept]
    return there.rename(columns=lambda name: str(name).removesuffix(suffix))


def _page(table: pd.DataFrame, tables: list[pd.DataFrame], label: str, other: str | None) -> str:
    # only here, because plotly is an extra
    from equipoise.page.spectra import FAMILIES, depth_figure, families, spectra_figure

    found = families(tables)
    largest = sorted(found, key=lambda family: len(family.members), reverse=True)[:FAMILIES]
    shown = [family for family in found if family in largest]
    drawn = [(family, spectra_figure(family)) for family in shown]
    columns = [(name, title) for name, title in COLUMNS if any(table[name].notna().any() for table in tables)]
    by_depth = [(name, title, said, depth_figure(found, name, title)) for name, title, said in _BY_DEPTH]
    return render(
        "checkpoint.html",
        label=label,
        other=other,
        headline=_headline(table, tables),
        depth=[(f"depth-{name}", title, said, embedded(plot)) for name, title, said, plot in by_depth if plot],
        spectra=[
            (
                family.identity,
                family.name.replace(".weight", ""),
                _caption([member.rows for member in family.members]),
                embedded(plot),
            )
            for family, plot in drawn
            if plot is not None
        ],
        missing=[family.name for family in found if family not in shown],
        columns=[title for _, title in columns],
        rows=_rows(tables, [name for name, _ in columns]),
        distances=dict(zip(table["name"], table["distance"], strict=True)) if other else None,
        without=_without(tables),
    )


def _caption(members: Sequence[Sequence[Mapping[Any, Any] | None]]) -> str:
    """Number and shapes of the matrices of a family, each given by its rows."""
    shapes = Counter(row["shape"] for rows in members for row in rows if row is not None)
    several = f"{len(members)} matrices of " if len(members) > 1 else ""
    return several + " and ".join("×".join(map(str, shape)) for shape in shapes)


def _headline(table: pd.DataFrame, tables: list[pd.DataFrame]) -> list[tuple[str, str, str]]:
    """Of each checkpoint, the figures of two joined by an arrow; and of two how far they are apart."""
    measured = [[row for row in records(each) if row["stable_rank"] is not None] for each in tables]
    if not all(measured):
        return []
    numbers = [sum(prod(row["shape"]) for row in rows) for rows in measured]
    shares = [{row["name"]: 100 * row["stable_rank"] / row["null_stable_rank"] for row in rows} for rows in measured]
    ranks = [median(row["stable_rank"] for row in rows) for rows in measured]
    found = [
        ("matrices", _arrow(map(len, measured)), f"{_arrow(map(float, numbers))} numbers in them"),
        ("stable rank", _arrow(float(f"{rank:.3g}") for rank in ranks), "of the median matrix"),
        (
            "share of random",
            _arrow((median(each.values()) for each in shares), "{:.0f}%"),
            "stable rank over that of a random matrix of the same shape, the median",
        ),
        (
            "outliers",
            _arrow(sum(row["outliers"] or 0 for row in rows) for rows in measured),
            "singular values above the bulk of noise",
        ),
    ]
    if len(tables) > 1:
        return [*found, *_apart(table)]
    lowest = min(shares[0], key=shares[0].__getitem__)
    return [
        *found,
        ("least share", f"{shares[0][lowest]:.1f}%", f"of a random matrix's stable rank, in {_short(lowest)}"),
        ("without a spectrum", plain(len(table) - len(measured[0])), "tensors, with the reason below the table"),
    ]


def _apart(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """How far two checkpoints are apart: in the median, and where it is most."""
    distances = {
        str(name): float(far) for name, far in zip(table["name"], table["distance"], strict=True) if far == far
    }
    if not distances:
        return [("distance", "—", "no matrix of one name and shape in both")]
    most = max(distances, key=distances.__getitem__)
    return [
        ("distance", f"{median(distances.values()):.2g}", "‖B − A‖/‖A‖ of the median matrix"),
        ("changed most", f"{distances[most]:.2g}", _short(most)),
    ]


def _arrow(values: Iterable[float], form: str = "") -> str:
    """One value, or two with an arrow between; once where they are the same."""
    return " → ".join(dict.fromkeys(form.format(value) if form else plain(value) for value in values))


def _short(name: str) -> str:
    return name.removesuffix(".weight")


def _rows(tables: list[pd.DataFrame], columns: list[str]) -> list[dict[str, object]]:
    """Each tensor with a spectrum, or with a matrix that could not be measured."""
    rows: dict[str, tuple[Row, list[dict[str, object]]]] = {}
    for table in tables:
        for row in records(table):
            if row["type"] in (None, "other"):
                continue
            _, sides = rows.setdefault(str(row["name"]), (row, []))
            cells = [(_figure(row[name]), _figure(row.get(f"null_{name}"))) for name in columns]
            sides.append({"reason": row["reason"], "cells": cells})
    return [
        {"name": name, "shape": "×".join(map(str, row["shape"])), "row": row, "sides": sides}
        for name, (row, sides) in rows.items()
    ]


def _figure(value: int | float | None) -> str:
    if value is None:
        return ""
    return plain(float(f"{value:.4g}")) if isinstance(value, float) else plain(int(value))


def _without(tables: list[pd.DataFrame]) -> list[tuple[str, int]]:
    rows = [row for table in tables for row in records(table)]
    return list(Counter(row["reason"] for row in rows if row["type"] == "other").items())
