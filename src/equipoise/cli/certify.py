"""`equipoise certify`: which theorem holds for a finished run."""

import json as json_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import equipoise as eq
from equipoise.cli.app import Fields, Json, line, say
from equipoise.errors import InputError


def certify(
    folder: Path,
    *,
    recheck: Annotated[Path | None, Parameter(name="--recheck")] = None,
    json: Json = False,
) -> int:
    """Say which theorem holds for a finished run: assumptions, bounds, measurements.

    Args:
        folder: of a finished run.
        recheck: a certificate that certify --json printed: made again from the run alone, and compared.
    """
    run = eq.Run.load(folder)
    if recheck is not None:
        return _recheck(run, recheck, json)
    certificate = eq.certify(run)
    say(line(certificate.to_json()) if json else str(certificate))
    return 0 if certificate.holds else 1


def _recheck(run: "eq.Run", path: Path, as_json: bool) -> int:
    found = eq.Certificate.from_json(_stored(path)).recheck(run)
    say(line({"holds": found.holds, "differences": list(found.differences)}) if as_json else str(found))
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
