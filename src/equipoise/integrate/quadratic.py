"""The quadratic form of the convex problem, `A = hK`: whole, or of low rank from some of its columns (T6.1)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.readout import Rows

_COUPLING = 0.3  # of the rows that a Newton direction treats alone, to the others: it converges at about its square


class Quadratic(Protocol):
    """A symmetric positive semi-definite matrix `A`, known by its products."""

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

    def times(self, weights: Float[Tensor, " a *sides"]) -> Float[Tensor, " a *sides"]:
        """`A p`."""
        ...

    def factored(self, weights: Float[Tensor, " a"], temperature: float) -> "Factor":
        """A factor of `T + P^½ A P^½`, `P = diag(weights)`."""
        ...


class Factor(ABC):
    """`(T + P^½ A P^½)⁻¹` at the weights where it was made."""

    root: Float[Tensor, " a"]  # √p

    @abstractmethod
    def solve(self, sides: Float[Tensor, "a sides"]) -> Float[Tensor, "a sides"]:
        """The product with `sides`."""

    def direction(self, slope: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """The Newton direction `d(log p)` on the simplex against this slope of the objective."""
        newton, normal = self.solve(torch.stack([-self.root * slope, self.root], 1)).unbind(1)
        return (newton - (self.root @ newton) / (self.root @ normal) * normal) / self.root


@dataclass(frozen=True)
class Whole:
    """`A = scale · matrix`.

    >>> Whole(torch.ones(2, 2), 0.5).times(torch.tensor([1.0, 2.0]))
    tensor([1.5000, 1.5000])
    """

    matrix: Float[Tensor, "a a"]
    scale: float = 1.0

    @property
    def diagonal(self) -> Float[Tensor, " a"]:
        """Its diagonal."""
        return self.scale * self.matrix.diagonal()

    def scaled(self, factor: float) -> "Whole":
        """`factor · A`."""
        return replace(self, scale=factor * self.scale)

    def double(self) -> "Whole":
        """The same in float64."""
        return replace(self, matrix=self.matrix.double())

    def times(self, weights: Float[Tensor, " a *sides"]) -> Float[Tensor, " a *sides"]:
        """`A p`."""
        return self.scale * (self.matrix @ weights)

    def factored(self, weights: Float[Tensor, " a"], temperature: float) -> "WholeFactor":
        """A Cholesky factor on the rows that weigh."""
        stiffness = weights * self.diagonal
        heavy = heavy_rows(stiffness, temperature)
        root = weights[heavy].sqrt()
        scaled = self.matrix[heavy[:, None], heavy].mul_(self.scale * root).mul_(root[:, None])
        scaled.diagonal().add_(temperature)
        cholesky = torch.linalg.cholesky_ex(scaled).L
        return WholeFactor(self, weights.sqrt(), temperature + stiffness, heavy, cholesky)


@dataclass(frozen=True)
class WholeFactor(Factor):
    """Rows that hardly weigh follow the others.

    >>> Whole(2 * torch.eye(2)).factored(torch.tensor([1.0, 0.5]), 1.0).solve(torch.ones(2, 1)).T
    tensor([[0.3333, 0.5000]])
    """

    quadratic: Whole
    root: Float[Tensor, " a"]
    alone: Float[Tensor, " a"]  # T + p A_ii
    heavy: Rows
    cholesky: Float[Tensor, "heavy heavy"]

    def solve(self, sides: Float[Tensor, "a sides"]) -> Float[Tensor, "a sides"]:
        """The product with `sides`."""
        root = self.root[:, None]
        solved = torch.cholesky_solve(sides[self.heavy], self.cholesky)
        pull = self.quadratic.times(torch.zeros_like(sides).index_copy(0, self.heavy, root[self.heavy] * solved))
        return ((sides - root * pull) / self.alone[:, None]).index_copy(0, self.heavy, solved)


@dataclass(frozen=True)
class LowRank:
    """`A = scale · F Fᵀ`.

    >>> LowRank(torch.tensor([[1.0], [2.0]]), 0.5).times(torch.tensor([1.0, 1.0]))
    tensor([1.5000, 3.0000])
    """

    across: Float[Tensor, "a r"]  # F
    scale: float = 1.0

    @classmethod
    def through(cls, columns: Float[Tensor, "a r"], places: Rows) -> "LowRank":
        """The matrix of least trace, `C W⁺ Cᵀ`, that has these columns `C` at `places` (Nyström).

        Williams & Seeger, *Using the Nyström method to speed up kernel machines*, NIPS 2000.

        >>> whole = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 3.0]])
        >>> LowRank.through(whole[:, :1], torch.tensor([0])).times(torch.eye(3))
        tensor([[2.0000, 0.0000, 1.0000],
                [0.0000, 0.0000, 0.0000],
                [1.0000, 0.0000, 0.5000]])
        """
        values, vectors = torch.linalg.eigh(columns[places].double())
        kept = values > len(places) * torch.finfo(columns.dtype).eps * values[-1]
        return cls(columns @ (vectors[:, kept] / values[kept].sqrt()).to(columns))

    @property
    def diagonal(self) -> Float[Tensor, " a"]:
        """Its diagonal."""
        return self.scale * self.across.square().sum(1)

    def scaled(self, factor: float) -> "LowRank":
        """`factor · A`."""
        return replace(self, scale=factor * self.scale)

    def double(self) -> "LowRank":
        """The same in float64."""
        return replace(self, across=self.across.double())

    def times(self, weights: Float[Tensor, " a *sides"]) -> Float[Tensor, " a *sides"]:
        """`A p`."""
        return self.scale * (self.across @ (self.across.T @ weights))

    def factored(self, weights: Float[Tensor, " a"], temperature: float) -> "LowRankFactor":
        """By the Woodbury identity, a Cholesky factor of `T/scale + Fᵀ P F`."""
        inner = (self.across * weights[:, None]).T @ self.across
        inner.diagonal().add_(temperature / self.scale)
        return LowRankFactor(self.across, weights.sqrt(), temperature, torch.linalg.cholesky_ex(inner).L)


@dataclass(frozen=True)
class LowRankFactor(Factor):
    """`(1 - P^½ F (T/scale + Fᵀ P F)⁻¹ Fᵀ P^½) / T`.

    >>> LowRank(torch.ones(2, 1)).factored(torch.tensor([0.5, 0.5]), 1.0).solve(torch.ones(2, 1)).T
    tensor([[0.5000, 0.5000]])
    """

    across: Float[Tensor, "a r"]  # F
    root: Float[Tensor, " a"]
    temperature: float
    cholesky: Float[Tensor, "r r"]

    def solve(self, sides: Float[Tensor, "a sides"]) -> Float[Tensor, "a sides"]:
        """The product with `sides`."""
        root = self.root[:, None]
        inner = torch.cholesky_solve(self.across.T @ (root * sides), self.cholesky)
        return (sides - root * (self.across @ inner)) / self.temperature


def heavy_rows(stiffness: Float[Tensor, " b"], temperature: float) -> Rows:
    """All rows but those whose stiffnesses `p_i A_ii` together stay below `_COUPLING² T`."""
    ascending, order = stiffness.sort()
    return order[ascending.cumsum(0) > _COUPLING**2 * temperature].sort().values
