"""`equipoise gallery`: the paper's claims, measured, and those of the papers around it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from equipoise import gallery as rooms
from equipoise.cli.app import Fields, Json, Open, Quiet, Whole, cell, integers, line, refuse_ignored, say, show_page
from equipoise.errors import InputError
from equipoise.gallery import literature
from equipoise.gallery.literature.catalogue import catalogue
from equipoise.gallery.literature.table import ordered_values
from equipoise.gallery.results import FILE, share
from equipoise.stages import show_progress, stage

gallery = App(name="gallery", help="The paper's claims and those of the papers around it, each measured.")
FOLDER = Path("gallery")


@gallery.command(name="list")
def list_claims(*, json: Json = False) -> int:
    """List the claims."""
    listed = [{"name": claim.name, "title": claim.title, "theorem": claim.theorem} for claim in rooms.claims()]
    say(line({"claims": listed}) if json else "\n".join(f"{one['name']:18} {one['title']}" for one in listed))
    return 0


@gallery.command(name="papers")
def list_papers(folder: Path = FOLDER, *, json: Json = False) -> int:
    """List the papers, with the verdicts of the last runs.

    Args:
        folder: folder that equipoise gallery run wrote.
    """
    results = literature.load_papers(folder)
    listed = [
        {
            "key": paper.key,
            "title": paper.reference.title,
            "claim": paper.claim,
            "full": paper.full is not None,
            "verdict": results.verdict(paper.key),
            "seconds": results.seconds(paper.key),
        }
        for paper in literature.papers()
    ]
    say(line({"papers": listed}) if json else "\n".join(map(_listed, listed)))
    return 0


def _listed(paper: Fields) -> str:
    return f"{paper['key']:24} {paper['verdict'] or 'not run':10} {paper['title']}"


@gallery.command
def run(
    *names: str,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    papers: Annotated[bool, Parameter(negative="")] = False,
    full: Annotated[bool, Parameter(negative="")] = False,
    data: str | None = None,
    seeds: str | None = None,
    jobs: Whole = 2,
    backend: str = "loky",
    minutes: float | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    out: Path = FOLDER,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure claims, or run papers; exit 1 when a claim fails in some run, or a paper differs.

    Args:
        names: names of claims or papers, which equipoise gallery list and equipoise gallery papers show.
        every: measure all claims.
        papers: run all papers.
        full: run papers in the setting of the paper itself.
        data: data sets to measure claims on, as in mnist,digits (default: those of the claim).
        seeds: seeds, as in 0,1,2 (default: those of the claim or of the paper).
        jobs: number of processes side by side.
        backend: where they run: loky for processes here (the default), ray or dask for a cluster.
        minutes: time limit of each training of a paper.
        resume: leave out what the folder has results of.
        out: folder for the results; those of other claims, papers and seeds in it are kept.
    """
    keys = [name for name in names if name in catalogue()]
    claims = [name for name in names if name not in keys]
    _require_choice(names, every, papers)
    if not (keys or papers):
        refuse_ignored("claims", {"--full": full, "--minutes": minutes is not None})
    if not (claims or every):
        refuse_ignored("papers", {"--data": data is not None})
    chosen = integers("--seeds", seeds, "0,1,2") if seeds else None
    cases = _Cases(chosen, jobs, backend, resume, out)
    parts: list[_Part] = []
    if claims or every:
        parts.append(_printed(_run_claims(claims, data.split(",") if data else None, cases, quiet), json))
    if keys or papers:
        parts.append(_printed(_run_papers(keys, full, minutes, cases, quiet), json))
    if json:
        say(line({name: value for part in parts for name, value in part.fields.items()}))
    return 1 if any(part.failed for part in parts) else 0


@dataclass(frozen=True)
class _Cases:
    """Options that claims and papers share."""

    seeds: list[int] | None
    jobs: int
    backend: str
    resume: bool
    out: Path


@dataclass(frozen=True)
class _Part:
    """Results of the claims, or of the papers."""

    fields: Fields
    failed: bool
    table: Table


def _printed(part: _Part, json: bool) -> _Part:
    """The part, its table printed unless JSON was asked for."""
    if not json:
        Console().print(part.table)
    return part


def _run_claims(names: Sequence[str], data: Sequence[str] | None, cases: _Cases, quiet: bool) -> _Part:
    with _progress_of_cases(quiet, "claims") as callback:
        results = rooms.run(*names, data=data, callback=callback, **vars(cases))
    return _Part(_fields(results, cases.out), bool(results.failed), _shown(results))


def _run_papers(keys: Sequence[str], full: bool, minutes: float | None, cases: _Cases, quiet: bool) -> _Part:
    with _progress_of_cases(quiet, "papers") as callback:
        found = literature.run_papers(*keys, full=full, minutes=minutes, callback=callback, **vars(cases))
    return _Part(_paper_fields(found, cases.out), bool(found.differing), _shown_papers(found))


