"""The matrices that commute with the map at an interface, and what follows from each kind.

A commutant says which part of the moments `M = Σ_p X_p Y_pᵀ - Σ_c Y_cᵀ X_c` (one `width × width` matrix for each
block) belongs to a symmetry. With `Y = W` and `X = G`, the gradient, that part vanishes (T1); with `X = Y = W` its
symmetric part is conserved (T2); with `X = Y = G` it is the drift of a gradient step (T2.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.errors import InputError

Moments = Float[Tensor, "blocks width width"]
Slices = Float[Tensor, "blocks _copies width _"]


@runtime_checkable
class Commutant(Protocol):
    """Which matrices act on the `blocks` pieces of `width` components at an interface."""

    kind: ClassVar[str]

    @property
    def shape(self) -> tuple[int, int]:
        """Blocks and width."""
        ...

    @property
    def count(self) -> int:
        """Linearly independent conserved quantities."""
        ...

    def moments(self, left: Sequence[Slices], right: Sequence[Slices], degrees: Sequence[float]) -> Moments:
        """`Σ degree · X Yᵀ` over the members, transposed for consumers."""
        ...

    def project(self, moments: Moments) -> Moments:
        """The part of each matrix that lies in the commutant (orthogonal projection)."""
        ...

    def folded(self, moments: Moments) -> Tensor:
        """Projected moments in their natural shape: a vector of rates, a matrix, or one matrix for each block."""
        ...


class Matrices:
    """All matrices on each block: the base of the commutants that differ only in how many blocks there are."""

    def moments(self, left: Sequence[Slices], right: Sequence[Slices], degrees: Sequence[float]) -> Moments:
        """`Σ degree · X Yᵀ`, summed over copies; a consumer (negative degree) acts by `-Aᵀ`, which swaps the two."""
        total = 0
        for x, y, degree in zip(left, right, degrees, strict=True):
            total = total + degree * (_gram(x, y) if degree > 0 else _gram(y, x))
        return torch.as_tensor(total)

    def project(self, moments: Moments) -> Moments:
        """Everything."""
        return moments


def _gram(x: Slices, y: Slices) -> Moments:
    if x.shape[2] == 1:  # one rate a block: no need for matrices
        return (x * y).flatten(1).sum(1)[:, None, None]
    if x.shape[1] == 1:
        return x[:, 0] @ y[:, 0].mT
    return x.transpose(1, 2).flatten(2) @ y.transpose(1, 2).flatten(2).mT


@dataclass(frozen=True)
class Full(Matrices):
    """All `d × d` matrices: the map between is linear (matrix-wise laws).

    >>> Full(3).count
    6
    """

    size: int
    kind: ClassVar[str] = "linear"

    @property
    def shape(self) -> tuple[int, int]:
        """One block of `d` components."""
        return 1, self.size

    @property
    def count(self) -> int:
        """Symmetric matrices."""
        return self.size * (self.size + 1) // 2

    def folded(self, moments: Moments) -> Float[Tensor, "d d"]:
        """The `d × d` matrix."""
        return moments[0]


@dataclass(frozen=True)
class Diagonal(Matrices):
    """One rate for each of `d` units: an elementwise positively homogeneous map, as ReLU (vertex-wise laws).

    >>> Diagonal(3).folded(torch.arange(3.0)[:, None, None])
    tensor([0., 1., 2.])
    """

    size: int
    kind: ClassVar[str] = "vertex"

    @property
    def shape(self) -> tuple[int, int]:
        """`d` blocks of one component."""
        return self.size, 1

    @property
    def count(self) -> int:
        """One for each unit."""
        return self.size

    def folded(self, moments: Moments) -> Float[Tensor, " d"]:
        """The vector of `d`."""
        return moments[:, 0, 0]


@dataclass(frozen=True)
class Scalar(Matrices):
    """One rate for all components together: a normalisation, or units that a map ties to each other.

    >>> Scalar().folded(torch.ones(1, 1, 1))
    tensor(1.)
    """

    kind: ClassVar[str] = "scalar"

    @property
    def shape(self) -> tuple[int, int]:
        """One block of one component."""
        return 1, 1

    @property
    def count(self) -> int:
        """One."""
        return 1

    def folded(self, moments: Moments) -> Float[Tensor, ""]:
        """A number."""
        return moments[0, 0, 0]


@dataclass(frozen=True)
class Blocks(Matrices):
    """All matrices within each of `number` blocks of `width` components: heads, groups, pattern classes.

    >>> Blocks(2, 3).count
    12
    """

    number: int
    width: int
    kind: ClassVar[str] = "blocks"

    @property
    def shape(self) -> tuple[int, int]:
        """As many blocks, each of that width."""
        return self.number, self.width

    @property
    def count(self) -> int:
        """Symmetric matrices in each block."""
        return self.number * self.width * (self.width + 1) // 2

    def folded(self, moments: Moments) -> Moments:
        """One matrix for each block."""
        return moments


@dataclass(frozen=True)
class ComplexPlanes(Matrices):
    """Complex numbers on each of `number` planes: the commutant of rotations by distinct angles.

    >>> ComplexPlanes(1).project(torch.tensor([[[3.0, 1.0], [0.0, 1.0]]]))
    tensor([[[ 2.0000,  0.5000],
             [-0.5000,  2.0000]]])
    """

    number: int
    kind: ClassVar[str] = "planes"

    @property
    def shape(self) -> tuple[int, int]:
        """As many blocks of two components."""
        return self.number, 2

    @property
    def count(self) -> int:
        """The trace on each plane; the rotation itself is antisymmetric and conserves nothing."""
        return self.number

    def project(self, moments: Moments) -> Moments:
        """`½ tr M` on the diagonal and `½ (M_12 - M_21)` beside it."""
        real = moments.diagonal(dim1=-2, dim2=-1).mean(-1)
        imaginary = (moments[:, 0, 1] - moments[:, 1, 0]) / 2
        return torch.stack([torch.stack([real, imaginary], -1), torch.stack([-imaginary, real], -1)], -2)

    def folded(self, moments: Moments) -> Float[Tensor, " planes"]:
        """The trace on each plane."""
        return moments.diagonal(dim1=-2, dim2=-1).sum(-1)


@dataclass(frozen=True)
class Antisymmetric(Matrices):
    """Antisymmetric matrices only, as under tied weights: an identity between gradients, and nothing conserved.

    >>> Antisymmetric(1, 3).count
    0
    """

    number: int
    width: int
    kind: ClassVar[str] = "antisymmetric"

    @property
    def shape(self) -> tuple[int, int]:
        """Blocks of `d` components."""
        return self.number, self.width

    @property
    def count(self) -> int:
        """None."""
        return 0

    def project(self, moments: Moments) -> Moments:
        """The antisymmetric part."""
        return (moments - moments.mT) / 2

    def folded(self, moments: Moments) -> Tensor:
        """One matrix, or one for each block."""
        return moments if self.number > 1 else moments[0]


@dataclass(frozen=True)
class Shift:
    """Translations along one direction: what reads the vector ignores its mean over each group of `width`.

    The law is linear in the weights: the sum of every producer's slices over a group. There are `number` groups and
    `columns` such sums for each.
    """

    number: int
    width: int
    columns: int
    kind: ClassVar[str] = "shift"

    @property
    def shape(self) -> tuple[int, int]:
        """Groups and their size."""
        return self.number, self.width

    @property
    def count(self) -> int:
        """One for each group and each column of a producer."""
        return self.number * self.columns

    def moments(self, left: Sequence[Slices], right: Sequence[Slices], degrees: Sequence[float]) -> Tensor:
        """`1ᵀ X` for each producer, side by side."""
        return torch.cat([x.sum(2).flatten(1) for x in left], 1)

    def project(self, moments: Tensor) -> Tensor:
        """Everything."""
        return moments

    def folded(self, moments: Tensor) -> Tensor:
        """One row for each group."""
        return moments


# Commutants put together -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product(Matrices):
    """One commutant on each part of a vector, none across: a rotated half and one left alone, classes of unequal size.

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

    def folded(self, moments: Moments) -> Float[Tensor, "d d"]:
        """The whole matrix."""
        return moments[0]


@dataclass(frozen=True)
class Intersection(Matrices):
    """The intersection of commutants of one vector: the maps follow one another, or different readers apply them.

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

    def folded(self, moments: Moments) -> Float[Tensor, "d d"]:
        """The whole matrix."""
        return moments[0]


ROUNDS = 100  # of alternating projections; the commutants of this room need two


def _in_turn(parts: Sequence[Commutant], matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    for part in parts:
        matrix = projection(part, matrix)
    return matrix


def projection(commutant: Commutant, matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The part of a matrix on all components, copies included, that acts as the commutant does.

    Components are ordered by block, place in the block, copy; every copy moves alike.

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
