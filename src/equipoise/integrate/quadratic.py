"""The quadratic form of the convex problem, `A = hK`: whole, or of low rank where there are many rows (THEORY T6.1)."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.readout import Rows

_COUPLING = 0.1  # of the rows that a Newton direction treats alone, to the others: it converges at about that rate
_JITTER = 1e-12  # of the largest diagonal entry, added to what a Nyström factor inverts


@runtime_checkable
class Quadratic(Protocol):
    """A symmetric positive semi-definite matrix `A`, known by what Newton's method needs of it."""

    @property
    def diagonal(self) -> Float[Tensor, " a"]:
        """Its diagonal."""
        ...

    def scaled(self, factor: float) -> "Quadratic":
        """`factor · A`."""
        ...

    def double(self) -> "Quadratic":
        """The same in float64."""
        ...

    def times(self, weights: Float[Tensor, "a *sides"]) -> Float[Tensor, "a *sides"]:
        """`A p`."""
        ...

    def solve(
        self, weights: Float[Tensor, " a"], temperature: float, sides: Float[Tensor, "a sides"]
    ) -> Float[Tensor, "a sides"]:
        """`(T + P^½ A P^½)⁻¹ sides`, `P = diag(weights)`: rows that hardly weigh follow the others."""
        ...


@dataclass(frozen=True)
class Dense:
    """The matrix itself.

    >>> Dense(2 * torch.eye(2)).solve(torch.tensor([1.0, 0.5]), 1.0, torch.ones(2, 1)).T
    tensor([[0.3333, 0.5000]])
    """

    matrix: Float[Tensor, "a a"]

    @property
    def diagonal(self) -> Float[Tensor, " a"]:
        """Its diagonal."""
        return self.matrix.diagonal()

    def scaled(self, factor: float) -> "Dense":
        """`factor · A`."""
        return Dense(factor * self.matrix)

    def double(self) -> "Dense":
        """The same in float64."""
        return Dense(self.matrix.double())

    def times(self, weights: Float[Tensor, "a *sides"]) -> Float[Tensor, "a *sides"]:
        """`A p`."""
        return self.matrix @ weights

    def solve(
        self, weights: Float[Tensor, " a"], temperature: float, sides: Float[Tensor, "a sides"]
    ) -> Float[Tensor, "a sides"]:
        """`(T + P^½ A P^½)⁻¹ sides`, by Cholesky on the rows that weigh."""
        root, heavy = weights.sqrt(), heavy_rows(weights * self.diagonal, temperature)
        scaled = root[heavy, None] * self.matrix[heavy[:, None], heavy] * root[heavy]
        scaled.diagonal().add_(temperature)
        solved = torch.cholesky_solve(sides[heavy], torch.linalg.cholesky_ex(scaled).L)
        return _followed(self, weights, temperature, sides, heavy, solved)


@dataclass(frozen=True)
class LowRank:
    """`A = c F Fᵀ`, with fewer columns than rows.

    >>> sides, weights = torch.ones(3, 1).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    >>> factor = torch.arange(6.0).view(3, 2).double()
    >>> whole = Dense(2 * factor @ factor.T).solve(weights, 1.0, sides)
    >>> torch.allclose(LowRank(factor, 2.0).solve(weights, 1.0, sides), whole)
    True
    """

    factor: Float[Tensor, "a m"]
    scale: float = 1.0

    @classmethod
    def nystrom(cls, columns: Float[Tensor, "a m"], chosen: Rows) -> "LowRank":
        """`A ≈ A_{:S} A_{SS}⁻¹ A_{S:}`, from the columns `S` of `A`: exact on `S`, and never above `A` elsewhere.

        >>> matrix = torch.tensor([[4.0, 2.0], [2.0, 1.0]]).double()  # of rank one
        >>> LowRank.nystrom(matrix[:, :1], torch.tensor([0])).times(torch.ones(2).double())
        tensor([6.0000, 3.0000], dtype=torch.float64)
        """
        core = columns[chosen]
        core.diagonal().add_(_JITTER * core.diagonal().max())
        factor = torch.linalg.cholesky(core)
        return cls(torch.linalg.solve_triangular(factor, columns.mT, upper=False).mT)

    @property
    def diagonal(self) -> Float[Tensor, " a"]:
        """Its diagonal."""
        return self.scale * self.factor.square().sum(1)

    def scaled(self, factor: float) -> "LowRank":
        """`factor · A`."""
        return replace(self, scale=factor * self.scale)

    def double(self) -> "LowRank":
        """The same in float64."""
        return replace(self, factor=self.factor.double())

    def times(self, weights: Float[Tensor, "a *sides"]) -> Float[Tensor, "a *sides"]:
        """`A p`."""
        return self.scale * (self.factor @ (self.factor.mT @ weights))

    def solve(
        self, weights: Float[Tensor, " a"], temperature: float, sides: Float[Tensor, "a sides"]
    ) -> Float[Tensor, "a sides"]:
        """`(T + P^½ A P^½)⁻¹ sides`, by a Cholesky factor as wide as `F` (Woodbury) on the rows that weigh."""
        heavy = heavy_rows(weights * self.diagonal, temperature)
        rows = (self.scale * weights[heavy]).sqrt()[:, None] * self.factor[heavy]
        inner = rows.T @ rows
        inner.diagonal().add_(temperature)
        inside = torch.cholesky_solve(rows.T @ sides[heavy], torch.linalg.cholesky_ex(inner).L)
        solved = (sides[heavy] - rows @ inside) / temperature
        return _followed(self, weights, temperature, sides, heavy, solved)


def heavy_rows(stiffness: Tensor, temperature: float) -> Rows:
    """All rows but those whose stiffnesses `p_i A_ii` together stay below `_COUPLING² T`."""
    ascending, order = stiffness.sort()
    return order[ascending.cumsum(0) > _COUPLING**2 * temperature].sort().values


def _followed(
    quadratic: Quadratic, weights: Tensor, temperature: float, sides: Tensor, heavy: Rows, solved: Tensor
) -> Tensor:
    """The solution on all rows: that of the heavy ones, and what it leads the others to."""
    root, whole = weights.sqrt()[:, None], torch.zeros_like(sides)
    whole[heavy] = root[heavy] * solved
    whole = (sides - root * quadratic.times(whole)) / (temperature + weights * quadratic.diagonal)[:, None]
    whole[heavy] = solved
    return whole
