"""All singular values of a matrix that is only mapped, from its Gram matrix in float64, a few rows at a time."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise import linalg
from equipoise.checkpoint.spectra.blas import add_gram, eigenvalues_in_place, put_products
from equipoise.checkpoint.spectra.matrix_stream import MatrixStream
from equipoise.checkpoint.spectra.workspace import workspace

_DEFLATE = 1e-6  # below this, a residual is computed from the deflated matrix itself


def squared_norm(matrix: MatrixStream) -> float:
    """`‖W‖_F²` in float64; NaN or infinite exactly where an entry of a matrix in float32 or less is."""
    return sum(float(torch.linalg.vector_norm(chunk).square()) for chunk in matrix.chunks())


def gram_singular_values(matrix: MatrixStream) -> Float[Tensor, " k"] | None:
    """All `min(rows, columns)` singular values in float64, descending, as roots of the eigenvalues of `WᵀW` or `WWᵀ`.

    For entries in float32 or less: `WᵀW` in float64 loses nothing that float32 held. The eigenvalues are right to about
    `n · eps · σ_1²`, so `σ_i` to `n · eps · σ_1²/σ_i`, never worse than `√(n · eps) · σ_1` (`n` the smaller side). For
    768 that is 4e-7 for the very smallest and 1e-13 at the top, where a float32 SVD is right to 1e-7 throughout.
    Memory: the Gram matrix, in the place of which it is decomposed, and a chunk. None where an entry is NaN or
    infinite: the trace then is, and only then.
    """
    side = min(matrix.shape)
    with workspace(side**2) as place:
        gram = place.view(side, side).zero_()
        (_add_strips if matrix.across else _add_chunks)(matrix, gram)
        trace = float(gram.trace())
        if not math.isfinite(trace):
            return None
        squares = eigenvalues_in_place(gram) if trace else np.zeros(side)
    return torch.from_numpy(np.sqrt(np.clip(squares[::-1], 0, None)))


def _add_chunks(matrix: MatrixStream, gram: Tensor) -> None:
    """The smaller one of `WᵀW` and `WWᵀ`: its lower triangle."""
    begun = False
    for chunk in matrix.chunks():
        begun = begun or bool(chunk.any())  # products of zeros take as long as any
        if begun:
            add_gram(chunk if matrix.by_rows else chunk.T, gram)


def _add_strips(matrix: MatrixStream, gram: Tensor) -> None:
    """The same, each strip with those before it: chunks would lie on every page of the file."""
    start = 0
    for strip in matrix.strips():
        stop, low = start + len(strip), 0
        for earlier in matrix.strips(stop) if strip.any() else ():
            put_products(strip, earlier, gram[start:stop, low : low + len(earlier)])
            low += len(earlier)
        start = stop


def accuracy(matrix: MatrixStream) -> float:
    """`√(n · eps)`: the most by which any of `gram_singular_values` is off, over `σ_1`."""
    return math.sqrt(min(matrix.shape) * torch.finfo(torch.float64).eps)


def rank_one_residual(matrix: MatrixStream, values: Tensor) -> float:
    """`Σ_{i>1} σ_i² / Σσ_i²`: the sum over the tail or, where that is under the rounding of `WᵀW`, by deflation.

    With so wide a gap three power steps find the leading triplet to rounding.
    """
    if len(values) == 1:
        return 0.0
    squares = values.square()
    total, tail = float(squares.sum()), float(squares[1:].sum())
    if total == 0 or tail > _DEFLATE * total:
        return tail / total if total else 0.0
    return _deflated(matrix) / total


def _deflated(matrix: MatrixStream) -> float:
    """`‖W - σ_1 u v^T‖_F²` after three power steps from the heaviest row."""
    blocks = matrix.row_blocks()
    norms = torch.cat([torch.linalg.vector_norm(rows, dim=1) for rows in blocks()])
    right = matrix.read(1 / len(norms))[int(norms.argmax())].to("cpu", torch.float64)
    left, value = right[:0], right[0]
    for _ in range(3):
        left = torch.cat([rows @ right for rows in blocks()])
        left /= torch.linalg.vector_norm(left)
        right = _transposed_product(blocks(), left.split(matrix.height), matrix.shape[1])
        value = torch.linalg.vector_norm(right)
        right /= value
    parts = zip(blocks(), left.split(matrix.height), strict=True)
    return sum(float(linalg.deflated_residual(rows, u[:, None], value[None], right[:, None])) for rows, u in parts)


def _transposed_product(blocks: Iterable[Tensor], left: Sequence[Tensor], columns: int) -> Float[Tensor, " columns"]:
    """`Wᵀu` from blocks of rows and the parts of `u` that belong to them."""
    product = torch.zeros(columns, dtype=torch.float64)
    for rows, part in zip(blocks, left, strict=True):
        product += rows.T @ part
    return product
