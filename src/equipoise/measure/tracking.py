"""Leading singular triplets of many matrices that move a little from one look to the next.

One sweep reads every matrix twice and refines what the last sweep knew. Its block holds the last right vectors `V`,
their residuals `WᵀWV - VΛ` (the next Krylov directions), the vectors before those, and one random column through which
a lost direction can return: the locally optimal block Krylov iteration (LOBPCG, Knyazev 2001), which converges like a
Krylov method over the looks although each look pays for one product with `WᵀW` only. On flat spectra that is faster
than subspace iteration by orders of magnitude.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.linalg import Triplets
from equipoise.measure.leading import Leading

Reduce = Callable[[list[Tensor]], list[Tensor]]  # sums of each tensor over all processes
Block = Float[Tensor, "_ _"]  # rows are orthonormal directions

COLD = 8  # sweeps before the first look
_DEFLATE_BELOW = 1e-2  # share of ‖W‖² under which a tail is summed from the deflated matrix: a difference loses digits
_TINY = float(np.finfo(np.float64).tiny)
_SHORT = 1 << 12  # entries in one sum of squares: float32 sums of more lose digits


@dataclass(frozen=True)
class Piece:
    """The rows of `[W b]` that this process has, `offset` of them before, `rows` in all; or `turned`, its transpose."""

    weight: Float[Tensor, "mine inputs"]
    bias: Float[Tensor, " mine"] | None
    offset: int
    rows: int
    turned: bool = False

    @classmethod
    def whole(cls, weight: Float[Tensor, "rows inputs"], bias: Float[Tensor, " rows"] | None = None) -> "Piece":
        """All rows."""
        return cls(weight, bias, 0, len(weight))

    @property
    def columns(self) -> int:
        """How long a direction is: the columns of `[W b]`, or its rows if it is turned."""
        return self.rows if self.turned else self.weight.shape[1] + (self.bias is not None)

    def push(self, block: Block) -> Float[Tensor, "_ _"]:
        """`(W X)ᵀ`, zero where others hold the rows."""
        if self.turned:
            return self.pull(block)
        inputs = self.weight.shape[1]
        mine = block[:, :inputs] @ self.weight.mT
        if self.bias is not None:
            mine = torch.addcmul(mine, block[:, -1:], self.bias)
        after = self.rows - self.offset - len(self.weight)
        return torch.nn.functional.pad(mine, (self.offset, after)) if self.offset or after else mine

    def pull(self, image: Float[Tensor, "_ _"]) -> Block:
        """The share of these rows in `(WᵀY)ᵀ`."""
        mine = image[:, self.offset : self.offset + len(self.weight)]
        through = mine @ self.weight
        return through if self.bias is None else torch.cat([through, (mine @ self.bias)[:, None]], dim=1)

    def deflated(self, left: Float[Tensor, " rows"], value: Tensor, right: Float[Tensor, " columns"]) -> Tensor:
        """`‖W - σ u vᵀ‖_F²` over these rows, in float64."""
        mine = left[self.offset : self.offset + len(self.weight)] * value
        inputs = self.weight.shape[1]
        rest = torch.linalg.vector_norm(torch.addr(self.weight, mine, right[:inputs], alpha=-1)).double().square()
        if self.bias is None:
            return rest
        return rest + torch.linalg.vector_norm(self.bias - mine * right[-1]).double().square()


def cold(piece: Piece, r: int, generator: torch.Generator) -> Block:
    """Random directions, `3 r + 1` of them or as many as there can be."""
    columns = oriented(piece, r).columns
    noise = torch.randn(columns, min(3 * r + 1, columns), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(noise.to(piece.weight)).Q.mT.contiguous()


def oriented(piece: Piece, r: int) -> Piece:
    """A matrix of few rows turned, so that the block spans all of its short side and the sweep is exact."""
    return replace(piece, turned=piece.rows <= 3 * r + 1 < piece.columns)


def follow(
    pieces: Sequence[Piece],
    blocks: Sequence[Block],
    r: int,
    generator: torch.Generator,
    reduce: Reduce = list,
) -> tuple[list[Block], list[Leading]]:
    """One sweep over all matrices: the `r` leading triplets of each, and the blocks for the next sweep.

    Matrices of like size share their small decompositions, filled up with zeros. `reduce` is called once, and once more
    where a matrix is so near rank one that its tail has to be summed from the deflated matrix. Figures of a matrix with
    NaN are NaN.

    >>> W = torch.diag(torch.tensor([9.0, 3.0, 1.0, 0.1, 0.1, 0.0], dtype=torch.float64))
    >>> generator = torch.Generator().manual_seed(0)
    >>> blocks = [cold(Piece.whole(W), 1, generator)]
    >>> for _ in range(COLD):
    ...     blocks, seen = follow([Piece.whole(W)], blocks, 1, generator)
    >>> abs(seen[0].values[0] - 9) < 1e-12 <= seen[0].error_bound + 1e-12 < 1e-5
    True
    """
    pieces = [oriented(piece, r) for piece in pieces]
    images = [piece.push(block) for piece, block in zip(pieces, blocks, strict=True)]
    pulled = [
        torch.zeros_like(block) if len(block) == piece.columns else piece.pull(image)  # in the whole space, not needed
        for piece, block, image in zip(pieces, blocks, images, strict=True)
    ]
    *whole, squares = reduce([*images, *pulled, sums_of_squares(pieces)])
    images, pulled = whole[: len(pieces)], whole[len(pieces) :]
    found: dict[int, tuple[Leading, Block]] = {}
    for group in _alike(images, blocks):
        x, y, z = (_stacked([source[i] for i in group]) for source in (blocks, images, pulled))
        sizes = [_Size(images[i].shape[1], *blocks[i].shape) for i in group]
        ritz = _ritz(x, y, z, squares[group].cpu().numpy(), sizes)
        seen, fresh = _leading(ritz, y, sizes, r), _next(ritz, x, sizes, r, generator)
        found.update(zip(group, zip(seen, fresh, strict=True), strict=True))
    leadings = [_transposed(found[i][0]) if piece.turned else found[i][0] for i, piece in enumerate(pieces)]
    return [found[i][1] for i in range(len(pieces))], _with_tails(pieces, leadings, reduce)


def _alike(images: Sequence[Tensor], blocks: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the matrices of one dtype and device, of sizes within a factor of four."""
    groups: dict[object, list[int]] = {}
    for index, (image, block) in enumerate(zip(images, blocks, strict=True)):
        size = max(image.shape[1], block.shape[1], 1)
        groups.setdefault((((size - 1).bit_length() + 1) // 2, block.dtype, block.device), []).append(index)
    return list(groups.values())


class _Size(NamedTuple):
    """Of a matrix in a batch, without what fills it up: length of images, how many directions, their length."""

    rows: int
    block: int
    columns: int

    @property
    def whole(self) -> bool:
        """Whether the directions span the whole space, which nothing leaves."""
        return self.block == self.columns


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """One batch, the smaller parts filled up with zeros."""
    if len({part.shape for part in parts}) == 1:
        return torch.stack(list(parts))
    batch = parts[0].new_zeros(len(parts), *(max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)))
    for place, part in zip(batch, parts, strict=True):
        place[: len(part), : part.shape[1]] = part
    return batch


def _cut(rows: Tensor, count: int, length: int) -> Tensor:
    """Without what fills it up."""
    return rows if rows.shape == (count, length) else rows[:count, :length]


@dataclass(frozen=True)
class _Ritz:
    """Rayleigh–Ritz of `WᵀW` on the blocks of a batch: vectors where they were, what is small on the host, in float64.

    `eigenvalues` `σ̂_i²` descend; `coupling_i = WᵀW v_i - σ̂_i² v_i`, of norm `distance_i`.
    """

    squares: np.ndarray
    eigenvalues: np.ndarray
    distance: np.ndarray
    turn: Tensor
    right: Tensor
    coupling: Tensor

    @cached_property
    def finite(self) -> np.ndarray:
        """Which of the matrices have nothing but finite figures."""
        return np.isfinite(self.squares) & np.isfinite(self.eigenvalues + self.distance).all(1)


def _ritz(blocks: Tensor, images: Tensor, pulled: Tensor, squares: np.ndarray, sizes: Sequence[_Size]) -> _Ritz:
    """`Yᵀ Y` is summed in float64, so that `σ̂_i` keeps the digits of `Y`."""
    wide = images.double()
    eigenvalues, vectors = _descending((wide @ wide.mT).cpu().numpy(), sizes)
    turn, scales = torch.from_numpy(vectors).to(blocks), torch.from_numpy(eigenvalues).to(blocks)
    right = turn @ blocks
    coupling = torch.baddbmm(right * scales[..., None], turn, pulled, beta=-1)
    for part, size in zip(coupling, sizes, strict=True):
        if size.whole:
            part.zero_()
    distance = torch.linalg.vector_norm(coupling, dim=-1, dtype=torch.float64)  # of squares of squares: beyond float32
    return _Ritz(squares, eigenvalues, distance.cpu().numpy(), turn, right, coupling)


def _descending(gram: np.ndarray, sizes: Sequence[_Size]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, NaN where an entry is not finite, and eigenvectors as rows; last those of the rows that fill up."""
    broken = ~np.isfinite(gram).all((1, 2))
    gram[broken] = 0
    for matrix, size in zip(gram, sizes, strict=True):
        if size.block < len(matrix):
            np.fill_diagonal(matrix[size.block :, size.block :], -(matrix.max() or 1.0))
    eigenvalues, vectors = np.linalg.eigh(gram)
    eigenvalues = np.maximum(eigenvalues[:, ::-1], 0)
    eigenvalues[broken] = np.nan
    return eigenvalues, vectors[..., ::-1].swapaxes(1, 2).copy()


@np.errstate(invalid="ignore", over="ignore")
def _leading(ritz: _Ritz, images: Tensor, sizes: Sequence[_Size], r: int) -> list[Leading]:
    """What is known of each matrix, its tail by difference."""
    values = np.sqrt(ritz.eigenvalues)
    nearest = np.minimum(ritz.distance / np.maximum(values, _TINY), np.sqrt(ritz.distance))
    upper = _upper(ritz, max(size.rows + size.columns for size in sizes), torch.finfo(images.dtype).eps)
    rest = np.maximum(ritz.squares - ritz.eigenvalues[:, 0], 0)
    told = np.column_stack([upper, np.sqrt(ritz.squares), rest, nearest[:, :r]]).tolist()
    left = _unit_rows(ritz.turn[:, :r] @ images)
    sigma = torch.from_numpy(values[:, :r]).to(images)
    each = zip(sizes, left.unbind(), sigma.unbind(), ritz.right[:, :r].unbind(), told, strict=True)
    found = []
    for size, u, s, v, (bound, norm, tail, *residuals) in each:
        count = min(r, size.block)
        triplets = Triplets(_cut(u, count, size.rows).mT, s[:count], _cut(v, count, size.columns).mT)
        found.append(Leading(triplets, tuple(residuals[:count]), bound, norm, tail))
    return found


def _upper(ritz: _Ritz, size: int, eps: float) -> np.ndarray:
    """An upper bound for `σ_1` of each, rounding included; NaN where a figure is not finite.

    In a basis completed from the block `WᵀW` is `[[Λ, Rᵀ], [R, F]]`, `F ≥ 0` of trace `‖W‖_F² - tr Λ`, and no block
    matrix exceeds the matrix of its blocks' norms. Rounding is put at `4 √size · eps` after Higham & Mary (2019).
    """
    rounding = 4 * size**0.5 * eps
    count, k = ritz.eigenvalues.shape
    scale = np.maximum(ritz.squares, _TINY)[:, None]
    arrow = np.zeros((count, k + 1, k + 1))
    diagonal = np.einsum("bii->bi", arrow)
    diagonal[:, :-1] = ritz.eigenvalues / scale
    diagonal[:, -1] = np.maximum(1 - diagonal.sum(1), 0) + rounding
    arrow[:, -1, :-1] = ritz.distance / scale  # the lower triangle is enough
    arrow[~ritz.finite] = 0
    largest = np.linalg.eigvalsh(arrow)[:, -1]
    largest[~ritz.finite] = np.nan
    return np.sqrt(ritz.squares) * (np.sqrt(largest) + rounding)


def _next(ritz: _Ritz, blocks: Tensor, sizes: Sequence[_Size], r: int, generator: torch.Generator) -> list[Block]:
    """The block of the next sweep: `V`, its residuals, the last `V` (which starts every block), and a random row.

    One that spans the whole space does so for ever.
    """
    noise = torch.randn(len(blocks), 1, blocks.shape[2], generator=generator)
    for row, size in zip(noise, sizes, strict=True):
        if size.columns < row.shape[1]:
            row[:, size.columns :] = 0
    rows = torch.cat([ritz.right[:, :r], ritz.coupling[:, :r], blocks[:, :r], noise.to(blocks)], dim=1)
    rows = _unit_rows(rows)
    if not ritz.finite.all():
        rows = torch.where(torch.isfinite(rows).all(-1, keepdim=True), rows, 0.0)
    fresh = torch.linalg.qr(rows.mT).Q.mT.contiguous()
    return [
        _cut(old if size.whole else new, size.block, size.columns)
        for old, new, size in zip(blocks.unbind(), fresh.unbind(), sizes, strict=True)
    ]


def _unit_rows(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1, eps=torch.finfo(rows.dtype).tiny)


def _transposed(seen: Leading) -> Leading:
    triplets = seen.triplets
    return replace(seen, triplets=Triplets(triplets.right, triplets.values, triplets.left))


def _with_tails(pieces: Sequence[Piece], seen: Sequence[Leading], reduce: Reduce) -> list[Leading]:
    """`‖W - σ̂_1 u_1 v_1ᵀ‖²`: by difference while it loses no more than two digits, else from the deflated matrix."""
    single = [min(piece.rows, piece.columns) == 1 for piece in pieces]
    exact = [replace(each, tail=0.0) if one else each for one, each in zip(single, seen, strict=True)]
    close = [i for i, each in enumerate(seen) if not single[i] and each.tail < _DEFLATE_BELOW * each.frobenius_norm**2]
    if close:
        sums = []
        for i in close:
            top = seen[i].triplets
            sums.append(pieces[i].deflated(top.left[:, 0], top.values[0], top.right[:, 0]))
        for i, total in zip(close, reduce(sums), strict=True):
            exact[i] = replace(seen[i], tail=float(total))
    return exact


def sums_of_squares(pieces: Sequence[Piece]) -> Float[Tensor, " pieces"]:
    """`Σ W²` over the rows of each piece, in float64; a weight that several have is read once."""
    norms: dict[int, Tensor] = {}
    for piece in pieces:
        for part in (piece.weight, piece.bias):
            if part is not None and id(part) not in norms:
                norms[id(part)] = _norm(part)
    squares = dict(zip(norms, torch.stack(list(norms.values())).square(), strict=True)) if norms else {}
    return torch.stack(
        [squares[id(p.weight)] if p.bias is None else squares[id(p.weight)] + squares[id(p.bias)] for p in pieces]
    )


def _norm(tensor: Tensor) -> Float[Tensor, ""]:
    """In float64, from short sums in the dtype itself."""
    if tensor.shape[-1] > _SHORT:
        flat = tensor.reshape(-1)
        short = len(flat) - len(flat) % _SHORT
        sums = torch.cat([torch.linalg.vector_norm(flat[:short].view(-1, _SHORT), dim=1), flat[short:]])
    else:
        sums = torch.linalg.vector_norm(tensor, dim=-1) if tensor.ndim > 1 else tensor
    return torch.linalg.vector_norm(sums, dtype=torch.float64)
