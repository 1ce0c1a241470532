"""Exact singular values and vectors, from LAPACK's or cuSOLVER's full decomposition."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.errors import InputError

Vectors: TypeAlias = Callable[[int | slice], Float[Tensor, "*rows _"]]


@dataclass(frozen=True)
class Triplets:
    """Leading singular triplets: `W ≈ left · diag(values) · rightᵀ`, values in descending order."""

    left: Float[Tensor, "*batch rows r"]
    values: Float[Tensor, "*batch r"]
    right: Float[Tensor, "*batch columns r"]

    def top(self, r: int) -> "Triplets":
        """The first `r` of them, or all if there are fewer."""
        return Triplets(self.left[..., :r], self.values[..., :r], self.right[..., :r])


@dataclass(frozen=True)
class LeadingTriplets:
    """The top triplets of one `W`, its norm and its distance to rank one, each with what is certain about it.

    Exact or from an iteration:

    - `values` are `σ̂_1 ≥ σ̂_2 ≥ …`, each at most `σ_i`, but for rounding; *a* singular value of `W` lies within
      `residuals[i]` of it;
    - `upper ≥ σ_1`, rounding included;
    - `tail = ‖W - σ̂_1 u_1 v_1ᵀ‖_F²`, from the deflated matrix wherever a difference would lose digits: at least
      `Σ_{i>1} σ_i²`, with equality at the true triplet (docs/theory.md §6).

    Vectors are formed when they are asked for: `left(rows)` and `right(rows)` are those of some rows, each a row.
    """

    shape: tuple[int, int]
    values: list[float]
    residuals: tuple[float, ...]
    upper: float
    frobenius_norm: float
    tail: float
    left: Vectors = field(repr=False)
    right: Vectors = field(repr=False)

    @cached_property
    def triplets(self) -> Triplets:
        """As many as there are values."""
        rows = slice(0, len(self.values))
        left, right = self.left(rows), self.right(rows)
        return Triplets(left.mT, left.new_tensor(self.values), right.mT)

    def top(self, r: int) -> "LeadingTriplets":
        """The same with fewer triplets."""
        return self if r >= len(self.values) else replace(self, values=self.values[:r], residuals=self.residuals[:r])

    def transposed(self) -> "LeadingTriplets":
        """Those of `Wᵀ`."""
        return replace(self, shape=self.shape[::-1], left=self.right, right=self.left)

    def times(self, unit: float) -> "LeadingTriplets":
        """Those of `unit · W`, for a positive `unit`."""
        return replace(
            self,
            values=[unit * value for value in self.values],
            residuals=tuple(unit * residual for residual in self.residuals),
            upper=unit * self.upper,
            frobenius_norm=unit * self.frobenius_norm,
            tail=unit * (unit * self.tail),
        )

    @property
    def error_bound(self) -> float:
        """`upper - σ̂_1`, at least the error of `σ̂_1`."""
        return self.upper - self.values[0]

    @property
    def rank_one_residual(self) -> float:
        """`tail / ‖W‖_F²`; 0 for a zero matrix."""
        if self.frobenius_norm == 0:
            return 0.0
        share = self.tail / self.frobenius_norm**2
        return 1.0 if share > 1 else share

    @property
    def stable_rank(self) -> float:
        """`‖W‖_F² / σ̂_1²`; 0 for a zero matrix."""
        first = self.values[0]
        return 0.0 if first == 0 else (self.frobenius_norm / first) ** 2


def require_matrix(matrix: Tensor, name: str = "matrix") -> Tensor:
    """The matrix itself (or a stack of them), once it is known to have a singular value decomposition.

    Raises:
        InputError: unless it is float32 or float64, with at least one row and one column, and finite.

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


def require_rank(r: int) -> None:
    """Refuse a number of triplets below one.

    Raises:
        InputError: for `r < 1`.
    """
    if r < 1:
        raise InputError(expected="at least one singular triplet", found=f"r={r}", remedy="pass r=1 or more")


def leading_triplets(matrix: Float[Tensor, "*batch rows columns"], r: int | None = None) -> Triplets:
    """The `r` leading singular triplets (default: all of the thin SVD).

    Each value is right to a few `eps · σ_1`; each vector to `eps · σ_1 / gap`, so the vectors of a repeated singular
    value are an arbitrary basis of their space. At most `min(rows, columns)` triplets exist; asking for more gives
    these.

    Raises:
        InputError: as `require_matrix` does, and for `r < 1`.

    >>> leading_triplets(torch.diag(torch.tensor([3.0, 2.0, 1.0])), r=2).values
    tensor([3., 2.])
    """
    if r is not None:
        require_rank(r)
    require_matrix(matrix)
    tall = matrix.shape[-2] >= matrix.shape[-1]  # LAPACK is about twice as fast on the tall one of the two
    left, values, right = torch.linalg.svd(matrix if tall else matrix.mT, full_matrices=False)
    triplets = Triplets(left, values, right.mT) if tall else Triplets(right.mT, values, left)
    return triplets if r is None else triplets.top(r)


def exact_leading(triplets: Triplets, r: int = 1) -> LeadingTriplets:
    """The top `r` of a whole thin SVD: every figure right to rounding, the tail from the singular values.

    >>> seen = exact_leading(leading_triplets(torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))))
    >>> seen.values, seen.tail, round(seen.stable_rank, 12)
    ([2.0], 2.0, 1.5)
    """
    values, top = triplets.values.double(), triplets.top(r)
    shape = triplets.left.shape[0], triplets.right.shape[0]
    rounding = max(shape) ** 0.5 * torch.finfo(triplets.values.dtype).eps * float(values[0])
    scale = float(values[0]) or 1.0
    squares = (values / scale).square()
    return LeadingTriplets(
        shape=shape,
        values=top.values.tolist(),
        residuals=(rounding,) * len(top.values),
        upper=float(values[0]) + rounding,
        frobenius_norm=scale * float(squares.sum().sqrt()),
        tail=scale**2 * float(squares[1:].sum()),
        left=top.left.mT.__getitem__,
        right=top.right.mT.__getitem__,
    )


def singular_values(matrices: Iterable[Float[Tensor, "_ _"]]) -> list[Float[Tensor, " _"]]:
    """All singular values of each matrix, descending; matrices of one shape, dtype and device go as one batch.

    Raises:
        InputError: as `require_matrix` does.

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
