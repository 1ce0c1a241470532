"""`eq.analyze`: the spectral table of a model or of a checkpoint on disk, one tensor at a time."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import pandas as pd

from equipoise.arguments import checked
from equipoise.checkpoint.chains import Pairs, aligned, chain_pairs
from equipoise.checkpoint.effective.adapters import merge
from equipoise.checkpoint.matrices import WeightMatrix
from equipoise.checkpoint.readers.limits import guarded
from equipoise.checkpoint.readers.opening import open_checkpoint
from equipoise.checkpoint.row_plan import RowPlan, matrices, survey
from equipoise.checkpoint.selection import Names, name_filter, type_filter
from equipoise.checkpoint.spectra.gaussian_null import random_cosine
from equipoise.checkpoint.spectra.measures import Row, Settings
from equipoise.checkpoint.table import Columns, side_by_side
from equipoise.checkpoint.workers import rows_of
from equipoise.errors import InputError
from equipoise.graph.capture import Inputs
from equipoise.modes import default_modes

METHODS = ("auto", "gram", "svd", "fast")
Progress: TypeAlias = Callable[[str, int, int], None]  # name of a tensor that is done, numbers done, numbers in all


@checked
@default_modes()
def analyze(
    source: object,
    other: object = None,
    *,
    names: Names | None = None,
    types: str | Sequence[str] | None = None,
    method: str = "auto",
    r: int = 5,
    tolerance: float | None = None,
    heavy_tail: bool = True,
    split: bool = True,
    adapter: str | os.PathLike[str] | None = None,
    chain: Sequence[str] | None = None,
    example_inputs: Inputs | None = None,
    callback: Progress | None = None,
) -> pd.DataFrame:
    """The spectrum of every matrix and convolution kernel, and a reason for every tensor that has none.

    A row is a weight as it is used: reparametrised and pruned weights are put together, quantised ones dequantised, and
    `note` says so. Files are mapped, never executed; one tensor is in memory at a time. Half precision is computed in
    float64 from its exact values.

    Args:
        source: a model, a state dict, or a path: safetensors (a file, an index of shards, a Hugging Face folder),
            `torch.save` (read as by `weights_only=True`) or ONNX.
        other: a second one, for a table of both side by side, with `distance = ‖B - A‖_F/‖A‖_F`.
        names: keeps rows by globs, `re:` expressions or names as the table prints them.
        types: keeps rows by type.
        method: "gram" (float64 Gram matrix; σ_i right to `n eps σ_1²/σ_i`, at worst the column `accuracy` times σ_1),
            "svd" (float64 SVD), "auto" (gram; svd for float64), "fast" (Krylov and Lanczos where both sides are above
            1024, with `*_low` and `*_high`; gram for the others).
        r: the number of leading `singular_values`.
        tolerance: of `numerical_rank`, over σ_1; `max(rows, columns) · eps` of float32 by default.
        heavy_tail: fit a power law to the largest eigenvalues.
        split: take fused tensors apart.
        adapter: a PEFT folder whose LoRA factors are merged first.
        chain: names in order, lowest first, for `alignment_next`.
        example_inputs: inputs by which the graph of a model gives the chain; without either, `Sequential`s are chains.
        callback: called after each tensor with its name, the numbers done and the numbers in all.

    Returns:
        One row a matrix or tensor: `name`, `aliases` (other names of tied weights), `type`, `shape` as (out, in,
        *taps), `dtype`, `reason` (None where it was measured), the measures of docs/theory.md §6 on the
        `out × (in·taps)` matrix, the Marchenko–Pastur `mp_edge` and the `outliers` above it, the heavy-tail fit,
        `spectrum` (all singular values), and `null_*`: the same measure of a Gaussian matrix of that shape and norm
        (mean of three). With `other`, columns `*_a` and `*_b`.

    Raises:
        InputError: for bad arguments, and for files that are damaged, malicious or no checkpoints.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> found = analyze(model)
    >>> found[["name", "shape", "numerical_rank", "reason"]]
           name   shape  numerical_rank                                         reason
    0  0.weight  (4, 6)               4                                           None
    1    0.bias    (4,)            <NA>  a vector: a spectrum needs two dimensions
    2  2.weight  (1, 4)               1                                           None
    3    2.bias    (1,)            <NA>  a vector: a spectrum needs two dimensions
    """
    settings = _settings(method, r, tolerance, heavy_tail)
    sources = [source] if other is None else [source, other]
    plans = [_planned(its, adapter, names, types, split) for its in sources]
    known = [matrices(items) for items in plans]
    pairs = [chain_pairs(its, chain, example_inputs, found) for its, found in zip(sources, known, strict=True)]
    done, total = 0, sum(item.numbers() for items in plans for item in items)
    tables = []
    for items, linked, found in zip(plans, pairs, known, strict=True):
        columns = Columns(len(items), fast=method == "fast")
        for place, row in rows_of(items, settings):
            columns.put(place, row)
            done += items[place].numbers()
            if callback is not None:
                callback(items[place].name, done, total)
        for place, row in _alignments(items, linked, found):
            columns.put(place, row)
        tables.append(columns.frame())
    return tables[0] if other is None else side_by_side(tables[0], tables[1], known[0], known[1])


def _planned(
    source: object,
    adapter: str | os.PathLike[str] | None,
    names: Names | None,
    types: str | Sequence[str] | None,
    split: bool,
) -> list[RowPlan]:
    checkpoint = open_checkpoint(source)
    if adapter is not None:
        with guarded(str(adapter)):
            checkpoint = merge(checkpoint, adapter)
    return survey(checkpoint, name_filter(names), type_filter(types), split)


def _settings(method: str, r: int, tolerance: float | None, heavy_tail: bool) -> Settings:
    if method not in METHODS or r < 1 or not (tolerance is None or 0 <= tolerance < 1):
        raise InputError(
            expected=f"a method among {', '.join(METHODS)}, r of 1 or more, and a tolerance in [0, 1)",
            found=f"method={method!r}, r={r}, tolerance={tolerance}",
            remedy="leave them out for the defaults",
        )
    return Settings(method, r, tolerance, heavy_tail)


def _alignments(items: Sequence[RowPlan], pairs: Pairs, known: Mapping[str, WeightMatrix]) -> Iterator[tuple[int, Row]]:
    """The place of each lower matrix, its alignment with the next, and that of random directions beside it."""
    places = {item.name: place for place, item in enumerate(items)} if pairs else {}
    for lower, upper in pairs:
        if lower in known and upper in known:
            found, null = aligned(known[lower], known[upper]), random_cosine(known[lower].shape[0])
            measured = {} if found is None else {"alignment_next": found.cosine, "null_alignment_next": null}
            yield places[known[lower].name], {"next": known[upper].name, **measured}
