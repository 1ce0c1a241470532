"""The operator of the dual problem, `A = hK`: dense, or of low rank from some of its columns (T6.1)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.margins.readout import Rows

_LIGHT_COUPLING = (
    0.3  # of the rows that a Newton direction treats alone, to the others: it converges at about its square
)


class SymmetricOperator(Protocol):
    """A symmetric positive semi-definite matrix `A`, given by its products."""

    @property
    def diagonal(self) -> Float[Tensor, " a"]:
        """The diagonal of `A`."""
        ...

    def scaled(self, factor: float) -> "SymmetricOperator":
        """`factor · A`."""
        ...

    def double(self) -> "SymmetricOperator":
        """The operator in float64."""
        ...

    def matmul(self, weights: Float[Tensor, " a *sides"]) -> Float[Tensor, " a *sides"]:
        """`A p`."""
        ...

    def factor(self, weights: Float[Tensor, " a"], temperature: float) -> "ShiftedFactor":
        """A factor of `T + P^½ A P^½`, `P = diag(weights)`."""
        ...


class ShiftedFactor(ABC):
    """`(T + P^½ A P^½)⁻¹` at given weights `P = diag(p)`."""

    root: Float[Tensor, " a"]  # √p

    @property
    @abstractmethod
    def operations(self) -> float:
        """The operations that it took."""

    @abstractmethod
    def solve(self, sides: Float[Tensor, "a sides"]) -> Float[Tensor, "a sides"]:
        """The product of the inverse with `sides`."""

    def direction(self, slope: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """The Newton direction `d(log p)` on the simplex against this slope of the objective."""
        newton, normal = self.solve(torch.stack([-self.root * slope, self.root], 1)).unbind(1)
        return (newton - (self.root @ newton) / (self.root @ normal) * normal) / self.root


@dataclass(frozen=True)
class DenseOperator:
    """`A = scale · matrix`.

    >>> DenseOperator(torch.ones(2, 2), 0.5).matmul(torch.tensor([1.0, 2.0]))
    tensor([1.5000, 1.5000])
    """

    matrix: Float[Tensor, "a a"]
    scale: float = 1.0

    @property
    def diagonal(self) -> Float[Tensor, " a"]:
        """The diagonal of `A`."""
        return self.scale * self.matrix.diagonal()

    def scaled(self, factor: float) -> "DenseOperator":
        """`factor · A`."""
        return replace(self, scale=factor * self.scale)

    def double(self) -> "DenseOperator":
        """The operator in float64."""
        return replace(self, matrix=self.matrix.double())

    def matmul(self, weights: Float[Tensor, " a *sides"]) -> Float[Tensor, " a *sides"]:
        """`A p`."""
        return self.scale * (self.matrix @ weights)

    def factor(self, weights: Float[Tensor, " a"], temperature: float) -> "DenseFactor":
        """A Cholesky factor on the heavy rows."""
        stiffness = weights * self.diagonal
        heavy = heavy_rows(stiffness, temperature)
        root = weights[heavy].sqrt()
        scaled = self.matrix[heavy[:, None], heavy].mul_(self.scale * root).mul_(root[:, None])
        scaled.diagonal().add_(temperature)
        cholesky = torch.linalg.cholesky_ex(scaled).L
        return DenseFactor(self, weights.sqrt(), temperature + stiffness, heavy, cholesky)


@dataclass(frozen=True)
class DenseFactor(ShiftedFactor):
    """A Cholesky factor of the heavy rows; the others are eliminated by their diagonal.

    >>> DenseOperator(2 * torch.eye(2)).factor(torch.tensor([1.0, 0.5]), 1.0).solve(torch.ones(2, 1)).T
    tensor([[0.3333, 0.5000]])
    """

    operator: DenseOperator
    root: Float[Tensor, " a"]
    diagonal: Float[Tensor, " a"]  # T + p A_ii
    heavy: Rows
    cholesky: Float[Tensor, "heavy heavy"]

    @property
    def operations(self) -> float:
        """The operations that it took."""
        return cholesky_operations(len(self.heavy))

    def solve(self, sides: Float[Tensor, "a sides"]) -> Float[Tensor, "a sides"]:
        """The product of the inverse with `sides`."""
        root = self.root[:, None]
        solved = torch.cholesky_solve(sides[self.heavy], self.cholesky)
        pull = self.operator.matmul(torch.zeros_like(sides).index_copy(0, self.heavy, root[self.heavy] * solved))
        return ((sides - root * pull) / self.diagonal[:, None]).index_copy(0, self.heavy, solved)


@dataclass(frozen=True)
class LowRankOperator:
    """`A = scale · F Fᵀ`.

    >>> LowRankOperator(torch.tensor([[1.0], [2.0]]), 0.5).matmul(torch.tensor([1.0, 1.0]))
    tensor([1.5000, 3.0000])
    """

    factor_matrix: Float[Tensor, "a r"]  # F
    scale: float = 1.0

    @classmethod
    def through(cls, columns: Float[Tensor, "a r"], places: Rows) -> "LowRankOperator":
        """The matrix of least trace, `C W⁺ Cᵀ`, that has these columns `C` at `places` (Nyström).

        Williams & Seeger, *Using the Nyström method to speed up kernel machines*, NIPS 2000.

        >>> whole = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 3.0]])
        >>> LowRankOperator.through(whole[:, :1], torch.tensor([0])).matmul(torch.eye(3))
        tensor([[2.0000, 0.0000, 1.0000],
                [0.0000, 0.0000, 0.0000],
                [1.0000, 0.0000, 0.5000]])
        """
        values, vectors = torch.linalg.eigh(columns[places].double())
        kept = values > len(places) * torch.finfo(columns.dtype).eps * values[-1]
        return cls(columns @ (vectors[:, kept] / values[kept].sqrt()).to(columns))

    @property
    def diagonal(self) -> Float[Tensor, " a"]:
        """The diagonal of `A`."""
        return self.scale * self.factor_matrix.square().sum(1)

    def scaled(self, factor: float) -> "LowRankOperator":
        """`factor · A`."""
        return replace(self, scale=factor * self.scale)

    def double(self) -> "LowRankOperator":
        """The operator in float64."""
        return replace(self, factor_matrix=self.factor_matrix.double())

    def matmul(self, weights: Float[Tensor, " a *sides"]) -> Float[Tensor, " a *sides"]:
        """`A p`."""
        return self.scale * (self.factor_matrix @ (self.factor_matrix.T @ weights))

    def factor(self, weights: Float[Tensor, " a"], temperature: float) -> "LowRankFactor":
        """By the Woodbury identity, a Cholesky factor of `T/scale + Fᵀ P F`."""
        inner = (self.factor_matrix * weights[:, None]).T @ self.factor_matrix
        inner.diagonal().add_(temperature / self.scale)
        return LowRankFactor(self.factor_matrix, weights.sqrt(), temperature, torch.linalg.cholesky_ex(inner).L)


@dataclass(frozen=True)
class LowRankFactor(ShiftedFactor):
    """`(1 - P^½ F (T/scale + Fᵀ P F)⁻¹ Fᵀ P^½) / T`.

    >>> LowRankOperator(torch.ones(2, 1)).factor(torch.tensor([0.5, 0.5]), 1.0).solve(torch.ones(2, 1)).T
    tensor([[0.5000, 0.5000]])
    """

    factor_matrix: Float[Tensor, "a r"]  # F
    root: Float[Tensor, " a"]
    temperature: float
    cholesky: Float[Tensor, "r r"]

    @property
    def operations(self) -> float:
        """The operations that it took."""
        return gram_operations(*self.factor_matrix.shape) + cholesky_operations(len(self.cholesky))

    def solve(self, sides: Float[Tensor, "a sides"]) -> Float[Tensor, "a sides"]:
        """The product of the inverse with `sides`."""
        root = self.root[:, None]
        inner = torch.cholesky_solve(self.factor_matrix.T @ (root * sides), self.cholesky)
        return (sides - root * (self.factor_matrix @ inner)) / self.temperature


def cholesky_operations(rows: int) -> float:
    """Operations of a Cholesky factor."""
    return rows**3 / 3


def gram_operations(rows: int, columns: int) -> float:
    """Operations of `Fᵀ F`, or of the product of `F` with a square matrix."""
    return 2.0 * rows * columns**2


def heavy_rows(stiffness: Float[Tensor, " b"], temperature: float) -> Rows:
    """All rows but those whose stiffnesses `p_i A_ii` together stay below `_LIGHT_COUPLING² T`."""
    ascending, order = stiffness.sort()
    return order[ascending.cumsum(0) > _LIGHT_COUPLING**2 * temperature].sort().values
