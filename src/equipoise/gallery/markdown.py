"""Results of a gallery as Markdown: claims × data sets, and every run in which a claim does not hold."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from equipoise.errors import InputError, StoreError
from equipoise.gallery.case import DATA
from equipoise.gallery.registry import CLAIMS
from equipoise.gallery.results import Results, Row, share

BEGIN, END = "<!-- gallery table: begin -->", "<!-- gallery table: end -->"


def markdown(results: Results) -> str:
    """The table of shares, worst statistics beside thresholds, and a list of what does not hold, with its setting.

    >>> from equipoise.gallery import run
    >>> print(markdown(run("two-points", data=["separable"], seeds=[0], jobs=1)).splitlines()[0])
    | claim | theorem | separable | worst statistic | threshold |
    """
    names = [name for name in DATA if any(row["data"] == name for row in results.rows)]
    head = ["claim", "theorem", *names, "worst statistic", "threshold"]
    lines = [markdown_line(head), markdown_line(["---", "---", *["---:"] * (len(names) + 2)])]
    shares = {(row["claim"], row["data"]): share(row) for row in results.shares.to_dict("records")}
    measured = {row["claim"] for row in results.rows}
    for name, claim in CLAIMS.items():
        if name not in measured:
            continue
        found = results.worst(name)
        figures = ["–" if found is None else f"{found:.3g}", f"{claim.relation} {claim.threshold:.3g}"]
        lines.append(
            markdown_line([claim.title, claim.theorem, *(shares.get((name, data), "–") for data in names), *figures])
        )
    lines += ["", f"{len(results.rows)} measurements, {sum(row['seconds'] for row in results.rows):.0f} s of work."]
    return "\n".join([*lines, "", *_exceptions(results)])


def write_into(path: str | os.PathLike[str], results: Results) -> Path:
    """Put the table between its two marks in a Markdown file. Raises `InputError` for a file without the marks."""
    return put_between(Path(path), BEGIN, END, markdown(results))


def put_between(path: Path, begin: str, end: str, text: str) -> Path:
    """Replace what is between two marks of a file.

    Raises:
        InputError: for a file without the marks.
        StoreError: for one that cannot be read.
    """
    try:
        before = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StoreError(
            expected=f"a Markdown file at {path}", found=error.strerror or "an error", remedy="type an existing file"
        ) from None
    if begin not in before or end not in before:
        raise InputError(
            expected=f"the marks {begin} and {end} in {path}", found="not both", remedy="put them where the table goes"
        )
    block = f"{begin}\n{text}\n{end}"
    path.write_text(re.sub(f"{begin}.*{end}", lambda _: block, before, flags=re.DOTALL), encoding="utf-8")
    return path


def _exceptions(results: Results) -> list[str]:
    """One line for every run in which a claim fails, or to which it does not apply."""
    rows = sorted(results.rows, key=lambda row: list(CLAIMS).index(row["claim"]))
    return [_exception(row) for row in rows if row["verdict"] != "holds"] or ["Every claim holds in every run."]


def _exception(row: Row) -> str:
    setting = f"{CLAIMS[row['claim']].title}; {row['data']}, seed {row['seed']}"
    if row["verdict"] == "no premise":
        return f"- does not apply: {setting}: {row['premise']}."
    return f"- **fails**: {setting}: {row['statistic']:.3g}. {row['remark']}"


def markdown_line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"
