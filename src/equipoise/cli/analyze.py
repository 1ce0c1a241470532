"""`equipoise analyze`: the spectra of a checkpoint, or of two side by side."""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import pandas as pd
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from torch import nn

import equipoise as eq
from equipoise.checkpoint import Row, aligned_checkpoints, records
from equipoise.cli.app import Json, Quiet, Whole, cell, line, refuse_ignored, require_writable, say, shown
from equipoise.cli.factory import made_by, own_output
from equipoise.errors import InputError, StoreError
from equipoise.page.checkpoint import checkpoint_page
from equipoise.page.render import require_libraries
from equipoise.page.words import plain
from equipoise.stages import show_progress, stage
from equipoise.transform import Aligned, AlignReport

_COLUMNS = {  # what the terminal has room for
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "numerical_rank": "rank",
    "rank_one_residual": "1 − σ₁²/‖W‖²",
    "alignment_next": "alignment",
    "outliers": "outliers",
    "heavy_tail_exponent": "α",
}
_NO_SPECTRUM = "other"


def analyze(
    source: Path,
    other: Path | None = None,
    *,
    names: Annotated[list[str] | None, Parameter(consume_multiple=False, negative="")] = None,
    types: str | None = None,
    method: str = "auto",
    fast: Annotated[bool, Parameter(negative="")] = False,
    r: Whole = 5,
    tolerance: float | None = None,
    adapter: Path | None = None,
    chain: str | None = None,
    split: bool = True,
    heavy_tail: bool = True,
    parquet: Path | None = None,
    html: Path | None = None,
    align: Annotated[bool, Parameter(negative="")] = False,
    module: str | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure every matrix of a checkpoint: ranks, norms, outliers, tails, each beside a random matrix's.

    Args:
        source: a safetensors, torch.save or ONNX file, an index of shards, or a folder with one of them.
        other: a second checkpoint, side by side with the first.
        names: keep rows of this name: a glob, or re: and a regular expression; may be repeated.
        types: keep rows of these types (linear,conv2d, …).
        method: gram, svd, fast, or auto (gram; svd for float64).
        fast: the same as --method fast (randomised, with error bars).
        r: number of singular values to list.
        tolerance: tolerance of the numerical rank, relative to the largest singular value.
        adapter: folder of a LoRA adapter to merge first.
        chain: names of consecutive layers, lowest first, separated by commas, for the alignment between them.
        split: take fused tensors (in_proj_weight, LSTM gates) apart.
        heavy_tail: fit the tail exponent.
        parquet: Parquet file for the table with all spectra.
        html: file for the page with all spectra.
        align: compare the two up to the symmetries of their model: neurons, channels and heads of the second are
            exchanged and turned until they are nearest to those of the first.
        module: `package.module:factory` for --align; the factory returns (model, example_inputs).
    """
    refuse_ignored("--fast", {f"--method {method}": fast and method not in ("auto", "fast")})
    _require_outputs(parquet, html)
    first, second, moved = source, other, None
    if align:
        first, moved = _aligned(source, other, module, adapter, quiet)
        second = moved.model
    else:
        refuse_ignored("a comparison without --align", {"--module": module is not None})
    with show_progress(quiet=quiet), stage("reading the checkpoint") as current:
        table = eq.analyze(
            first,
            second,
            names=names or None,
            types=types.split(",") if types else None,
            method="fast" if fast else method,
            r=r,
            tolerance=tolerance,
            adapter=adapter,
            chain=chain.split(",") if chain else None,
            split=split,
            heavy_tail=heavy_tail,
            callback=lambda name, done, total: current.update(done, total=total, description=name),
        )
    sources = {"source": str(source), "other": str(other) if other else None}
    if parquet is not None:
        _write_parquet(table, parquet)
    if html is not None:
        checkpoint_page(table, html, label=str(source), other=sources["other"])
    if json:
        aligned = {} if moved is None else {"aligned": _summary(moved.report)}
        say(line({**sources, **aligned, "rows": records(table)}))
        return 0
    _show(table, two=other is not None)
    if moved is not None:
        say(f"up to symmetry: {moved.report}")
    return 0


def _require_outputs(parquet: Path | None, html: Path | None) -> None:
    """Refuse files that could not be written, before the work."""
    for path, option in ((parquet, "--parquet"), (html, "--html")):
        require_writable(path, option)
    if parquet is not None and find_spec("pyarrow") is None:
        raise InputError(
            expected="pyarrow, which writes Parquet",
            found="it is not installed",
            remedy="pip install 'equipoise[parquet]'",
        )
    if html is not None:
        require_libraries()


def _aligned(
    source: Path, other: Path | None, module: str | None, adapter: Path | None, quiet: bool
) -> tuple[nn.Module, Aligned]:
    """The first checkpoint as a model, and the second aligned with it."""
    refuse_ignored("--align", {"--adapter": adapter is not None})
    if other is None:
        raise InputError(
            expected="two checkpoints with --align", found="one", remedy="type equipoise analyze A B --align …"
        )
    if module is None:
        raise InputError(
            expected="the model with --align: a checkpoint holds weights and no graph",
            found="no --module",
            remedy="type --module package.module:factory, whose factory returns (model, example_inputs)",
        )
    subject = made_by(module)
    with show_progress(quiet=quiet), own_output():
        return aligned_checkpoints(subject.model, subject.inputs, source, other)


def _summary(report: AlignReport) -> dict[str, object]:
    kept: dict[str, object] = {name: value for name, value in vars(report).items() if isinstance(value, float | int)}
    return kept | {"moves": [vars(each) for each in report.moves]}


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    try:
        table.to_parquet(path)
    except OSError as error:
        raise StoreError(
            expected=f"to write {path}", found=error.strerror or str(error), remedy="choose another path"
        ) from None


def _show(table: pd.DataFrame, two: bool) -> None:
    """The table, each figure with the random matrix's in brackets, and what has no row in it."""
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file has no width
    sides = ("_a", "_b") if two else ("",)
    rows = records(table)
    measured = [row for row in rows if any(row[f"type{side}"] not in (None, _NO_SPECTRUM) for side in sides)]
    if measured:
        console.print(_rendered(measured, sides))
    if measured and not two:
        console.print("[dim]in brackets: a random matrix of the same shape and norm[/dim]")
    for side in sides:
        rest = Counter(row[f"reason{side}"] for row in rows if row[f"type{side}"] == _NO_SPECTRUM)
        for reason, count in rest.items():
            console.print(shown(f"{count} without a spectrum: {reason}"), markup=False)


def _rendered(rows: list[Row], sides: tuple[str, ...]) -> Table:
    shown = [name for name in _COLUMNS if any(row[f"{name}{side}"] is not None for row in rows for side in sides)]
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    drawn.add_column("name", overflow="fold")
    drawn.add_column("shape", no_wrap=True)
    for name in shown:
        drawn.add_column(_COLUMNS[name], justify="right", no_wrap=True)
    if len(sides) > 1:
        drawn.add_column("‖B − A‖/‖A‖", justify="right")
    for row in rows:
        drawn.add_row(*_cells(row, shown, sides))
    return drawn


def _cells(row: Row, shown: list[str], sides: tuple[str, ...]) -> list[str]:
    shapes = dict.fromkeys("×".join(map(str, row[f"shape{side}"])) for side in sides if row[f"shape{side}"])
    reasons = dict.fromkeys(str(row[f"reason{side}"]) for side in sides if row[f"reason{side}"])
    name = cell(row["name"]) + "".join(f"\n[red]{cell(reason)}[/red]" for reason in reasons)
    figures = [" → ".join(_figure(row.get(f"{name}{side}")) for side in sides) for name in shown]
    if len(sides) == 1:
        nulls = [row.get(f"null_{name}") for name in shown]
        figures = [
            said if null is None else f"{said} [dim]({_figure(null)})[/dim]"
            for said, null in zip(figures, nulls, strict=True)
        ]
    else:
        figures.append(_figure(row["distance"]))
    return [name, " → ".join(shapes), *figures]


def _figure(value: int | float | None) -> str:
    """Three digits are enough for the eye."""
    if value is None:
        return "—"
    return plain(float(f"{value:.3g}")) if isinstance(value, float) else plain(int(value))
