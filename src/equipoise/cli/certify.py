"""`equipoise certify`: which theorem holds for a finished run."""

from pathlib import Path

import equipoise as eq
from equipoise.cli.app import Json, app, line


@app.command
def certify(folder: Path, *, json: Json = False) -> int:
    """Say which theorem holds for a finished run: assumptions, bounds, measurements.

    Parameters
    ----------
    folder: of a finished run.
    """
    certificate = eq.certify(eq.Run.load(folder))
    print(line(certificate.to_json()) if json else str(certificate))
    return 0 if certificate.holds else 1
