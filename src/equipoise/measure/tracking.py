"""Leading singular triplets of many matrices that move a little from one look to the next.

One sweep reads every matrix twice and refines what the last sweep knew. Its block holds the last right vectors `V`,
their residuals `WᵀWV - VΛ` (the next Krylov directions), the vectors before those, and one random column through which
a lost direction can return: the locally optimal block Krylov iteration (LOBPCG, Knyazev 2001), which converges like a
Krylov method over the looks although each look pays for one product with `WᵀW` only. On flat spectra that is faster
than subspace iteration by orders of magnitude.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.linalg import Triplets
from equipoise.measure.leading import Leading

Reduce = Callable[[list[Tensor]], list[Tensor]]  # sums of each tensor over all processes
Block = Float[Tensor, "_ _"]  # rows are orthonormal directions

COLD = 8  # sweeps before the first look
_DEFLATE_BELOW = 1e-2  # share of ‖W‖² under which a tail is summed from the deflated matrix: a difference loses digits
_CHUNK = 1 << 16  # entries in one sum of squares: float32 sums of more lose digits


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

    def squares(self) -> Float[Tensor, ""]:
        """`Σ W²` of these rows, in float64."""
        parts = [self.weight] if self.bias is None else [self.weight, self.bias]
        sums = [torch.dot(chunk, chunk) for part in parts for chunk in part.reshape(-1).split(_CHUNK)]
        return torch.stack(sums).double().sum() if sums else torch.zeros((), dtype=torch.float64)

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
    parts = []
    for piece, block in zip(pieces, blocks, strict=True):
        image = piece.push(block)
        whole_space = len(block) == piece.columns  # then all is known from the image
        parts.append((image, image.new_zeros(0) if whole_space else piece.pull(image), piece.squares()))
    whole = reduce([tensor for part in parts for tensor in part])
    images, pulled, squares = whole[0::3], whole[1::3], whole[2::3]
    found: list[_Ritz | None] = [None] * len(pieces)
    for group in _alike(images, blocks):
        x, y, z = (_stacked([source[i] for i in group]) for source in (blocks, images, pulled))
        sizes = [(images[i].shape[1], blocks[i].shape[1]) for i in group]
        ritzes = _ritz(x, y, z, torch.stack([squares[i] for i in group]), sizes, r, generator)
        for i, ritz in zip(group, ritzes, strict=True):
            found[i] = ritz.turned() if pieces[i].turned else ritz
    certain = [ritz for ritz in found if ritz is not None]
    tails = _tails(pieces, certain, reduce)
    leadings = [ritz.leading(tail) for ritz, tail in zip(certain, tails, strict=True)]
    return [ritz.next_block for ritz in certain], leadings


def _alike(images: Sequence[Tensor], blocks: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the matrices with as many directions, of one dtype and device, of sizes within a factor of four."""
    groups: dict[object, list[int]] = {}
    for index, (image, block) in enumerate(zip(images, blocks, strict=True)):
        size = max(image.shape[1], block.shape[1], 1)
        key = (len(block), len(block) == block.shape[1], ((size - 1).bit_length() + 1) // 2, block.dtype, block.device)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """One batch, the shorter rows filled up with zeros."""
    if len({part.shape for part in rows}) == 1:
        return torch.stack(list(rows))
    length = max(part.shape[1] for part in rows)
    return torch.stack([torch.nn.functional.pad(part, (0, length - part.shape[1])) for part in rows])


@dataclass(frozen=True)
class _Ritz:
    """What a sweep says of one matrix, but for its tail."""

    triplets: Triplets
    residuals: tuple[float, ...]
    upper: float
    square: float  # ‖W‖_F²
    next_block: Block

    @property
    def difference(self) -> float:
        """`‖W‖² - σ̂_1²`."""
        left = self.square - float(self.triplets.values[0]) ** 2
        return 0.0 if left < 0 else left

    def turned(self) -> "_Ritz":
        """The same of the transpose."""
        swapped = Triplets(self.triplets.right, self.triplets.values, self.triplets.left)
        return replace(self, triplets=swapped)

    def leading(self, tail: float) -> Leading:
        """With its tail."""
        return Leading(self.triplets, self.residuals, self.upper, self.square**0.5, tail)


def _ritz(
    blocks: Tensor,
    images: Tensor,
    pulled: Tensor,
    squares: Tensor,
    sizes: Sequence[tuple[int, int]],
    r: int,
    generator: torch.Generator,
) -> Iterable[_Ritz]:
    """Rayleigh–Ritz of `WᵀW` on each block. `Yᵀ Y` is summed in float64, so that `σ̂_i` keeps the digits of `Y`.

    `sizes` are the lengths of images and directions without the zeros that fill them up.
    """
    finite = (
        torch.isfinite(squares) & torch.isfinite(images.flatten(1).sum(1)) & torch.isfinite(pulled.flatten(1).sum(1))
    )
    wide = images.double()
    gram = torch.where(finite[:, None, None], wide @ wide.mT, 0.0)
    ritz, turn = torch.linalg.eigh(gram)
    ritz, turn = ritz.flip(-1).clamp(min=0), turn.flip(-1).mT.to(blocks)
    values, right = ritz.sqrt(), turn @ blocks
    leaves = pulled.numel() > 0  # the space of the block, under WᵀW
    coupling = turn @ pulled - ritz.to(blocks)[..., None] * right if leaves else torch.zeros_like(right)
    distance = torch.linalg.vector_norm(coupling.double(), dim=-1)  # of squares of squares: beyond float32
    small = torch.finfo(torch.float64).tiny
    nearest = torch.minimum(distance / values.clamp(min=small), distance.sqrt())
    upper = _upper(ritz, distance, squares, max(map(sum, sizes)), blocks.dtype)
    left = turn[:, :r] @ images
    left = left / torch.linalg.vector_norm(left, dim=-1, keepdim=True).clamp(min=torch.finfo(left.dtype).tiny)
    fresh = _next(right[:, :r], coupling[:, :r], blocks, [columns for _, columns in sizes], r, generator)
    told = torch.cat([nearest[:, :r], upper[:, None], squares[:, None]], dim=1)
    told = torch.where(finite[:, None], told, torch.nan).tolist()
    shown = torch.where(finite[:, None], values[:, :r], torch.nan).to(blocks)
    for i, (*residuals, bound, square) in enumerate(told):
        rows, columns = sizes[i]
        triplets = Triplets(left[i, :, :rows].mT, shown[i], right[i, :r, :columns].mT)
        yield _Ritz(triplets, tuple(residuals), bound, square, fresh[i, :, :columns])


def _upper(ritz: Tensor, distance: Tensor, squares: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """An upper bound for `σ_1`, rounding included.

    In a basis completed from the block `WᵀW` is `[[Λ, Rᵀ], [R, F]]`, `F ≥ 0` of trace `‖W‖_F² - tr Λ`, and no block
    matrix exceeds the matrix of its blocks' norms. Rounding is put at `4 √size · eps` after Higham & Mary (2019).
    """
    rounding = 4 * size**0.5 * torch.finfo(dtype).eps
    scale = squares.clamp(min=torch.finfo(torch.float64).tiny)
    finite = torch.isfinite(scale)
    shares = torch.where(finite[:, None], ritz / scale[:, None], 0.0)
    couplings = torch.where(finite[:, None], distance / scale[:, None], 0.0)
    unseen = (1 - shares.sum(-1)).clamp(min=0) + rounding
    arrow = torch.diag_embed(torch.cat([shares, unseen[:, None]], dim=1))
    arrow[:, -1, :-1] = couplings
    arrow[:, :-1, -1] = couplings
    return squares.sqrt() * (torch.linalg.eigvalsh(arrow)[:, -1].sqrt() + rounding)


def _next(
    right: Tensor, coupling: Tensor, blocks: Tensor, columns: Sequence[int], r: int, generator: torch.Generator
) -> Tensor:
    """The block of the next sweep: `V`, its residuals, the last `V` (which starts every block), and a random row."""
    noise = [torch.randn(1, length, generator=generator, dtype=torch.float32) for length in columns]
    rows = torch.cat([right, coupling, blocks[:, :r], _stacked(noise).to(blocks)], dim=1)
    size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    rows = torch.where(size > 0, rows / size.clamp(min=torch.finfo(rows.dtype).tiny), 0.0)
    rows = torch.where(torch.isfinite(rows).all(-1, keepdim=True), rows, 0.0)
    return torch.linalg.qr(rows.mT).Q.mT[:, : blocks.shape[1]].contiguous()


def _tails(pieces: Sequence[Piece], found: Sequence[_Ritz], reduce: Reduce) -> list[float]:
    """`‖W - σ̂_1 u_1 v_1ᵀ‖²`: by difference while it loses no more than two digits, else from the deflated matrix."""
    single = [min(piece.rows, piece.columns) == 1 for piece in pieces]
    tails = [0.0 if one else ritz.difference for one, ritz in zip(single, found, strict=True)]
    near = [ritz.square > 0 and ritz.difference < _DEFLATE_BELOW * ritz.square for ritz in found]
    close = [i for i in range(len(pieces)) if near[i] and not single[i]]
    if close:
        sums = []
        for i in close:
            top = found[i].triplets
            sums.append(pieces[i].deflated(top.left[:, 0], top.values[0], top.right[:, 0]))
        for i, total in zip(close, reduce(sums), strict=True):
            tails[i] = float(total)
    return tails
