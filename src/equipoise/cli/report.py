"""`equipoise report`: the page of a finished run."""

import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import equipoise as eq
from equipoise.cli.app import Json, app, line


@app.command
def report(
    folder: Path,
    *,
    page: Path | None = None,
    open_page: Annotated[bool, Parameter(name="--open", negative="")] = False,
    json: Json = False,
) -> int:
    """Write the self-contained page of a finished run.

    Parameters
    ----------
    folder: of a finished run.
    page: where it goes (default: report.html in the folder).
    open_page: show it in the browser.
    """
    run = eq.Run.load(folder)
    where = eq.report(run, page or folder / "report.html", certificate=eq.certify(run))
    print(line({"page": str(where)}) if json else f"The page: {where.resolve().as_uri()}")
    if open_page:
        webbrowser.open(where.resolve().as_uri())
    return 0
