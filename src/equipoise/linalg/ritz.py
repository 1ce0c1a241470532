"""Rayleigh–Ritz of a batch of matrices: Ritz pairs, residuals and bounds from blocks of directions and their images.

Arrays as long as a matrix stay on its device; those as small as a block go to the host, in float64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from equipoise.linalg.bounds import norm_bound, rounding_of
from equipoise.linalg.norms import tiny
from equipoise.linalg.svd import LeadingTriplets

_TINY = float(np.finfo(np.float64).tiny)


class MatrixSize(NamedTuple):
    """The size of one matrix of a batch, without padding: length of images, number of directions, their length.

    `extended` by a bias: then `[W b]` is iterated beside `W`.
    """

    length: int
    block: int
    columns: int
    extended: bool

    @property
    def whole(self) -> bool:
        """Whether the directions span the whole space."""
        return self.block == self.columns


@dataclass(frozen=True)
class BatchShape:
    """The padded shape of a batch: the `moving` first matrices are those that are not `whole`.

    There is an eigenproblem for each `W`, and after those one more for each `[W b]`, with row 0.
    """

    sizes: tuple[MatrixSize, ...]

    @cached_property
    def moving(self) -> int:
        """The number of matrices whose directions do not span everything."""
        return sum(not size.whole for size in self.sizes)

    @cached_property
    def length(self) -> int:
        """The length of the longest image."""
        return max(size.length for size in self.sizes)

    @cached_property
    def rows(self) -> int:
        """The number of rows: those of all directions, and row 0."""
        return 1 + max(size.block for size in self.sizes)

    @cached_property
    def extended(self) -> Int64[np.ndarray, " _"]:
        """The numbers of the matrices with a bias."""
        return np.flatnonzero([size.extended for size in self.sizes])

    @cached_property
    def matrices(self) -> Int64[np.ndarray, " problems"]:
        """The number of the matrix of each eigenproblem."""
        return np.concatenate([np.arange(len(self.sizes)), self.extended])

    @cached_property
    def kept(self) -> np.ndarray:
        """1 for the entries of each eigenproblem that are of directions, 0 for the others."""
        real = np.arange(self.rows) <= np.array([size.block for size in self.sizes])[self.matrices, None]
        real[: len(self.sizes), 0] = False
        return (real[:, :, None] & real[:, None, :]).astype(float)

    @cached_property
    def filled(self) -> np.ndarray:
        """1 on the diagonal where there is no direction."""
        return np.eye(self.rows) * (1 - np.einsum("bii->bi", self.kept)[:, None])


class BatchSlot(NamedTuple):
    """The part of a batch's memory that belongs to one matrix."""

    directions: Float[Tensor, "rows columns"]
    images: Float[Tensor, "length rows"]
    pulled: Float[Tensor, "rows columns"] | None


@dataclass(frozen=True)
class SweptBatch:
    """A batch of matrices: their directions and the products of a sweep, in memory that lasts from sweep to sweep.

    Row 0 is the direction of the bias, zero in the space of `W`; its image is the bias, if there is one. `images` are
    `Wx` of each direction; `spread` has `Wᵀ` of each image, for matrices that move, and below them the directions.
    """

    shape: BatchShape
    images: Float[Tensor, "batch length rows"]
    spread: Float[Tensor, "batch rows_and_block columns"]

    @classmethod
    def empty(cls, shape: BatchShape, like: Tensor) -> "SweptBatch":
        """Zeros, which stay where nothing is written."""
        count, columns = len(shape.sizes), max(size.columns for size in shape.sizes)
        images = like.new_zeros(count, shape.length, shape.rows)
        return cls(shape, images, like.new_zeros(count, 2 * shape.rows, columns))

    @property
    def pulled(self) -> Float[Tensor, "moving rows columns"]:
        """`Wᵀ` of each image."""
        return self.spread[: self.shape.moving, : self.shape.rows]

    @cached_property
    def directions(self) -> Float[Tensor, "batch block columns"]:
        """The directions of this sweep."""
        return self.spread[:, self.shape.rows + 1 :]

    def slot(self, number: int) -> BatchSlot:
        """The memory of one matrix."""
        size, rows = self.shape.sizes[number], self.shape.rows
        images, spread = self.images[number, : size.length, : size.block + 1], self.spread[number, :, : size.columns]
        pulled = None if size.whole else spread[: size.block + 1]
        return BatchSlot(spread[rows : rows + size.block + 1], images, pulled)

    def turn(self, directions: Float[Tensor, "moving block columns"]) -> None:
        """Set the directions of the next sweep."""
        self.directions[: self.shape.moving] = directions


