"""Rayleigh–Ritz of many matrices at once: what a block of directions and its images say of the spectrum.

What is as long as a matrix stays where it is; what is as small as a block goes to the host, in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.linalg import Triplets
from equipoise.measure.leading import Leading

_TINY = float(np.finfo(np.float64).tiny)


class Size(NamedTuple):
    """Of a matrix in a batch, without what fills it up: length of images, how many directions, their length.

    `extended` by a bias: then `[W b]` is seen beside `W`.
    """

    length: int
    block: int
    columns: int
    extended: bool

    @property
    def whole(self) -> bool:
        """Whether the directions span the whole space, which nothing leaves."""
        return self.block == self.columns


@dataclass(frozen=True)
class Swept:
    """A batch after its products with the weights. Row 0 stands for the direction of the bias, if there is one.

    `images` are `Wx` of each direction, and first the bias itself; `pulled` is `Wᵀ` of all of them. `squares` holds
    `‖b‖²` and `‖W‖²`.
    """

    sizes: tuple[Size, ...]
    directions: Float[Tensor, "batch block columns"]
    images: Float[Tensor, "batch rows length"]
    pulled: Float[Tensor, "batch rows columns"]
    squares: np.ndarray


@dataclass(frozen=True)
class Ritz:
    """Ritz pairs of `WᵀW`, from row 1 on, `eigenvalues` `σ̂_i²` descending; row 0 is the top one of `[W b]ᵀ[W b]`.

    Without a bias it is one more of `W`'s own. `coupling_i = (WᵀW v_i - σ̂_i² v_i) / scale_i`, of norm
    `distance_i / scale_i`; `last` is the component of the top vector of `[W b]` along the bias.
    """

    swept: Swept
    eigenvalues: np.ndarray
    scale: np.ndarray
    distance: np.ndarray
    turn: Tensor
    right: Tensor
    coupling: Tensor
    last: np.ndarray

    @cached_property
    def finite(self) -> np.ndarray:
        """Which of the matrices have nothing but finite figures."""
        return np.isfinite(self.scale).all(1) & np.isfinite(self.eigenvalues + self.distance).all(1)


@np.errstate(invalid="ignore", over="ignore")
def ritz(swept: Swept, r: int) -> Ritz:
    """`Yᵀ Y` is summed in float64, so that `σ̂_i` keeps the digits of `Y`."""
    wide = swept.images.double()
    gram = (wide @ wide.mT).cpu().numpy()
    eigenvalues, turn = _turned(gram, swept.sizes, r)
    x = swept.directions
    scale = np.maximum(swept.squares[:, 1:], _tiny(x)).repeat(len(turn[0]), 1)
    scale[:, 0] = np.maximum(swept.squares.sum(1), _tiny(x))
    turned, scaled, levels = (
        torch.from_numpy(part).to(x) for part in (turn, turn / scale[..., None], eigenvalues / scale)
    )
    right = turned[..., 1:] @ x
    coupling = torch.baddbmm(right * levels[..., None], scaled, swept.pulled, beta=-1)
    for part, size in zip(coupling, swept.sizes, strict=True):
        if size.whole:
            part.zero_()
    distance = torch.linalg.vector_norm(coupling, dim=-1).double().cpu().numpy() * scale
    last = turn[:, 0, 0]
    along = np.einsum("bi,bi->b", turn[:, 0], gram[:, 0]) - eigenvalues[:, 0] * last
    inner = [size.extended and not size.whole for size in swept.sizes]
    distance[inner, 0] = np.hypot(distance[inner, 0], along[inner])
    return Ritz(swept, eigenvalues, scale, distance, turned, right, coupling, last)


def _turned(gram: np.ndarray, sizes: Sequence[Size], r: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and, as rows, eigenvectors of the Gram matrices: those without the bias, after the top one with."""
    values, vectors = _descending(gram[:, 1:, 1:], [size.block for size in sizes])
    more = min(r, values.shape[1] - 1)
    levels, turn = np.column_stack([values[:, more], values]), np.zeros_like(gram)
    turn[:, 1:, 1:], turn[:, 0, 1:] = vectors, vectors[:, more]
    extended = [number for number, size in enumerate(sizes) if size.extended]
    if extended:
        values, vectors = _descending(gram[extended], [sizes[number].block + 1 for number in extended])
        levels[extended, 0], turn[extended, 0] = values[:, 0], vectors[:, 0]
    return levels, turn


