"""Singular values and vectors, exact and iterative, with residuals that are never computed by subtraction."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.errors import InputError

SHORT = 1 << 12  # numbers in one sum of squares: float32 sums of more lose digits


@dataclass(frozen=True)
class Triplets:
    """Leading singular triplets: `W ≈ left · diag(values) · rightᵀ`, values in descending order."""

    left: Float[Tensor, "*batch rows r"]
    values: Float[Tensor, "*batch r"]
    right: Float[Tensor, "*batch columns r"]

    def top(self, r: int) -> "Triplets":
        """The first `r` of them, or all if there are fewer."""
        return Triplets(self.left[..., :r], self.values[..., :r], self.right[..., :r])


def wide(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In float32 at least."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def require_matrix(matrix: Tensor, name: str = "matrix") -> Tensor:
    """The matrix itself (or a stack of them), once it is known to have a singular value decomposition.

    Raises `InputError` unless it is float32 or float64, with at least one row and one column, and finite.

    >>> require_matrix(torch.tensor([[1.0, float("nan")]]))
    Traceback (most recent call last):
    equipoise.errors.InputError: expected a matrix of finite numbers; found 1 of 2 entries NaN or infinite; ...
    """
    if matrix.ndim < 2 or matrix.numel() == 0:
        raise InputError(
            expected=f"a {name} with at least one row and one column",
            found=f"shape {tuple(matrix.shape)}",
            remedy="pass a non-empty tensor with two or more dimensions",
        )
    if matrix.dtype not in (torch.float32, torch.float64):
        raise InputError(
            expected=f"a {name} in float32 or float64", found=str(matrix.dtype), remedy="convert it with .float()"
        )
    finite = torch.isfinite(matrix)
    if not finite.all():
        raise InputError(
            expected=f"a {name} of finite numbers",
            found=f"{int((~finite).sum())} of {matrix.numel()} entries NaN or infinite",
            remedy="find the step at which training diverged, or leave this tensor out",
        )
    return matrix


def leading_triplets(matrix: Float[Tensor, "*batch rows columns"], r: int | None = None) -> Triplets:
    """The `r` leading singular triplets (default: all of the thin SVD), from LAPACK's or cuSOLVER's full SVD.

    Each value is right to a few `eps · σ_1`; each vector to `eps · σ_1 / gap`, so the vectors of a repeated singular
    value are an arbitrary basis of their space. At most `min(rows, columns)` triplets exist; asking for more gives
    these. Raises `InputError` as `require_matrix` does, and for `r < 1`.

    >>> leading_triplets(torch.diag(torch.tensor([3.0, 2.0, 1.0])), r=2).values
    tensor([3., 2.])
    """
    if r is not None and r < 1:
        raise InputError(expected="at least one singular triplet", found=f"r={r}", remedy="pass r=1 or more")
    require_matrix(matrix)
    tall = matrix.shape[-2] >= matrix.shape[-1]  # LAPACK is about twice as fast on the tall one of the two
    left, values, right = torch.linalg.svd(matrix if tall else matrix.mT, full_matrices=False)
    triplets = Triplets(left, values, right.mT) if tall else Triplets(right.mT, values, left)
    return triplets if r is None else triplets.top(r)


def deflated_residual(
    matrix: Float[Tensor, "*batch rows columns"],
    left: Float[Tensor, "*batch rows r"],
    values: Float[Tensor, "*batch r"],
    right: Float[Tensor, "*batch columns r"],
) -> Float[Tensor, "*batch"]:
    """`‖W - U S Vᵀ‖_F²`, from the deflated matrix itself (docs/theory.md §6).

    For any orthonormal `U`, `V` this is at least `Δ = Σ_{i>r} σ_i²`, with equality at the leading triplets. Subtracting
    `Σ_{i≤r} σ_i²` from `‖W‖_F²` instead loses everything below `eps · ‖W‖_F²`; this keeps `Δ` down to `eps² · ‖W‖_F²`.

    >>> W = torch.diag(torch.tensor([1.0, 1e-5], dtype=torch.float64))
    >>> top = leading_triplets(W, r=1)
    >>> print(f"{deflated_residual(W, top.left, top.values, top.right):.6e}")
    1.000000e-10
    """
    deflated = matrix - (left * values.unsqueeze(-2)) @ right.mT
    return frobenius_norm(deflated).square()


def frobenius_norm(matrix: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch"]:
    """`‖W‖_F`, row by row and then over the rows.

    Over both dimensions at once torch adds the squares in one long sum: for an 8192 × 8192 matrix in float32 that is
    0.5% too little.

    >>> float(frobenius_norm(torch.eye(4)))
    2.0
    """
    return torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=-1), dim=-1)


def singular_values(matrices: Iterable[Float[Tensor, "_ _"]]) -> list[Float[Tensor, " _"]]:
    """All singular values of each matrix, descending; matrices of one shape, dtype and device go as one batch.

    Raises `InputError` as `require_matrix` does.

    >>> singular_values([torch.eye(2), torch.tensor([[3.0, 4.0]]), 2 * torch.eye(2)])
    [tensor([1., 1.]), tensor([5.]), tensor([2., 2.])]
    """
    matrices = [require_matrix(matrix) for matrix in matrices]
    alike: dict[object, list[int]] = {}
    for index, matrix in enumerate(matrices):
        alike.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(index)
    values: dict[int, Tensor] = {}
    for indices in alike.values():
        batch = torch.linalg.svdvals(torch.stack([matrices[index] for index in indices]))
        values.update(zip(indices, batch, strict=True))
    return [values[index] for index in range(len(matrices))]


@dataclass(frozen=True)
class KrylovTriplets:
    """Leading triplets from a block Krylov space, with what is certain about them.

    - `triplets`: `W v = σ̂ u` holds to rounding, and `σ̂_i ≤ σ_i` for every `i`;
    - `residuals[i] = ‖Wᵀu_i - σ̂_i v_i‖`: *a* singular value of `W` lies within this of `σ̂_i`, not always the `i`-th;
    - `captured = Σσ̂_i² / ‖W‖_F²` over these triplets, 1 for a zero matrix;
    - `upper ≥ σ_1`, deterministic, rounding included; on flat spectra it is far above `σ_1`, and says so;
    - `start`: pass it to the next call, when the matrix has moved a little.
    """

    triplets: Triplets
    residuals: Float[Tensor, "*batch r"]
    captured: Float[Tensor, "*batch"]
    upper: Float[Tensor, "*batch"]
    start: Float[Tensor, "*batch columns block"]

    @property
    def error_bound(self) -> Float[Tensor, "*batch"]:
        """`upper - σ̂_1`, at least `|σ̂_1 - σ_1|`."""
        return self.upper - self.triplets.values[..., 0]


def krylov_triplets(
    matrix: Float[Tensor, "*batch rows columns"],
    r: int = 1,
    *,
    start: Float[Tensor, "*batch columns _"] | None = None,
    steps: int = 4,
    oversample: int = 4,
    generator: torch.Generator | None = None,
) -> KrylovTriplets:
    """The `r` leading triplets within the space of `X, WᵀWX, …, (WᵀW)^steps X` (block Golub–Kahan; Musco & Musco 2015).

    `X` is `start` or, cold, `r + oversample` Gaussian columns; one Gaussian column always comes with it, so that a
    direction which the warm start has lost can return. The default generator is `own_generator`. `W` is read
    `2 steps + 2` times, `steps=0` being enough for a warm start; leading dimensions are a batch. Raises `InputError` as
    `require_matrix` does, for norms that overflow, and for `r < 1`.

    >>> W = torch.diag(torch.tensor([9.0, 3.0, 1.0, 0.1, 0.1, 0.0], dtype=torch.float64))
    >>> found = krylov_triplets(W, r=2)
    >>> found.triplets.values, bool(found.error_bound < 1e-10)
    (tensor([9.0000, 3.0000], dtype=torch.float64), True)
    """
    if r < 1:
        raise InputError(expected="at least one singular triplet", found=f"r={r}", remedy="pass r=1 or more")
    matrix, norm, unit = _scaled(matrix)
    block = min(r + oversample, *matrix.shape[-2:])
    basis = _orthonormal(_first_block(matrix, start, block, generator))
    width = basis.shape[-1]
    for _ in range(steps):
        basis = _orthonormal(torch.cat([basis, _pull(matrix, _push(matrix, basis[..., -width:]))], dim=-1))
    left, values, turn = torch.linalg.svd(_push(matrix, basis), full_matrices=False)
    right, pulled = basis @ turn.mT, _pull(matrix, left)
    residuals = torch.linalg.vector_norm(pulled - right * values.unsqueeze(-2), dim=-2)
    return KrylovTriplets(
        Triplets(left, values * unit[..., None], right).top(r),
        residuals[..., :r] * unit[..., None],
        torch.where(norm > 0, (values[..., :r] / norm.clamp(min=_tiny(norm)).unsqueeze(-1)).square().sum(-1), 1.0),
        _norm_bound(values, residuals, norm, sum(matrix.shape[-2:])) * unit,
        pulled[..., :block],
    )


def _norm_bound(values: Tensor, residuals: Tensor, norm: Tensor, size: int) -> Tensor:
    """An upper bound for `σ_1` from a whole Ritz decomposition, rounding included.

    In the bases completed from `U` and `V`, `W` is `[[S, Rᵀ], [0, E]]` with `‖E‖_F² = ‖W‖_F² - ‖S‖_F² - ‖R‖_F²`, and no
    block matrix exceeds the matrix of its blocks' norms. The difference is an upper bound here, so that its rounding,
    put at `4 √size · eps · ‖W‖_F²` after Higham & Mary (2019), is added and not lost; the same is added to the bound.
    """
    rounding = 4 * size**0.5 * torch.finfo(norm.dtype).eps
    scale = norm.clamp(min=_tiny(norm)).unsqueeze(-1)
    shares, couplings = values / scale, residuals / scale
    unseen = (1 - shares.square().sum(-1) - couplings.square().sum(-1)).clamp(min=0) + rounding
    last_column = torch.cat([couplings, unseen.sqrt().unsqueeze(-1)], dim=-1)
    diagonal = torch.diag_embed(torch.nn.functional.pad(shares, (0, 1)))
    arrow = torch.cat([diagonal[..., :-1], last_column.unsqueeze(-1)], dim=-1)
    return norm * (torch.linalg.matrix_norm(arrow, 2) + rounding)


def _push(matrix: Tensor, block: Tensor) -> Tensor:
    """`W X` for a thin `X`, as `(Xᵀ Wᵀ)ᵀ`: on a CPU this order is two to five times faster than `W @ X`."""
    return (block.mT.contiguous() @ matrix.mT).mT


def _pull(matrix: Tensor, block: Tensor) -> Tensor:
    """`Wᵀ X` for a thin `X`, likewise as `(Xᵀ W)ᵀ`."""
    return (block.mT @ matrix).mT


def own_generator(device: torch.device) -> torch.Generator:
    """Random numbers that are the same in every run, and independent of the matrix.

    With a seed such as 0 they are not: a layer that was initialised after `torch.manual_seed(0)` holds that stream.
    """
    return torch.Generator(device).manual_seed(0x6571_7569_706F_6973)


def _first_block(matrix: Tensor, start: Tensor | None, block: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        generator = own_generator(matrix.device)
    fresh = 1 if start is not None else block + 1
    shape = (*matrix.shape[:-2], matrix.shape[-1], fresh)
    noise = torch.randn(shape, generator=generator, dtype=matrix.dtype, device=matrix.device)
    return noise if start is None else torch.cat([start, noise], dim=-1)


def _orthonormal(block: Tensor) -> Tensor:
    """Orthonormal columns whose span contains the block's, by Householder QR: sound for dependent and zero columns."""
    size = torch.linalg.vector_norm(block, dim=-2, keepdim=True)
    return torch.linalg.qr(block / size.clamp(min=_tiny(size))).Q


