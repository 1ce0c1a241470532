"""`equipoise compress`: fewer weights with the same answers on the data."""

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils import _pytree as pytree

import equipoise as eq
from equipoise.cli.app import Json, Quiet, cell, line, require_page, require_writable, say, say_page, shown
from equipoise.cli.factory import as_input, made_by, own_output
from equipoise.compression import Compressed
from equipoise.compression.compressing import Data
from equipoise.compression.costs import CostKind
from equipoise.compression.data import Inputs
from equipoise.errors import InputError
from equipoise.stages import show_progress


def compress(
    *,
    module: str,
    tolerance: float = 0.0,
    holdout: float = 0.0,
    keep_predictions: bool = True,
    cost: CostKind = "parameters",
    save: Path | None = None,
    page: Path | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Take away weights that the answers on the data do not need.

    Exit code 1 says that the smaller model does not keep what was promised.

    Args:
        module: `package.module:factory`; the factory returns (model, X) or (model, X, y), y class indices or signs.
        tolerance: largest relative change of the outputs; 0 keeps them, to rounding.
        holdout: share of the examples, taken from the end, that serve only to compare the two models.
        keep_predictions: accept only what leaves every predicted class as it is.
        cost: what is made small within the tolerance: parameters, flops, or latency, which is measured.
        save: folder for model.safetensors and compression.json.
        page: file for the page of the moves and of what they keep.
    """
    require_writable(save, "--save", folder=True)
    require_page(page)
    subject = made_by(module)
    data, held = _split(subject.inputs, subject.target, holdout)
    with show_progress(quiet=quiet), own_output(), as_input("a model that runs on X in float64", "run it by itself"):
        small = eq.compress(subject.model, data, tolerance, holdout=held, keep_predictions=keep_predictions, cost=cost)
        if save is not None:
            small.save(save)
    if page is not None:
        eq.report(small, page)
    if json:
        say(line({**small.summary(), "saved": save and str(save), "page": page and str(page)}))
    else:
        _show(small)
        say_page(page)
    return 0 if small.ok else 1


def _split(inputs: Inputs, target: Tensor | None, share: float) -> tuple[Data, Data | None]:
    if not 0 <= share < 1:
        raise InputError(expected="--holdout from 0 to below 1", found=f"{share}", remedy="type --holdout 0.2")
    leaves = pytree.tree_leaves(inputs)
    count = len(leaves[0]) - round(len(leaves[0]) * share) if leaves and hasattr(leaves[0], "__len__") else 0
    if share == 0:
        return (inputs, target), None
    if count == 0:
        raise InputError(
            expected="--holdout that leaves examples to compress by",
            found=f"{share:g} of {len(leaves[0]) if leaves else 0} examples",
            remedy="type --holdout 0.2",
        )
    first, last = (
        tuple(pytree.tree_map(lambda leaf, part=part: leaf[part], (inputs, target)))
        for part in (slice(None, count), slice(count, None))
    )
    return first, last


def _show(small: Compressed) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("", "move", "layers", "before", "after", "parameters", "change", box=box.SIMPLE)
    for move in small.moves:
        sizes = (str(move.before), str(move.after), f"{move.parameters:,}", f"{move.output_change:.1e}")
        table.add_row(str(move.number), move.kind, cell(", ".join(move.layers)), *sizes)
    console.print(table)
    console.print(shown(str(small)), markup=False, highlight=False)