def _descending(gram: np.ndarray, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, NaN where an entry is not finite, and eigenvectors as rows; last those of the rows that fill up."""
    gram, broken = gram.copy(), ~np.isfinite(gram).all((1, 2))
    gram[broken] = 0
    for matrix, count in zip(gram, counts, strict=True):
        if count < len(matrix):
            np.fill_diagonal(matrix[count:, count:], -(matrix.max() or 1.0))
    eigenvalues, vectors = np.linalg.eigh(gram)
    eigenvalues = np.maximum(eigenvalues[:, ::-1], 0)
    eigenvalues[broken] = np.nan
    return eigenvalues, vectors[..., ::-1].swapaxes(1, 2)


@np.errstate(invalid="ignore", over="ignore")
def leadings(found: Ritz, r: int) -> list[tuple[Leading, Leading | None]]:
    """What is known of each `W` and, where it has a bias, of `[W b]`: tails by difference."""
    swept, values = found.swept, np.sqrt(found.eigenvalues)
    nearest = np.minimum(found.distance / np.maximum(values, _TINY), np.sqrt(found.distance))
    upper, squares = _upper(found), swept.squares
    both = np.column_stack([np.sqrt(upper**2 + squares[:, 0]), upper])  # σ_1² of [W b] is at most σ_1² + ‖b‖²
    norms = np.column_stack([squares.sum(1), squares[:, 1]])
    told = np.stack([both, np.sqrt(norms), np.maximum(norms - found.eigenvalues[:, :2], 0)], 2).tolist()
    left = torch.nn.functional.normalize(found.turn[:, : r + 1] @ swept.images, dim=-1, eps=_tiny(swept.images))
    sigma, last = (torch.from_numpy(part).to(left) for part in (values[:, : r + 1], found.last[:, None]))
    reports = []
    each = zip(swept.sizes, left.unbind(), sigma.unbind(), found.right.unbind(), last.unbind(), strict=True)
    for (size, u, s, v, w), (along, own), near in zip(each, told, nearest[:, : r + 1].tolist(), strict=True):
        count, columns = min(r, size.block) + 1, size.columns
        triplets = Triplets(u[1:count, : size.length].mT, s[1:count], v[1:count, :columns].mT)
        seen, more = Leading(triplets, tuple(near[1:count]), *own), None
        if size.extended:
            triplets = Triplets(u[:1, : size.length].mT, s[:1], torch.cat([v[0, :columns], w])[:, None])
            more = Leading(triplets, (near[0],), *along)
        reports.append((seen, more))
    return reports


def _upper(found: Ritz) -> np.ndarray:
    """An upper bound for `σ_1` of each, rounding included; NaN where a figure is not finite.

    In a basis completed from the block `WᵀW` is `[[Λ, Rᵀ], [R, F]]`, `F ≥ 0` of trace `‖W‖_F² - tr Λ`, and no block
    matrix exceeds the matrix of its blocks' norms. Rounding is put at `4 √size · eps` after Higham & Mary (2019).
    """
    size = max(size.length + size.columns for size in found.swept.sizes)
    rounding = 4 * size**0.5 * torch.finfo(found.right.dtype).eps
    count, k = found.eigenvalues.shape
    arrow = np.zeros((count, k, k))
    diagonal = np.einsum("bii->bi", arrow)
    diagonal[:, :-1] = found.eigenvalues[:, 1:] / found.scale[:, 1:]
    diagonal[:, -1] = np.maximum(1 - diagonal.sum(1), 0) + rounding
    arrow[:, -1, :-1] = found.distance[:, 1:] / found.scale[:, 1:]  # the lower triangle is enough
    arrow[~found.finite] = 0
    largest = np.linalg.eigvalsh(arrow)[:, -1]
    largest[~found.finite] = np.nan
    return np.sqrt(found.swept.squares[:, 1]) * (np.sqrt(largest) + rounding)


def fresh(found: Ritz, r: int, generator: torch.Generator) -> Float[Tensor, "batch block columns"]:
    """The directions of the next sweep: Ritz vectors, their residuals, those before, which start every block, and noise.

    Directions that span the whole space do so for ever.
    """
    old, sizes = found.swept.directions, found.swept.sizes
    if all(size.whole for size in sizes):
        return old
    noise = torch.randn(len(old), 1, old.shape[2], generator=generator)
    for row, size in zip(noise, sizes, strict=True):
        if size.columns < row.shape[1]:
            row[:, size.columns :] = 0
    rows = torch.cat([found.right[:, : r + 1], found.coupling[:, : r + 1], old[:, : r + 1], noise.to(old)], dim=1)
    if not found.finite.all():
        rows = torch.where(torch.isfinite(rows).all(-1, keepdim=True), rows, 0.0)
    new = torch.linalg.qr(rows.mT).Q.mT.contiguous()
    for number, size in enumerate(sizes):
        if size.whole:
            new[number] = old[number]
    return new


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
