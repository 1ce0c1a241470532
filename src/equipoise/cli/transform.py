"""`equipoise balance` and `equipoise align`: the same function with other weights."""

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

import equipoise as eq
from equipoise.cli.app import Json, Quiet, cell, line, require_page, require_writable, say, say_page, shown
from equipoise.cli.factory import as_input, made_by, own_output
from equipoise.errors import StoreError, one_line
from equipoise.stages import show_progress
from equipoise.transform import Aligned, Balanced


def balance(
    *,
    module: str,
    objective: Literal["norm", "range"] = "norm",
    approximate: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    page: Path | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Find the weights of least norm that compute the same function, or weights of equal ranges.

    Exit code 1 says that some law was not brought to zero (with --objective range: that ranges still differ).

    Args:
        module: `package.module:factory`; the factory returns (model, example_inputs), as for `equipoise invariances`.
        objective: `norm` or `range`.
        approximate: also use laws that the eps of a normalisation breaks.
        out: safetensors file for the new weights.
        page: file for the page of what moved.
    """
    require_writable(out, "--out")
    require_page(page)
    subject = made_by(module)
    working = show_progress(quiet=quiet)
    with working, own_output(), as_input("a model that runs on its example inputs in float64", "run it by itself"):
        balanced = eq.balance(subject.model, subject.inputs, objective, approximate)
    if out is not None:
        _save(balanced.model, out)
    if page is not None:
        eq.report(balanced, page)
    if json:
        say(line(_fields(balanced, out) | {"page": page and str(page)}))
    else:
        _show(balanced)
        say_page(page)
    return 0 if balanced.report.balanced else 1


def _save(model: nn.Module, out: Path) -> None:
    try:
        save_model(model, str(out))
    except (OSError, SafetensorError) as error:
        raise StoreError(expected=f"to write {out}", found=one_line(error), remedy="choose another path") from None


def _fields(balanced: Balanced, out: Path | None) -> dict[str, object]:
    report = balanced.report
    return _scalars(report) | {
        "balanced": report.balanced,
        "laws": [vars(each) for each in report.laws],
        "immovable": [vars(each) for each in report.immovable],
        "weights": [vars(each) for each in report.weights],
        "vanished": [{"law": each.law, "unit": each.unit, "count": each.count} for each in report.vanished],
        "out": None if out is None else str(out),
    }


def _scalars(report: object) -> dict[str, object]:
    return {name: value for name, value in vars(report).items() if not isinstance(value, tuple)}


def _print(table: Table, report: object) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(shown(str(report)), markup=False, highlight=False)


def _show(balanced: Balanced) -> None:
    table = Table("law", "kind", "count", "before", "after", box=box.SIMPLE)
    for each in balanced.report.laws:
        table.add_row(cell(each.law), each.kind, str(each.count), *map(_short, (each.before, each.after)))
    _print(table, balanced.report)


def _short(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else str(value)


def align(
    *,
    module: str,
    reference: str,
    out: Path | None = None,
    page: Path | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Find the weights nearest to another model's that compute the same function.

    Exit code 1 says that the moves changed the outputs, and were taken back.

    Args:
        module: `package.module:factory`; the factory returns (model, example_inputs), as for `equipoise invariances`.
        reference: the same for the other model; its inputs are not used.
        out: safetensors file for the new weights.
        page: file for the page of what moved.
    """
    require_writable(out, "--out")
    require_page(page)
    subject, other = made_by(module), made_by(reference)
    working = show_progress(quiet=quiet)
    with working, own_output(), as_input("a model that runs on its example inputs in float64", "run it by itself"):
        aligned = eq.align(subject.model, other.model, subject.inputs)
    if out is not None:
        _save(aligned.model, out)
    if page is not None:
        eq.report(aligned, page)
    if json:
        say(line(_align_fields(aligned, out) | {"page": page and str(page)}))
    else:
        _show_aligned(aligned)
        say_page(page)
    return 1 if aligned.report.faults else 0


def _align_fields(aligned: Aligned, out: Path | None) -> dict[str, object]:
    report = aligned.report
    return _scalars(report) | {
        "moves": [vars(each) for each in report.moves],
        "refused": [vars(each) for each in report.refused],
        "weights": [vars(each) for each in report.weights],
        "out": None if out is None else str(out),
    }


def _show_aligned(aligned: Aligned) -> None:
    table = Table("interface", "kind", "units", "moved", box=box.SIMPLE)
    for each in aligned.report.moves:
        table.add_row(cell(each.name), each.kind, str(each.size), str(each.moved))
    _print(table, aligned.report)
