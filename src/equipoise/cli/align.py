"""`equipoise align`: the weights nearest to another model's, for the same function."""

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_model

import equipoise as eq
from equipoise.cli.app import Json, app, cell, line, say, shown
from equipoise.cli.balance import require_folder
from equipoise.cli.factory import as_input, made_by, own_output
from equipoise.transform import Aligned


@app.command
def align(*, module: str, reference: str, out: Path | None = None, json: Json = False) -> int:
    """Find the weights nearest to another model's that compute the same function.

    Exit code 1 says that the moves changed the outputs, and were taken back.

    Args:
        module: `package.module:factory`; the factory returns (model, example_inputs), as for `equipoise invariances`.
        reference: the same for the other model; its inputs are not used.
        out: a safetensors file for the new weights.
    """
    require_folder(out)
    subject, other = made_by(module), made_by(reference)
    with own_output(), as_input("a model that runs on its example inputs in float64", "run it by itself"):
        aligned = eq.align(subject.model, other.model, subject.inputs)
    if out is not None:
        save_model(aligned.model, str(out))
    if json:
        say(line(_fields(aligned, out)))
    else:
        _show(aligned)
    return 1 if aligned.report.faults else 0


def _fields(aligned: Aligned, out: Path | None) -> dict[str, object]:
    report = aligned.report
    scalars = {name: value for name, value in vars(report).items() if not isinstance(value, tuple)}
    return scalars | {
        "moves": [vars(each) for each in report.moves],
        "refused": [vars(each) for each in report.refused],
        "out": None if out is None else str(out),
    }


def _show(aligned: Aligned) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("interface", "kind", "units", "moved", box=box.SIMPLE)
    for each in aligned.report.moves:
        table.add_row(cell(each.name), each.kind, str(each.size), str(each.moved))
    console.print(table)
    console.print(shown(str(aligned.report)), markup=False, highlight=False)