@dataclass(frozen=True)
class RitzPairs:
    """Ritz pairs of `WᵀW`, from row 1 on, `eigenvalues` `σ̂_i²` descending; row 0 is the top one of `[W b]ᵀ[W b]`.

    Without a bias it is one more of `W`'s own. `coupling_i = (WᵀW v_i - σ̂_i² v_i) / scale_i`, of norm `coupled_i`; of
    the vectors themselves only the `top` rows are formed. `bias` is the component of each along the bias, where nothing
    couples: what a Ritz pair leaves is orthogonal to the directions, and that is one. `squares` are `‖b‖²` and `‖W‖²`.
    """

    swept: SweptBatch
    squares: Float[np.ndarray, "batch 2"]
    eigenvalues: np.ndarray
    scale: np.ndarray
    coupled: np.ndarray
    bias: Float[Tensor, "batch top"]
    left: Float[Tensor, "batch top length"]
    vectors: Float[Tensor, "batch top_and_rows columns"]  # the top right vectors, and below them the coupling

    def left_of(self, number: int, first: int, rows: int | slice) -> Float[Tensor, "*rows length"]:
        """Left vectors of one matrix, counted from the first on."""
        return self.left[number, _from(first, rows), : self.swept.shape.sizes[number].length]

    def right_of(self, number: int, first: int, rows: int | slice) -> Float[Tensor, "*rows columns"]:
        """Right vectors of one `W`."""
        return self.vectors[number, _from(first, rows), : self.swept.shape.sizes[number].columns]

    def extended(self, number: int, rows: int | slice) -> Float[Tensor, "*rows columns_and_bias"]:
        """Right vectors of one `[W b]`."""
        return torch.cat([self.right_of(number, 0, rows), self.bias[number, rows, None]], dim=-1)

    @cached_property
    def finite(self) -> np.ndarray:
        """The matrices whose figures are all finite, as booleans."""
        return np.asarray(np.isfinite(self.scale + self.eigenvalues + self.coupled).all(1))


def rayleigh_ritz(swept: SweptBatch, squares: Float[np.ndarray, "batch 2"], r: int) -> RitzPairs:
    """Ritz pairs of a swept batch; `YᵀY` is summed in float64, so that `σ̂_i` keeps the digits of the images `Y`."""
    shape, x, m, top = swept.shape, swept.directions, swept.shape.moving, min(r + 1, swept.shape.rows)
    wide = swept.images.double()
    along, own = squares.T
    scale, coupled = np.zeros((2, len(own), shape.rows))
    scale[:] = np.maximum(own, tiny(x))[:, None]
    scale[:, 0] += along
    eigenvalues, turn = _turned(torch.bmm(wide.mT, wide).cpu().numpy(), shape, scale[:, 0], r)
    apart = np.zeros((len(turn), top + shape.rows, 2 * shape.rows))  # of what was pulled, and of the directions
    apart[:, :top, shape.rows :] = turn[:, :top]
    apart[:m, top:, : shape.rows] = scaled = turn[:m] / scale[:m, :, None]
    apart[:m, top:, shape.rows :] = eigenvalues[:m, :, None] * -scaled
    vectors = torch.bmm(torch.from_numpy(apart).to(x), swept.spread)
    coupled[:m] = torch.linalg.vector_norm(vectors[:m, top:], dim=-1).cpu().numpy()
    length = np.maximum(np.sqrt(eigenvalues[:, :top, None]), tiny(x))
    left = torch.bmm(torch.from_numpy(turn[:, :top] / length).to(x), swept.images.mT)
    return RitzPairs(
        swept, squares, eigenvalues, scale, coupled, torch.from_numpy(turn[:, :top, 0]).to(x), left, vectors
    )