def _require_choice(names: Sequence[str], every: bool, papers: bool) -> None:
    """Refuse no names without --all or --papers, and names with them."""
    if not names and not every and not papers:
        raise InputError(
            expected="names of claims or papers, --all or --papers",
            found="neither",
            remedy="type equipoise gallery list, or equipoise gallery papers, to see the names",
        )
    if names and (every or papers):
        raise InputError(
            expected="names of claims or papers, or --all, or --papers",
            found="both",
            remedy="type equipoise gallery run --all",
        )


@gallery.command
def report(
    folder: Path = FOLDER,
    *,
    page: Path | None = None,
    open_page: Open = False,
    json: Json = False,
) -> int:
    """Write the pages of the gallery: of the claims, and of each paper, with pictures, figures, verdicts and sources.

    Args:
        folder: folder that equipoise gallery run wrote.
        page: file of the page of the claims (default: gallery.html in the folder); those of papers are in papers/.
    """
    found = literature.load_papers(folder)
    index = literature.write_pages(found, folder / "papers") if found.rows else None
    if index is not None and not (folder / FILE).exists():
        return show_page(index, as_json=json, in_browser=open_page)
    where = rooms.exhibit(rooms.load(folder), page or folder / "gallery.html")
    if index is not None and not json:
        say(f"The papers: {index.resolve().as_uri()}")
    return show_page(where, as_json=json, in_browser=open_page)


@gallery.command
def table(folder: Path = FOLDER, *, into: Path | None = None, papers: bool = False, json: Json = False) -> int:
    """Print claims × data sets as Markdown, with every run in which a claim does not hold; or put it into a file.

    Args:
        folder: folder that equipoise gallery run wrote.
        into: Markdown file in which the text between the marks of the table is replaced.
        papers: print the table of the papers in place of that of the claims.
    """
    if papers:
        found = literature.load_papers(folder)
        written = literature.write_papers_into(into, found) if into else None
        text = literature.papers_markdown(found)
    else:
        results = rooms.load(folder)
        written = rooms.write_into(into, results) if into else None
        text = rooms.markdown(results)
    if json:
        say(line({"into": None if written is None else str(written), "markdown": text}))
    else:
        say(f"The table is in {written}" if written else text)
    return 0


def _fields(results: rooms.Results, out: Path) -> Fields:
    """As JSON: every claim with its shares by data set, and the rows that do not hold."""
    shares: dict[str, Fields] = {}
    for row in results.shares.to_dict("records"):
        counts = {name: int(row[name]) for name in ("holds", "applies", "runs")}
        shares.setdefault(row["claim"], {})[row["data"]] = counts
    table = results.table
    others = table.loc[
        table["verdict"] != "holds", ["claim", "data", "seed", "statistic", "verdict", "premise", "remark"]
    ]
    return {
        "claims": shares,
        "failed": results.failed,
        "not_holding": others.to_dict("records"),
        "runs": len(results.rows),
        "seconds": results.seconds,
        "folder": str(out),
    }


def _shown(results: rooms.Results) -> Table:
    """Claims × data sets, with the shares of runs in which they hold."""
    shares = results.shares
    names = list(dict.fromkeys(shares["data"]))
    table = Table(
        "claim", *map(cell, names), box=box.SIMPLE, caption=f"{len(results.rows)} runs, {results.seconds:.0f} s"
    )
    for claim, group in shares.groupby("claim", sort=False):
        found = {row["data"]: share(row) for row in group.to_dict("records")}
        table.add_row(cell(claim), *(found.get(name, "–") for name in names))
    return table


def _paper_fields(results: literature.PaperResults, out: Path) -> Fields:
    """As JSON: the verdict of every paper, and its rows without their curves."""
    rows = [{name: value for name, value in vars(row).items() if name != "curves"} for row in results.rows]
    keys = dict.fromkeys(row.paper for row in results.rows)
    return {
        "papers": {key: results.verdict(key) for key in keys},
        "differing": results.differing,
        "paper_rows": rows,
        "folder": str(out),
    }


def _shown_papers(results: literature.PaperResults) -> Table:
    """Each criterion of each paper, with the values of its cases."""
    table = Table("paper", "statistic", "threshold", "seeds, worst first", "verdict", box=box.SIMPLE)
    for key in dict.fromkeys(row.paper for row in results.rows):
        rows = results.about(key)
        for place, criterion in enumerate(catalogue()[key].criteria):
            values = ", ".join(f"{value:.3g}" for value in ordered_values(criterion, rows, place)) or "–"
            bound = f"{criterion.relation} {criterion.threshold:.3g}"
            first = (cell(key), cell(results.verdict(key))) if place == 0 else ("", "")
            table.add_row(first[0], cell(criterion.statistic), bound, values, first[1])
        for row in rows:
            if row.remark or row.premise:
                table.add_row("", cell(f"seed {row.seed}: {row.premise or row.remark}"))
    table.caption = f"{len(results.rows)} runs, {sum(row.seconds for row in results.rows):.0f} s of work"
    return table


@contextmanager
def _progress_of_cases(quiet: bool, what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback of the gallery that says on the progress line how many cases are done."""
    with show_progress(quiet=quiet), stage(f"cases of {what}") as current:
        yield lambda done, everything: current.update(done, total=everything)
