"""Commutants: which changes of basis an interface allows, and the quantity that each conserves (THEORY §1)."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from jaxtyping import Float
from torch import Tensor


class Commutant(Protocol):
    """The matrices `A` with `φ(e^{tA} z) = e^{tA} φ(z)`."""

    @property
    def kind(self) -> str:
        """`linear` or `vertex`."""
        ...

    @property
    def count(self) -> int:
        """Linearly independent conserved quadratics."""
        ...

    def project(self, matrix: Float[Tensor, "d d"]) -> Tensor:
        """The part of a `d × d` matrix that the commutant sees."""
        ...

    def second_moment(self, rows: Float[Tensor, "d k"]) -> Tensor:
        """The projection of `W Wᵀ`, without forming what it discards."""
        ...


@dataclass(frozen=True)
class Full:
    """All `d × d` matrices: an interface that is the identity, as between linear layers.

    >>> Full(3).count
    6
    """

    size: int
    kind: ClassVar[str] = "linear"

    @property
    def count(self) -> int:
        """`d (d + 1) / 2`: a symmetric matrix."""
        return self.size * (self.size + 1) // 2

    def project(self, matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
        """The matrix itself."""
        return matrix

    def second_moment(self, rows: Float[Tensor, "d k"]) -> Float[Tensor, "d d"]:
        """`W Wᵀ`."""
        return rows @ rows.T


@dataclass(frozen=True)
class Diagonal:
    """Diagonal matrices: an elementwise positively homogeneous map, as ReLU.

    >>> Diagonal(3).project(torch.ones(3, 3))
    tensor([1., 1., 1.])
    """

    size: int
    kind: ClassVar[str] = "vertex"

    @property
    def count(self) -> int:
        """One for each neuron."""
        return self.size

    def project(self, matrix: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
        """The diagonal."""
        return matrix.diagonal()

    def second_moment(self, rows: Float[Tensor, "d k"]) -> Float[Tensor, " d"]:
        """`‖W_v‖²` for each row."""
        return rows.square().sum(1)
