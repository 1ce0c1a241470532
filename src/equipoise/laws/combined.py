"""Commutants put together: what commutes with several maps at once, and several vectors side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.errors import InputError
from equipoise.laws.commutant import Commutant, Matrices, Moments

Matrix = Float[Tensor, "d d"]


@dataclass(frozen=True)
class Product(Matrices):
    """One commutant on each part of a vector, none across: a rotated half and one left alone, classes of unequal size.

    >>> from equipoise.laws.commutant import ComplexPlanes, Full
    >>> Product((ComplexPlanes(1), Full(2))).count
    4
    """

    parts: tuple[Commutant, ...]
    kind: ClassVar[str] = "product"

    @property
    def shape(self) -> tuple[int, int]:
        """One block of all components."""
        return 1, sum(math.prod(part.shape) for part in self.parts)

    @property
    def count(self) -> int:
        """Those of all parts."""
        return sum(part.count for part in self.parts)

    def project(self, moments: Moments) -> Moments:
        """Each part in its place on the diagonal, zero beside it."""
        sizes = [math.prod(part.shape) for part in self.parts]
        pieces = [row.split(sizes, 1)[place] for place, row in enumerate(moments[0].split(sizes, 0))]
        return torch.block_diag(*(projection(*pair) for pair in zip(self.parts, pieces, strict=True)))[None]

    def folded(self, moments: Moments) -> Matrix:
        """The whole matrix."""
        return moments[0]


@dataclass(frozen=True)
class Intersection(Matrices):
    """What several commutants of one vector share: the maps follow one another, or different readers apply them.

    >>> from equipoise.laws.commutant import Blocks, Diagonal
    >>> Intersection((Blocks(2, 3), Diagonal(6))).count
    6
    """

    parts: tuple[Commutant, ...]
    kind: ClassVar[str] = "intersection"

    def __post_init__(self):
        sizes = [math.prod(part.shape) for part in self.parts]
        if any(max(sizes) % size for size in sizes):
            raise InputError(
                expected="commutants of one vector",
                found=f"sizes {', '.join(map(str, sizes))}",
                remedy="use Product for vectors side by side",
            )

    @property
    def shape(self) -> tuple[int, int]:
        """One block of all components."""
        return 1, max(math.prod(part.shape) for part in self.parts)

    @property
    def count(self) -> int:
        """The trace of the projection on symmetric matrices."""
        size = self.shape[1]
        total = 0.0
        for row, column in torch.triu_indices(size, size).T.tolist():
            unit = torch.zeros(1, size, size, dtype=torch.float64)
            unit[0, row, column] = unit[0, column, row] = 1
            total += float((self.project(unit) * unit).sum() / unit.square().sum())
        return round(total)

    def project(self, moments: Moments) -> Moments:
        """Projections in turn *(von Neumann)*, until none changes anything; at once where they commute."""
        matrix = moments[0]
        for _ in range(ROUNDS):
            before, matrix = matrix, _in_turn(self.parts, matrix)
            if (matrix - before).norm() <= torch.finfo(matrix.dtype).eps * before.norm():
                break
        return matrix[None]

    def folded(self, moments: Moments) -> Matrix:
        """The whole matrix."""
        return moments[0]


ROUNDS = 100  # of alternating projections; the commutants of this room need two


def _in_turn(parts: Sequence[Commutant], matrix: Matrix) -> Matrix:
    for part in parts:
        matrix = projection(part, matrix)
    return matrix


def projection(commutant: Commutant, matrix: Matrix) -> Matrix:
    """The part of a matrix on all components, copies included, that acts as the commutant does.

    Components are ordered by block, place in the block, copy; every copy moves alike.

    >>> from equipoise.laws.commutant import Diagonal
    >>> projection(Diagonal(1), torch.tensor([[1.0, 5.0], [5.0, 3.0]]))
    tensor([[2., 0.],
            [0., 2.]])
    """
    blocks, width = commutant.shape
    copies = len(matrix) // (blocks * width)
    parted = matrix.reshape(2 * (blocks, width, copies))
    moments = torch.einsum("bwcbvc->bwv", parted) / copies
    alike = torch.einsum("bwv,bx,cy->bwcxvy", commutant.project(moments), _unit(blocks, matrix), _unit(copies, matrix))
    return alike.reshape(matrix.shape)


def _unit(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)
