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
    """A batch after its products with the weights; the `moving` first ones are those that are not `whole`.

    Row 0 stands for the direction of the bias, if there is one: `images` are `Wx` of each direction, and first the bias
    itself; `pulled` is `Wᵀ` of all of them, for those that move. `squares` holds `‖b‖²` and `‖W‖²`.
    """

    sizes: tuple[Size, ...]
    moving: int
    directions: Float[Tensor, "batch block columns"]
    images: Float[Tensor, "batch rows length"]
    pulled: Float[Tensor, "moving rows columns"]
    squares: np.ndarray


@dataclass(frozen=True)
class Ritz:
    """Ritz pairs of `WᵀW`, from row 1 on, `eigenvalues` `σ̂_i²` descending; row 0 is the top one of `[W b]ᵀ[W b]`.

    Without a bias it is one more of `W`'s own. `coupling_i = (WᵀW v_i - σ̂_i² v_i) / scale_i`, of norm
    `distance_i / scale_i`; `last` is the component of the top vector of `[W b]` along the bias, where nothing couples:
    what a Ritz pair leaves is orthogonal to the directions, and that is one.
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
        return np.asarray(np.isfinite(self.scale + self.eigenvalues + self.distance).all(1))


@np.errstate(invalid="ignore", over="ignore")
def ritz(swept: Swept, r: int) -> Ritz:
    """`Yᵀ Y` is summed in float64, so that `σ̂_i` keeps the digits of `Y`."""
    x, m = swept.directions, swept.moving
    wide = swept.images.double()
    gram = (wide @ wide.mT).cpu().numpy()
    eigenvalues, turn = _turned(gram, swept.sizes, r)
    scale = np.maximum(swept.squares[:, 1:], _tiny(x)).repeat(len(turn[0]), 1)
    scale[:, 0] = np.maximum(swept.squares.sum(1), _tiny(x))
    turned = torch.from_numpy(turn).to(x)
    right = turned[..., 1:] @ x
    scaled, levels = (
        torch.from_numpy(part / scale[:m, :, None]).to(x) for part in (turn[:m], eigenvalues[:m, :, None])
    )
    coupling = torch.baddbmm(right[:m] * levels, scaled, swept.pulled, beta=-1)
    distance, last = np.zeros_like(scale), turn[:, 0, 0]
    distance[:m] = torch.linalg.vector_norm(coupling, dim=-1).cpu().numpy() * scale[:m]
    return Ritz(swept, eigenvalues, scale, distance, turned, right, coupling, last)


def _turned(gram: np.ndarray, sizes: Sequence[Size], r: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and, as rows, eigenvectors of the Gram matrices: those without the bias, after the top one with."""
    extended = [number for number, size in enumerate(sizes) if size.extended]
    real = np.arange(gram.shape[1]) <= np.array([size.block for size in sizes])[:, None]
    both, real = np.concatenate([gram, gram[extended]]), np.concatenate([real, real[extended]])
    own = slice(len(gram))
    both[own, 0], both[own, :, 0], real[own, 0] = 0, 0, False
    values, vectors = _descending(both, real)
    turn, levels, more = np.empty_like(gram), np.empty(gram.shape[:2]), min(r, gram.shape[1] - 2)
    turn[:, 1:], levels[:, 1:] = vectors[own, :-1], values[own, :-1]
    turn[:, 0], levels[:, 0] = vectors[own, more], values[own, more]
    turn[extended, 0], levels[extended, 0] = vectors[len(gram) :, 0], values[len(gram) :, 0]
    return levels, turn


def _descending(gram: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, NaN where an entry is not finite, and eigenvectors as rows; last those of rows that are not real."""
    broken = ~np.isfinite(gram).all((1, 2))
    gram[broken] = 0
    peak = gram.max((1, 2))
    np.einsum("bii->bi", gram)[~real] = np.broadcast_to(-np.where(peak > 0, peak, 1)[:, None], real.shape)[~real]
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
    """Those for the next sweep: Ritz vectors, their residuals, the vectors before, which start every block, and noise.

    Directions that span the whole space do so for ever.
    """
    swept, old, m = found.swept, found.swept.directions, found.swept.moving
    if not m:
        return old
    noise = torch.randn(m, 1, old.shape[2], generator=generator).to(old)
    for row, size in zip(noise, swept.sizes, strict=False):
        if size.columns < row.shape[1]:
            row[:, size.columns :] = 0
    top = slice(r + 1)
    rows = torch.cat([found.right[:m, top], found.coupling[:, top], old[:m, top], noise], dim=1)
    if not found.finite.all():
        rows = torch.where(torch.isfinite(rows).all(-1, keepdim=True), rows, 0.0)
    return torch.cat([torch.linalg.qr(rows.mT).Q.mT, old[m:]])


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
