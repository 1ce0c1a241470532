"""`equipoise report`: the page of a finished run."""

from pathlib import Path

import equipoise as eq
from equipoise.cli.app import Json, Open, app, show_page


@app.command
def report(
    folder: Path,
    *,
    page: Path | None = None,
    open_page: Open = False,
    json: Json = False,
) -> int:
    """Write the self-contained page of a finished run.

    Args:
        folder: of a finished run.
        page: where it goes (default: report.html in the folder).
        open_page: show it in the browser.
    """
    run = eq.Run.load(folder)
    where = eq.report(run, page or folder / "report.html", certificate=eq.certify(run))
    return show_page(where, as_json=json, in_browser=open_page)