def _turned(gram: np.ndarray, shape: BatchShape, peaks: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and, as rows, eigenvectors of the Gram matrices: those without the bias, after the top one with.

    Nothing in a Gram matrix is above its peak.
    """
    count, more = len(gram), min(r, shape.rows - 2)
    values, vectors = _descending(gram[shape.matrices] * shape.kept - shape.filled * peaks[shape.matrices, None, None])
    turn, levels = np.zeros(gram.shape), np.zeros(gram.shape[:2])
    turn[:, 1:], levels[:, 1:] = vectors[:count, :-1], values[:count, :-1]
    turn[:, 0], levels[:, 0] = vectors[:count, more], values[:count, more]
    turn[shape.extended, 0], levels[shape.extended, 0] = vectors[count:, 0], values[count:, 0]
    return levels, turn


def _descending(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, NaN where an entry is not finite, and eigenvectors as rows."""
    broken = ~np.isfinite(np.add.reduce(matrices, axis=(1, 2)))
    if broken.any():
        matrices[broken] = 0
    eigenvalues, vectors = np.linalg.eigh(matrices)
    eigenvalues = np.maximum(eigenvalues[:, ::-1], 0)
    eigenvalues[broken] = np.nan
    return eigenvalues, vectors[..., ::-1].swapaxes(1, 2)


def leading_of(found: RitzPairs, r: int) -> list[tuple[LeadingTriplets, LeadingTriplets | None]]:
    """The leading triplets of each `W` and, where it has a bias, of `[W b]`: tails by difference."""
    top = r + 1
    values, distance = np.sqrt(found.eigenvalues[:, :top]), (found.coupled * found.scale)[:, :top]
    nearest = np.minimum(distance / np.maximum(values, _TINY), np.sqrt(distance)).tolist()
    squares, peaks, upper = found.squares.tolist(), found.eigenvalues[:, :2].tolist(), _upper(found).tolist()
    reports = []
    for i, (size, sigma) in enumerate(zip(found.swept.shape.sizes, values.tolist(), strict=True)):
        (along, own), (with_bias, without), shape = squares[i], peaks[i], (size.length, size.columns)
        count, more = min(r, size.block), None
        rest = upper[i], math.sqrt(own), _tail(own - without, shape)
        vectors = partial(found.left_of, i, 1), partial(found.right_of, i, 1)
        seen = LeadingTriplets(shape, sigma[1 : count + 1], tuple(nearest[i][1 : count + 1]), *rest, *vectors)
        if size.extended:
            shape = size.length, size.columns + 1
            bound, square = math.sqrt(upper[i] ** 2 + along), own + along  # σ_1² of [W b] is at most σ_1² + ‖b‖²
            rest = bound, math.sqrt(square), _tail(square - with_bias, shape)
            vectors = partial(found.left_of, i, 0), partial(found.extended, i)
            more = LeadingTriplets(shape, sigma[:1], tuple(nearest[i][:1]), *rest, *vectors)
        reports.append((seen, more))
    return reports


def _from(first: int, rows: int | slice) -> int | slice:
    return slice(first + rows.start, first + rows.stop) if isinstance(rows, slice) else first + rows


def _tail(difference: float, shape: tuple[int, int]) -> float:
    return 0.0 if 1 in shape else max(difference, 0.0)


def _upper(found: RitzPairs) -> np.ndarray:
    """An upper bound of `σ_1` of each `W`."""
    size = max(size.length + size.columns for size in found.swept.shape.sizes)
    shares = found.eigenvalues[:, 1:] / found.scale[:, 1:]
    bound = norm_bound(shares, found.coupled[:, 1:], rounding_of(size, found.vectors.dtype))
    return np.sqrt(found.squares[:, 1]) * bound


def noise(swept: SweptBatch, generator: torch.Generator) -> Iterator[Float[Tensor, "moving 1 columns"]]:
    """Endless random directions, one a sweep for each matrix that moves; drawn for a few sweeps at once."""
    m, columns = swept.shape.moving, swept.spread.shape[2]
    inside = torch.arange(columns) < torch.tensor([[[size.columns]] for size in swept.shape.sizes[:m]])
    while True:
        yield from (torch.randn(_SWEEPS, m, 1, columns, generator=generator) * inside).to(swept.spread)


_SWEEPS = 8  # for which noise is drawn at once


def next_directions(found: RitzPairs, r: int, noise: Iterator[Tensor]) -> Float[Tensor, "moving block columns"]:
    """Directions of the next sweep: Ritz vectors, their residuals, the Ritz vectors before, and noise (LOBPCG).

    Only of the matrices that move. The Ritz vectors before are the first rows of the directions.
    """
    shape, old = found.swept.shape, found.swept.directions
    m = shape.moving
    if not m:
        return old[:0]
    rows = torch.cat([found.vectors[:m, : 2 * (r + 1)], old[:m, :r], next(noise)], dim=1)
    if not found.finite.all():
        rows = torch.where(torch.isfinite(rows).all(-1, keepdim=True), rows, 0.0)
    return torch.linalg.qr(rows.mT).Q.mT
