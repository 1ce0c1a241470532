"""`equipoise gallery`: the paper's claims, measured."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from equipoise import gallery as rooms
from equipoise.cli.app import Fields, Json, Open, Quiet, app, cell, integers, line, say, show_page, stderr
from equipoise.errors import InputError
from equipoise.gallery.results import share

gallery = App(name="gallery", help="The paper's claims, each measured on several data sets and seeds.")
app.command(gallery)
FOLDER = Path("gallery")


@gallery.command(name="list")
def list_claims(*, json: Json = False) -> int:
    """List the claims."""
    listed = [{"name": claim.name, "title": claim.title, "theorem": claim.theorem} for claim in rooms.claims()]
    say(line({"claims": listed}) if json else "\n".join(f"{one['name']:18} {one['title']}" for one in listed))
    return 0


@gallery.command
def run(
    *names: str,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    data: str | None = None,
    seeds: str | None = None,
    jobs: int = 2,
    out: Path = FOLDER,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure claims, and say in which share of the runs each holds; exit 1 when one fails in some run.

    Args:
        names: of claims; equipoise gallery list shows them.
        every: measure all claims.
        data: data sets, as in mnist,digits (default: those of the claim).
        seeds: as in 0,1,2 (default: those of the claim).
        jobs: processes side by side.
        out: folder for gallery.json and gallery.csv; results of other claims, data and seeds in it are kept.
        json: one JSON object as the last line of standard output.
    """
    if bool(names) == every:
        raise InputError(
            expected="names of claims, or --all",
            found="both" if names else "neither",
            remedy="type equipoise gallery list to see the names",
        )
    with _Bar(quiet or not stderr.is_terminal) as bar:
        results = rooms.run(
            *names,
            data=data.split(",") if data else None,
            seeds=integers("--seeds", seeds) if seeds else None,
            jobs=jobs,
            out=out,
            callback=bar,
        )
    say(line(_fields(results, out))) if json else Console().print(_shown(results))
    return 1 if results.failed else 0


@gallery.command
def report(
    folder: Path = FOLDER,
    *,
    page: Path | None = None,
    open_page: Open = False,
    json: Json = False,
) -> int:
    """Write the page of the gallery: each claim with its picture, number, threshold, verdict and sources.

    Args:
        folder: that equipoise gallery run wrote.
        page: where it goes (default: gallery.html in the folder).
        open_page: show it in the browser.
    """
    where = rooms.exhibit(rooms.load(folder), page or folder / "gallery.html")
    return show_page(where, as_json=json, in_browser=open_page)


@gallery.command
def table(folder: Path = FOLDER, *, into: Path | None = None, json: Json = False) -> int:
    """Print claims × data sets as Markdown, with every run in which a claim does not hold; or put it into a file.

    Args:
        folder: that equipoise gallery run wrote.
        into: a Markdown file with the marks of the table, whose text between them is replaced.
    """
    results = rooms.load(folder)
    written = rooms.write_into(into, results) if into else None
    if json:
        say(line({"into": None if written is None else str(written), "markdown": rooms.markdown(results)}))
    else:
        say(f"The table is in {written}" if written else rooms.markdown(results))
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


class _Bar:
    """Progress on standard error: cases done."""

    def __init__(self, quiet: bool):
        columns = (TextColumn("cases"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=stderr, disable=quiet, transient=True)
        self.task = self.progress.add_task("cases", total=None)

    def __enter__(self) -> "_Bar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, done: int, everything: int) -> None:
        """Say how far it is."""
        self.progress.update(self.task, completed=done, total=everything)
