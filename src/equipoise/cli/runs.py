"""`equipoise certify`, `report` and `compare`: the theorems that hold for a finished run, and pages of what was run."""

import json as json_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import equipoise as eq
from equipoise.cli.app import Fields, Json, Open, Quiet, line, require_writable, say, show_page
from equipoise.errors import InputError
from equipoise.stages import show_progress, stage


def certify(
    folder: Path,
    *,
    recheck: Annotated[Path | None, Parameter(name="--recheck")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Say which theorem holds for a finished run: assumptions, bounds, measurements.

    Exit code 1 says that the certificate does not hold.

    Args:
        folder: folder of a finished run.
        recheck: file of a certificate that certify --json printed: it is made again from the run alone, and compared.
    """
    given = None if recheck is None else eq.Certificate.from_json(_stored(recheck))
    with show_progress(quiet=quiet):
        run = eq.Run.load(folder)
        found = eq.certify(run) if given is None else given.recheck(run)
    if isinstance(found, eq.Certificate):
        fields = found.to_json()
    else:
        fields = {"holds": found.holds, "differences": list(found.differences)}
    say(line(fields) if json else str(found))
    return 0 if found.holds else 1


def _stored(path: Path) -> Fields:
    """The certificate in a file: alone, or within the summary that `equipoise flow --json` prints."""
    try:
        fields = json_module.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            expected=f"a certificate in {path}",
            found=str(error).splitlines()[0],
            remedy="type equipoise certify DIR --json > certificate.json",
        ) from None
    return fields.get("certificate", fields) if isinstance(fields, dict) else {}


def report(
    folder: Path,
    *,
    page: Path | None = None,
    open_page: Open = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Write the self-contained page of a run, or of a watched training, finished or not.

    Args:
        folder: folder of a run, or of a watched training.
        page: file of the page (default: report.html in the folder).
    """
    require_writable(page, "--page")
    with show_progress(quiet=quiet):
        certificate = _certificate(folder)
        with stage("drawing the page"):
            where = eq.report(folder, page or folder / "report.html", certificate=certificate)
    return show_page(where, as_json=json, in_browser=open_page)


def _certificate(folder: Path) -> "eq.Certificate | None":
    """Of a finished run whose network its folder can rebuild; of others there is none."""
    try:
        found = eq.load(folder)
    except InputError:
        return None
    return eq.certify(found) if isinstance(found, eq.Run) else None


def compare(
    *folders: Path,
    page: Path = Path("comparison.html"),
    open_page: Open = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Lay runs, or watched trainings, over each other on one page.

    With --json the last value of every quantity is printed, too.

    Args:
        folders: two or more folders, all of runs or all of watched trainings.
        page: file of the page.
    """
    if len(folders) < 2:
        raise InputError(
            expected="two folders or more", found=str(len(folders)), remedy="type equipoise compare DIR DIR"
        )
    require_writable(page, "--page")
    with show_progress(quiet=quiet), stage("reading the folders") as current:
        found = eq.compare(*folders)
        current.update(description="drawing the page")
        where = found.report(page)
    if json:
        say(line({"page": str(where), "rows": found.table().to_dict("records")}))
        return 0
    return show_page(where, as_json=False, in_browser=open_page)
