"""The pages of the papers: an index, and for each paper its claim, picture, figures beside the published ones, runs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from statistics import median

import pandas as pd

from equipoise.gallery.literature.catalogue import papers
from equipoise.gallery.literature.paper import Paper
from equipoise.gallery.literature.records import PaperResults, PaperRow, command_of
from equipoise.gallery.literature.table import ordered_values
from equipoise.page.render import Embeddable, embedded, library, render, require_libraries, write
from equipoise.page.words import typeset

COLOURS = [f"var(--{kind}-{place})" for place in range(5) for kind in ("linear", "relu")]
LIBRARY = "plotly.min.js"


def write_pages(results: PaperResults, folder: str | os.PathLike[str]) -> Path:
    """Write a page for each paper with results, and the index of all; returns where the index is.

    The pages share the script that draws, which is written beside them; none needs a network. Raises `InputError`
    without plotly and jinja2, and `StoreError` for a folder that cannot be written.
    """
    require_libraries()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / LIBRARY, library())
    entries = [
        {"paper": each, "verdict": results.verdict(each.key), "seconds": results.seconds(each.key)} for each in papers()
    ]
    for each in papers():
        if results.about(each.key):
            page = render("paper.html", library=LIBRARY, paper=each, settings=list(_settings(each, results)))
            write(folder / f"{each.key}.html", page)
    return write(folder / "index.html", render("papers.html", library=None, entries=entries))


def _settings(paper: Paper, results: PaperResults) -> Iterator[Mapping[str, object]]:
    """The material of each setting that was run."""
    for name in ("quick", "full"):
        rows = results.about(paper.key, name)
        if rows:
            yield {
                "name": name,
                "fields": paper.fields(full=name == "full"),
                "rows": rows,
                "verdict": results.verdict(paper.key, name),
                "seconds": results.seconds(paper.key, name),
                "criteria": list(_criteria(paper, rows)),
                "comparisons": list(_comparisons(rows)),
                "command": command_of(paper.key, name == "full"),
                "versions": ", ".join(f"{package} {version}" for package, version in rows[-1].versions.items()),
                "figure": embedded(draw(paper, rows)),
            }


def _criteria(paper: Paper, rows: Sequence[PaperRow]) -> Iterator[Mapping[str, object]]:
    """Each criterion with its values, the worst first."""
    for place, criterion in enumerate(paper.criteria):
        yield {**asdict(criterion), "values": ordered_values(criterion, rows, place)}


def _comparisons(rows: Sequence[PaperRow]) -> Iterator[Mapping[str, object]]:
    """Each figure of the paper, published and ours: the median of the seeds, and their range."""
    found = [each for row in rows for each in row.comparisons]
    names = list(dict.fromkeys(str(each["figure"]) for each in found))
    for name, group in groupby(sorted(found, key=lambda each: names.index(str(each["figure"]))), _figure):
        same = list(group)
        ours = [each["ours"] for each in same if isinstance(each["ours"], int | float)]
        middle = {"median": median(ours), "least": min(ours), "most": max(ours)} if ours else {}
        yield {"figure": name, "published": same[0]["published"], **middle}


def _figure(comparison: Mapping[str, object]) -> str:
    return str(comparison["figure"])


def draw(paper: Paper, rows: Sequence[PaperRow]) -> Embeddable:
    """The curves of all seeds, those of one name in one colour; dotted where the claim differs."""
    from equipoise.page.canvas import canvas, line, positive  # only here, because plotly is an extra

    picture = paper.picture
    figure = canvas(picture.up, picture.logarithmic, picture.across)
    named = [(str(each["name"]), each["points"], row) for row in rows for each in row.curves]
    names = list(dict.fromkeys(name for name, _, _ in named))
    seen: set[str] = set()
    for name, points, row in named:
        curve = pd.DataFrame(points, columns=["growth", "value"], dtype=float)
        dash = "dot" if row.verdict == "differs" else "solid"
        colour = COLOURS[names.index(name) % len(COLOURS)]
        line(figure, positive(curve) if picture.logarithmic else curve, name, colour, dash, 1.5, legendgroup=name)
        figure.update_traces(selector=-1, name=typeset(name))
        hover = f"seed {row.seed}: %{{y:.3g}}<extra></extra>"
        figure.update_traces(selector=-1, showlegend=name not in seen, hovertemplate=hover)
        seen.add(name)
    if picture.level is not None:
        figure.add_hline(y=picture.level, line={"color": "var(--quiet)", "dash": "dash", "width": 1})
    if picture.logarithmic_across:
        figure.update_xaxes(type="log", minorloglabels="none")
    return figure.update_layout(hovermode="closest")
