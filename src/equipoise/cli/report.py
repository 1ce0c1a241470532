"""`equipoise report` and `equipoise compare`: the page of a run or a watched training, or of several."""

from pathlib import Path

import equipoise as eq
from equipoise.cli.app import Json, Open, line, require_writable, say, show_page
from equipoise.errors import InputError


def report(
    folder: Path,
    *,
    page: Path | None = None,
    open_page: Open = False,
    json: Json = False,
) -> int:
    """Write the self-contained page of a run, or of a watched training, finished or not.

    Args:
        folder: of a run, or of a watched training.
        page: where it goes (default: report.html in the folder).
        open_page: show it in the browser.
    """
    require_writable(page, "--page")
    where = eq.report(folder, page or folder / "report.html", certificate=_certificate(folder))
    return show_page(where, as_json=json, in_browser=open_page)


def _certificate(folder: Path) -> "eq.Certificate | None":
    """Of a finished run whose network its folder can rebuild; of others there is none."""
    try:
        found = eq.load(folder)
    except InputError:
        return None
    return eq.certify(found) if isinstance(found, eq.Run) else None


def compare(*folders: Path, page: Path = Path("comparison.html"), open_page: Open = False, json: Json = False) -> int:
    """Lay runs, or watched trainings, over each other on one page.

    Args:
        folders: of two or more, all of one kind.
        page: where the page goes.
        open_page: show it in the browser.
        json: one JSON object as the last line of standard output, with the last value of every quantity.
    """
    require_writable(page, "--page")
    found = eq.compare(*folders)
    where = found.report(page)
    if json:
        say(line({"page": str(where), "rows": found.table().to_dict("records")}))
        return 0
    return show_page(where, as_json=False, in_browser=open_page)
