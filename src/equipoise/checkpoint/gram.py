"""All singular values of a matrix that is only mapped, from its Gram matrix in float64, a few rows at a time."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise import linalg
from equipoise.checkpoint.fortran import add_gram, eigenvalues_in_place, put_products
from equipoise.checkpoint.spare import borrowed
from equipoise.checkpoint.streamed import Streamed

_DEFLATE = 1e-6  # below this, a residual is computed from the deflated matrix itself


def squared_norm(matrix: Streamed) -> float:
    """`‖W‖_F²` in float64; NaN or infinite exactly where an entry of a matrix in float32 or less is."""
    return sum(float(torch.linalg.vector_norm(chunk).square()) for chunk in matrix.chunks())


def gram_singular_values(matrix: Streamed) -> Float[Tensor, " k"] | None:
    """All `min(rows, columns)` singular values in float64, descending, as roots of the eigenvalues of `WᵀW` or `WWᵀ`.

    For entries in float32 or less: `WᵀW` in float64 loses nothing that float32 held. The eigenvalues are right to about
    `n · eps · σ_1²`, so `σ_i` to `n · eps · σ_1²/σ_i`, never worse than `√(n · eps) · σ_1` (`n` the smaller side). For
    768 that is 4e-7 for the very smallest and 1e-13 at the top, where a float32 SVD is right to 1e-7 throughout.
    Memory: the Gram matrix, in the place of which it is decomposed, and a chunk. None where an entry is NaN or
    infinite: the trace then is, and only then.
    """
    side = min(matrix.shape)
    with borrowed(side**2) as place:
        gram = place.view(side, side).zero_()
        (_add_strips if matrix.across else _add_chunks)(matrix, gram)
        trace = float(gram.trace())
        if not math.isfinite(trace):
            return None
        squares = eigenvalues_in_place(gram) if trace else np.zeros(side)
    return torch.from_numpy(np.sqrt(np.clip(squares[::-1], 0, None)))


def _add_chunks(matrix: Streamed, gram: Tensor) -> None:
    """The smaller one of `WᵀW` and `WWᵀ`: its lower triangle."""
    begun = False
    for chunk in matrix.chunks():
        begun = begun or bool(chunk.any())  # products of zeros take as long as any
        if begun:
            add_gram(chunk if matrix.by_rows else chunk.T, gram)


def _add_strips(matrix: Streamed, gram: Tensor) -> None:
    """The same, each strip with those before it: chunks would lie on every page of the file."""
    start = 0
    for strip in matrix.strips():
        stop, low = start + len(strip), 0
        for earlier in matrix.strips(stop) if strip.any() else ():
            put_products(strip, earlier, gram[start:stop, low : low + len(earlier)])
            low += len(earlier)
        start = stop


def accuracy(matrix: Streamed) -> float:
    """`√(n · eps)`: the most by which any of `gram_singular_values` is off, over `σ_1`."""
    return math.sqrt(min(matrix.shape) * torch.finfo(torch.float64).eps)


def rank_one_residual(matrix: Streamed, values: Tensor) -> float:
    """`Σ_{i>1} σ_i² / Σσ_i²`: the sum over the tail or, where that is under the rounding of `WᵀW`, by deflation.

    With so wide a gap three power steps find the leading triplet to rounding.
    """
    total = float(values.square().sum())
    tail = float(values[1:].square().sum())
    if total == 0 or tail > _DEFLATE * total:
        return tail / total if total else 0.0
    return _deflated(matrix) / total


def _deflated(matrix: Streamed) -> float:
    right = _heaviest_row(matrix)
    left, value = right[:0], right[0]
    for _ in range(3):
        left = torch.cat([rows @ right for rows in matrix.rows()])
        left /= torch.linalg.vector_norm(left)
        right = _pulled(matrix, left)
        value = torch.linalg.vector_norm(right)
        right /= value
    parts = zip(matrix.rows(), left.split(matrix.height), strict=True)
    return sum(float(linalg.deflated_residual(rows, u[:, None], value[None], right[:, None])) for rows, u in parts)


def _heaviest_row(matrix: Streamed) -> Tensor:
    norms = torch.cat([torch.linalg.vector_norm(rows, dim=1) for rows in matrix.rows()])
    return matrix.read(1 / len(norms))[int(norms.argmax())].to("cpu", torch.float64)


def _pulled(matrix: Streamed, left: Tensor) -> Tensor:
    """`Wᵀu`."""
    pulled = left.new_zeros(matrix.shape[1])
    for rows, part in zip(matrix.rows(), left.split(matrix.height), strict=True):
        pulled += rows.T @ part
    return pulled
