"""The quadratic form of the convex problem, `A = hK`: whole, or on the rows that weigh most (THEORY T6.1)."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.readout import Rows

_COUPLING = 0.3  # of the rows that a Newton direction treats alone, to the others: it converges at about that rate


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

    def times(self, weights: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
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

    def times(self, weights: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """`A p`."""
        return self.matrix @ weights

    def solve(
        self, weights: Float[Tensor, " a"], temperature: float, sides: Float[Tensor, "a sides"]
    ) -> Float[Tensor, "a sides"]:
        """`(T + P^½ A P^½)⁻¹ sides`: by Cholesky on the rows that weigh, and on the others what these lead to."""
        root, stiffness = weights.sqrt()[:, None], (weights * self.diagonal)[:, None]
        heavy = heavy_rows(stiffness[:, 0], temperature)
        scaled = root[heavy] * self.matrix[heavy[:, None], heavy] * root[heavy, 0]
        scaled.diagonal().add_(temperature)
        solved = torch.cholesky_solve(sides[heavy], torch.linalg.cholesky_ex(scaled).L)
        led = self.matrix[:, heavy] @ (root[heavy] * solved)
        return ((sides - root * led) / (temperature + stiffness)).index_copy(0, heavy, solved)


@dataclass(frozen=True)
class Padded:
    """A matrix on some of the rows, zero on the others.

    >>> Padded(Dense(torch.ones(2, 2)), torch.tensor([0, 2]), 3).times(torch.tensor([1.0, 5.0, 2.0]))
    tensor([3., 0., 3.])
    """

    inner: Dense
    rows: Rows
    size: int

    @property
    def diagonal(self) -> Float[Tensor, " a"]:
        """Its diagonal."""
        return self._spread(self.inner.diagonal)

    def scaled(self, factor: float) -> "Padded":
        """`factor · A`."""
        return replace(self, inner=self.inner.scaled(factor))

    def double(self) -> "Padded":
        """The same in float64."""
        return replace(self, inner=self.inner.double())

    def times(self, weights: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """`A p`."""
        return self._spread(self.inner.times(weights[self.rows]))

    def solve(
        self, weights: Float[Tensor, " a"], temperature: float, sides: Float[Tensor, "a sides"]
    ) -> Float[Tensor, "a sides"]:
        """`(T + P^½ A P^½)⁻¹ sides`."""
        solved = self.inner.solve(weights[self.rows], temperature, sides[self.rows])
        return (sides / temperature).index_copy(0, self.rows, solved)

    def _spread(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.size).index_copy(0, self.rows, values)


def heavy_rows(stiffness: Tensor, temperature: float) -> Rows:
    """All rows but those whose stiffnesses `p_i A_ii` together stay below `_COUPLING² T`."""
    ascending, order = stiffness.sort()
    return order[ascending.cumsum(0) > _COUPLING**2 * temperature].sort().values