def _scaled(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each matrix over a power of two, the norm of that, and the power: fourth powers then stay within the dtype.

    The matrix itself, and 1, where they do anyway. Whatever is wrong with it shows in its norm, which takes one read.
    """
    sound = matrix.numel() and matrix.dtype in (torch.float32, torch.float64)
    norm = frobenius_norm(matrix) if sound else matrix.new_zeros(())
    least = _tiny(norm) ** 0.2 if sound else 0.0
    if sound and bool(((norm > least) & (norm < 1 / least)).all()):
        return matrix, norm, torch.ones_like(norm)
    largest = require_matrix(matrix).abs().amax((-2, -1))
    unit = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    matrix = matrix / unit[..., None, None]
    norm = frobenius_norm(matrix)
    if not torch.isfinite(norm * unit).all():
        raise InputError(
            expected="a matrix whose Frobenius norm the dtype can hold",
            found=f"entries up to {float(largest.max()):.3g} in {matrix.dtype}",
            remedy="scale it down or convert it with .double()",
        )
    return matrix, norm, unit


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny


def probable_norm_bound(
    matrix: Float[Tensor, "*batch rows columns"],
    *,
    steps: int = 12,
    failure: float = 1e-9,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch"]:
    """`t ≥ σ_1` except with probability `failure` over the random start, for each matrix (Hochstenbach 2013).

    `k` Golub–Kahan steps from a uniform unit vector `v` on the shorter side (length `n`) give the monic Ritz polynomial
    `p` and `‖p(WᵀW) v‖ = Π α_j β_j`. Whatever `p` is, `p(σ_1²) |⟨v, v_1⟩|` is at most that; and `|⟨v, v_1⟩| < δ` has
    probability at most `δ √(2n/π)`. So `σ_1²` is at most the `t` with `p(t) = Π α_j β_j / δ`. Unlike
    `KrylovTriplets.upper` this is tight on flat spectra: about 1.5 `σ_1` for 768 columns, nearer with more steps.
    `W` is read `2 steps` times. Raises as `krylov_triplets` does, and for a `failure` outside (0, 1).

    >>> W = torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))
    >>> [round(float(probable_norm_bound(W, steps=steps)), 1) for steps in (12, 24, 48)]
    [147.9, 110.0, 100.2]
    """
    if steps < 1 or not 0 < failure < 1:
        raise InputError(
            expected="one or more steps and a probability of failure between 0 and 1",
            found=f"steps={steps}, failure={failure}",
            remedy="pass steps=12, failure=1e-9",
        )
    matrix, norm, unit = _scaled(matrix)
    scaled_norm = norm.clamp(min=_tiny(norm))[..., None, None]
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mT
    n = matrix.shape[-1]
    basis = _orthonormal(_first_block(matrix, None, 0, generator))
    for _ in range(min(steps, n) - 1):
        basis = _orthonormal(torch.cat([basis, _pull(matrix, _push(matrix, basis[..., -1:]) / scaled_norm)], dim=-1))
    images = _push(matrix, basis) / scaled_norm
    ritz = torch.linalg.svdvals(images).square()
    last = _pull(matrix, images[..., -1:]) / scaled_norm
    coupling = torch.linalg.vector_norm(last - basis @ (basis.mT @ last), dim=(-2, -1))
    off_diagonal = (images[..., :-1] * images[..., 1:]).sum(-2).abs()
    factors = torch.cat([off_diagonal, coupling.unsqueeze(-1)], dim=-1)
    rounding = 4 * sum(matrix.shape[-2:]) ** 0.5 * torch.finfo(matrix.dtype).eps
    log_target = (factors + rounding).log().sum(-1) - math.log(failure * math.sqrt(math.pi / (2 * n)))
    return norm * (_largest_root(ritz, log_target).sqrt() + rounding) * unit


def _largest_root(roots: Tensor, log_value: Tensor) -> Tensor:
    """The `t` above all roots, and at most 1, with `Σ log(t - root_i) = log_value`, from above, by bisection."""
    low, high = roots.amax(-1), torch.ones_like(log_value)
    for _ in range(60):
        middle = (low + high) / 2
        above = (middle.unsqueeze(-1) - roots).clamp(min=_tiny(roots)).log().sum(-1) >= log_value
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return high


def principal_angles(
    first: Float[Tensor, "dimension p"], second: Float[Tensor, "dimension q"]
) -> Float[Tensor, " angles"]:
    """The `min(p, q)` principal angles between two column spaces, ascending, in radians.

    Columns must be orthonormal. Cosines are the singular values of `AᵀB`, sines those of the rejected component
    `B - A AᵀB` (Björck & Golub 1973); the angle is `atan2(sine, cosine)`, right to rounding at both ends.

    >>> e = torch.eye(3, dtype=torch.float64)
    >>> tilted = torch.stack([e[0] + 1e-12 * e[2], e[1]], dim=1)
    >>> print([f"{float(angle):.3e}" for angle in principal_angles(e[:, :2], tilted)])
    ['0.000e+00', '1.000e-12']
    """
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    overlap = first.T @ second
    cosines = torch.linalg.svdvals(overlap)
    sines = torch.linalg.svdvals(second - first @ overlap).flip(0)
    return torch.atan2(sines, cosines)
