"""`equipoise balance`: the weights of least norm, or of equal ranges, for the same function."""

import math
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_model

import equipoise as eq
from equipoise.cli.app import Json, app, cell, line, say, shown
from equipoise.cli.factory import as_input, made_by, own_output
from equipoise.errors import InputError
from equipoise.transform import Balanced


@app.command
def balance(
    *,
    module: str,
    objective: str = "norm",
    approximate: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    json: Json = False,
) -> int:
    """Find the weights of least norm that compute the same function, or weights of equal ranges.

    Exit code 1 says that some law was not brought to zero (with --objective range: that ranges still differ).

    Args:
        module: `package.module:factory`; the factory returns (model, example_inputs), as for `equipoise invariances`.
        objective: `norm` or `range`.
        approximate: use laws that the eps of a normalisation breaks, too.
        out: a safetensors file for the new weights.
    """
    require_folder(out)
    subject = made_by(module)
    with own_output(), as_input("a model that runs on its example inputs in float64", "run it by itself"):
        balanced = eq.balance(subject.model, subject.inputs, objective, approximate)  # pyright: ignore[reportArgumentType]
    if out is not None:
        save_model(balanced.model, str(out))
    if json:
        say(line(_fields(balanced, out)))
    else:
        _show(balanced)
    return 0 if balanced.report.balanced else 1


def require_folder(out: Path | None) -> None:
    """Refuse a file to be written in a folder that does not exist, before anything is computed."""
    if out is not None and not out.parent.is_dir():
        raise InputError(
            expected=f"a folder {out.parent} that exists", found="none", remedy=f"type mkdir -p {out.parent}"
        )


def _fields(balanced: Balanced, out: Path | None) -> dict[str, object]:
    report = balanced.report
    scalars = {name: value for name, value in vars(report).items() if not isinstance(value, tuple)}
    return scalars | {
        "balanced": report.balanced,
        "laws": [vars(each) for each in report.laws],
        "immovable": [vars(each) for each in report.immovable],
        "vanished": [{"law": each.law, "unit": each.unit, "count": each.count} for each in report.vanished],
        "out": None if out is None else str(out),
    }


def _show(balanced: Balanced) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("law", "kind", "count", "before", "after", box=box.SIMPLE)
    for each in balanced.report.laws:
        table.add_row(cell(each.law), each.kind, str(each.count), *map(_short, (each.before, each.after)))
    console.print(table)
    console.print(shown(str(balanced.report)), markup=False, highlight=False)


def _short(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else str(value)
