"""Singular values and vectors, exact and iterative, with residuals that are never computed by subtraction."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.errors import InputError


@dataclass(frozen=True)
class Triplets:
    """Leading singular triplets: `W ≈ left · diag(values) · rightᵀ`, values in descending order."""

    left: Float[Tensor, "*batch rows r"]
    values: Float[Tensor, "*batch r"]
    right: Float[Tensor, "*batch columns r"]


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
    left, values, right = torch.linalg.svd(require_matrix(matrix), full_matrices=False)
    return Triplets(left[..., :r], values[..., :r], right[..., :r, :].mT)


def deflated_residual(
    matrix: Float[Tensor, "*batch rows columns"],
    left: Float[Tensor, "*batch rows r"],
    values: Float[Tensor, "*batch r"],
    right: Float[Tensor, "*batch columns r"],
) -> Float[Tensor, "*batch"]:
    """`‖W - U S Vᵀ‖_F²`, from the deflated matrix itself (THEORY §6).

    For any orthonormal `U`, `V` this is at least `Δ = Σ_{i>r} σ_i²`, with equality at the leading triplets. Subtracting
    `Σ_{i≤r} σ_i²` from `‖W‖_F²` instead loses everything below `eps · ‖W‖_F²`; this keeps `Δ` down to `eps² · ‖W‖_F²`.

    >>> W = torch.diag(torch.tensor([1.0, 1e-5], dtype=torch.float64))
    >>> top = leading_triplets(W, r=1)
    >>> print(f"{deflated_residual(W, top.left, top.values, top.right):.6e}")
    1.000000e-10
    """
    deflated = matrix - (left * values.unsqueeze(-2)) @ right.mT
    return torch.linalg.vector_norm(deflated, dim=(-2, -1)).square()


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
