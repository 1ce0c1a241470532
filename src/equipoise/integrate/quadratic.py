"""The quadratic form of the convex problem, `A = hK`, whole or on the rows that weigh most (THEORY T6.1)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.readout import Rows

_COUPLING = 0.3  # of the rows that a Newton direction treats alone, to the others: it converges at about its square


@dataclass(frozen=True)
class Quadratic:
    """A symmetric positive semi-definite matrix `A = scale · matrix`: of all rows, or of some and zero on the others.

    >>> Quadratic(torch.ones(2, 2), 0.5, torch.tensor([0, 2]), 3).times(torch.tensor([1.0, 5.0, 2.0]))
    tensor([1.5000, 0.0000, 1.5000])
    """

    matrix: Float[Tensor, "b b"]
    scale: float = 1.0
    rows: Rows | None = None  # those of the matrix; None: all
    size: int = 0  # how many there are, where the matrix has not all of them

    @property
    def diagonal(self) -> Float[Tensor, " a"]:
        """Its diagonal."""
        return self.spread(self.scale * self.matrix.diagonal())

    def scaled(self, factor: float) -> "Quadratic":
        """`factor · A`."""
        return replace(self, scale=factor * self.scale)

    def double(self) -> "Quadratic":
        """The same in float64."""
        return replace(self, matrix=self.matrix.double())

    def times(self, weights: Float[Tensor, " a *sides"]) -> Float[Tensor, " a *sides"]:
        """`A p`."""
        return self.spread(self.scale * (self.matrix @ self.pick(weights)))

    def pick(self, values: Float[Tensor, " a *sides"]) -> Float[Tensor, " b *sides"]:
        """The values of the matrix's own rows."""
        return values if self.rows is None else values[self.rows]

    def spread(self, values: Float[Tensor, " b *sides"]) -> Float[Tensor, " a *sides"]:
        """Values of the matrix's rows where they belong, zero elsewhere."""
        if self.rows is None:
            return values
        return values.new_zeros(self.size, *values.shape[1:]).index_copy(0, self.rows, values)

    def factored(self, weights: Float[Tensor, " a"], temperature: float) -> "Factor":
        """A Cholesky factor of `T + P^½ A P^½`, `P = diag(weights)`, on the rows that weigh."""
        stiffness = weights * self.diagonal
        heavy = heavy_rows(self.pick(stiffness), temperature)
        root = self.pick(weights)[heavy].sqrt()
        scaled = self.matrix[heavy[:, None], heavy].mul_(self.scale * root).mul_(root[:, None])
        scaled.diagonal().add_(temperature)
        cholesky = torch.linalg.cholesky_ex(scaled).L
        places = heavy if self.rows is None else self.rows[heavy]
        return Factor(self, weights.sqrt(), temperature + stiffness, places, cholesky)


@dataclass(frozen=True)
class Factor:
    """`(T + P^½ A P^½)⁻¹` at the weights where it was made: rows that hardly weigh follow the others."""

    quadratic: Quadratic
    root: Float[Tensor, " a"]  # √p
    alone: Float[Tensor, " a"]  # T + p A_ii
    heavy: Rows
    cholesky: Float[Tensor, "heavy heavy"]

    def solve(self, sides: Float[Tensor, "a sides"]) -> Float[Tensor, "a sides"]:
        """The product with `sides`.

        >>> Quadratic(2 * torch.eye(2)).factored(torch.tensor([1.0, 0.5]), 1.0).solve(torch.ones(2, 1)).T
        tensor([[0.3333, 0.5000]])
        """
        root = self.root[:, None]
        solved = torch.cholesky_solve(sides[self.heavy], self.cholesky)
        pull = self.quadratic.times(torch.zeros_like(sides).index_copy(0, self.heavy, root[self.heavy] * solved))
        return ((sides - root * pull) / self.alone[:, None]).index_copy(0, self.heavy, solved)

    def direction(self, slope: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """The Newton direction `d(log p)` on the simplex against this slope of the objective."""
        newton, normal = self.solve(torch.stack([-self.root * slope, self.root], 1)).unbind(1)
        return (newton - (self.root @ newton) / (self.root @ normal) * normal) / self.root


def heavy_rows(stiffness: Float[Tensor, " b"], temperature: float) -> Rows:
    """All rows but those whose stiffnesses `p_i A_ii` together stay below `_COUPLING² T`."""
    ascending, order = stiffness.sort()
    return order[ascending.cumsum(0) > _COUPLING**2 * temperature].sort().values
