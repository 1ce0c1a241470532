"""The page of the gallery: each claim with its picture, numbers, threshold, verdict and sources."""

import os
from pathlib import Path

import pandas as pd

from equipoise.gallery.case import DATA
from equipoise.gallery.experiment import Experiment
from equipoise.gallery.registry import CLAIMS
from equipoise.gallery.results import Results, Row, worst
from equipoise.page.render import Embeddable, embedded, render, require_libraries, write

COLOURS = dict(zip(DATA, ("var(--linear-0)", "var(--relu-0)", "var(--linear-3)", "var(--relu-3)"), strict=True))


def exhibit(results: Results, path: str | os.PathLike[str] = "gallery.html") -> Path:
    """Write the page; returns where it is. One file, with all its scripts, that needs no network.

    Raises `InputError` without plotly and jinja2, and `StoreError` for a path that cannot be written.
    """
    require_libraries()
    by_claim = {name: [row for row in results.rows if row["claim"] == name] for name in CLAIMS}
    ran = [name for name in DATA if any(row["data"] == name for row in results.rows)]
    page = render(
        "gallery.html",
        sections=[_section(CLAIMS[name], rows, ran) for name, rows in by_claim.items() if rows],
        unmeasured=[CLAIMS[name].title for name, rows in by_claim.items() if not rows],
        data=ran,
        seeds=sorted({row["seed"] for row in results.rows}),
        count=len(results.rows),
        seconds=results.seconds,
    )
    return write(Path(path), page)


def _section(claim: Experiment, rows: list[Row], data: list[str]) -> dict[str, object]:
    verdicts = [row["verdict"] for row in rows]
    return {
        "claim": claim,
        "shares": {name: _share([row for row in rows if row["data"] == name]) for name in data},
        "verdict": "fails in some runs" if "fails" in verdicts else "holds" if "holds" in verdicts else "no premise",
        "rows": rows,
        "figure": embedded(draw(claim, rows)),
    }


def _share(rows: list[Row]) -> dict[str, int | float | None] | None:
    """Of one claim on one data set: in how many of the runs it speaks of it holds, and the worst statistic."""
    applies = [row for row in rows if row["verdict"] != "no premise"]
    if not rows:
        return None
    holds = sum(row["verdict"] == "holds" for row in applies)
    return {"holds": holds, "applies": len(applies), "runs": len(rows), "worst": worst(applies)}


def draw(claim: Experiment, rows: list[Row]) -> Embeddable:
    """A curve for every run, in the colour of its data set; dashed where the claim fails in it."""
    from equipoise.page.canvas import canvas, line, positive  # only here, because plotly is an extra

    picture = claim.picture
    figure = canvas(picture.up, picture.logarithmic, picture.across)
    seen: set[str] = set()
    for row in rows:
        curve = pd.DataFrame(row["curve"], columns=["growth", "value"], dtype=float)
        if curve.empty:
            continue
        drawn = positive(curve) if picture.logarithmic else curve
        name, dash = row["data"], "dot" if row["verdict"] == "fails" else "solid"
        line(figure, drawn, f"{name}", COLOURS[name], dash, width=1.5, legendgroup=name)
        figure.update_traces(selector=-1, showlegend=name not in seen, hovertemplate=_hover(row))
        seen.add(name)
    if picture.level is not None:
        figure.add_hline(y=picture.level, line={"color": "var(--quiet)", "dash": "dash", "width": 1})
    return figure.update_layout(hovermode="closest")


def _hover(row: Row) -> str:
    return f"{row['data']}, seed {row['seed']}: %{{y:.3g}}<extra></extra>"
