"""Results of papers as Markdown: a row a paper, and every case in which a claim does not hold."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from equipoise.gallery.experiment import Criterion
from equipoise.gallery.literature.catalogue import papers
from equipoise.gallery.literature.paper import Paper
from equipoise.gallery.literature.records import PaperResults, PaperRow
from equipoise.gallery.markdown import markdown_line, put_between

BEGIN, END = "<!-- papers table: begin -->", "<!-- papers table: end -->"
_HEAD = ("paper", "statistic", "threshold", "seeds, worst first", "verdict", "seconds")


def papers_markdown(results: PaperResults, setting: str = "quick") -> str:
    """The table of the papers in one setting, and a line for each case that does not hold.

    >>> print(papers_markdown(PaperResults(())).splitlines()[0])
    | paper | statistic | threshold | seeds, worst first | verdict | seconds |
    """
    lines = [markdown_line(_HEAD), markdown_line(["---", "---", "---:", "---", "---", "---:"])]
    shown = [(paper, results.about(paper.key, setting)) for paper in papers()]
    for paper, rows in shown:
        lines += _lines(paper, rows, results, setting)
    rows = [row for _, found in shown for row in found]
    total = sum(row.seconds for row in rows)
    lines += ["", f"{len(rows)} runs of {sum(bool(found) for _, found in shown)} papers, {total:.0f} s of work."]
    return "\n".join([*lines, "", *_exceptions(shown)])


def write_papers_into(path: str | os.PathLike[str], results: PaperResults) -> Path:
    """Put the table between its two marks in a Markdown file. Raises `InputError` for a file without the marks."""
    return put_between(Path(path), BEGIN, END, papers_markdown(results))


def ordered_values(criterion: Criterion, rows: Sequence[PaperRow], place: int) -> list[float]:
    """The values of one criterion over the rows that have one, the worst first; a missing one is a NaN, the worst."""
    values = [row.values[place] for row in rows if row.values]
    numbers = [math.nan if value is None else float(value) for value in values]
    sign = -1.0 if criterion.relation == "≤" else 1.0
    return sorted(numbers, key=lambda value: -math.inf if math.isnan(value) else sign * value)


def _lines(paper: Paper, rows: Sequence[PaperRow], results: PaperResults, setting: str) -> list[str]:
    """A line for each criterion of a paper, its name, verdict and time in the first of them."""
    lines = []
    for place, criterion in enumerate(paper.criteria):
        found = ", ".join(f"{value:.3g}" for value in ordered_values(criterion, rows, place)) or "–"
        first = place == 0
        name = f"[{paper.key}]({paper.reference.url})" if first else ""
        verdict = (results.verdict(paper.key, setting) or "not run") if first else ""
        seconds = f"{results.seconds(paper.key, setting):.0f}" if first else ""
        bound = f"{criterion.relation} {criterion.threshold:.3g}"
        statistic = criterion.statistic.replace("|", r"\|")  # a bar ends a cell
        lines.append(markdown_line([name, statistic, bound, found, verdict, seconds]))
    return lines


def _exceptions(shown: Sequence[tuple[Paper, Sequence[PaperRow]]]) -> list[str]:
    """One line for every case that differs or to which the claim does not apply, and what was tried."""
    lines = []
    for paper, rows in shown:
        differing = [row for row in rows if row.verdict == "differs"]
        lines += [f"- **differs**: {paper.key}, seed {row.seed}. {row.remark}" for row in differing]
        lines += [f"- what was tried for {paper.key}: {paper.tried}"] if differing and paper.tried else []
        without = [row for row in rows if row.verdict == "no premise"]
        lines += [f"- does not apply: {paper.key}, seed {row.seed}: {row.premise}." for row in without]
    return lines or ["Every claim holds in every run."]
