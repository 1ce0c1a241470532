"""Anderson acceleration of a fixed-point iteration that need not contract."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_MEMORY = 20  # differences kept
_RESOLVED = 50  # roundings of the largest eigenvalue, below which a direction is rounding


class SparseChange(NamedTuple):
    """The difference of two tensors, as places and values where they differ."""

    places: Tensor
    values: Tensor

    @classmethod
    def between(cls, earlier: Tensor, later: Tensor) -> "SparseChange":
        """The entries of `later - earlier` that are not zero."""
        difference = (later - earlier).flatten()
        places = difference.nonzero().squeeze(1)
        return cls(places, difference[places])


@dataclass(frozen=True)
class Anderson:
    """The history of an iteration `x → G(x)`: differences of residuals and of images, the latest last.

    `x` is several tensors together. The residual by which a mixture is judged is that of the first: the weights, where
    errors are in the units that matter (Anderson 1965; Walker & Ni 2011, type II).
    """

    residual: Tensor | None = None
    images: tuple[Tensor, ...] = ()
    residuals: tuple[Tensor, ...] = ()
    gram: Tensor | None = None  # inner products of the residuals
    changes: tuple[tuple[SparseChange, ...], ...] = ()

    def next_iterate(self, entered: Tensor, images: tuple[Tensor, ...]) -> tuple["Anderson", tuple[Tensor, ...]]:
        """The next `x`, from the images `G(x)` of this one; `entered` is the first tensor of this `x`.

        >>> state, x = Anderson(), torch.tensor([1.0, 1.0]).double()
        >>> for _ in range(4):  # x → Ax + b with an eigenvalue of -2: plain iteration diverges
        ...     state, (x,) = state.next_iterate(x, (torch.stack([-2 * x[0] + 3, 0.5 * x[1] + 1]),))
        >>> x
        tensor([1., 2.], dtype=torch.float64)
        """
        residual = images[0] - entered
        if self.residual is None:
            return Anderson(residual, images), images
        differences = (*self.residuals, residual - self.residual)[-_MEMORY:]
        gram = _bordered(self.gram, differences)
        moved = tuple(SparseChange.between(*both) for both in zip(self.images, images, strict=True))
        changes = (*self.changes, moved)[-_MEMORY:]
        shares = _least_squares(gram, _products(differences, residual))
        mixed = [image.clone() for image in images]
        for share, change in zip(shares.tolist(), changes, strict=True):
            for total, (places, values) in zip(mixed, change, strict=True):
                total.view(-1).index_add_(0, places, values, alpha=-share)
        return Anderson(residual, images, differences, gram, changes), tuple(mixed)


def _bordered(gram: Tensor | None, vectors: Sequence[Tensor]) -> Tensor:
    """The inner products of all vectors, from those of all but the last (and of one before the first)."""
    row = _products(vectors, vectors[-1])
    if gram is None:
        return row[None]
    earlier = gram[len(gram) - len(vectors) + 1 :, len(gram) - len(vectors) + 1 :]
    return torch.cat([torch.cat([earlier, row[:-1, None]], 1), row[None]])


def _products(vectors: Sequence[Tensor], other: Tensor) -> Tensor:
    return torch.stack([torch.dot(vector, other) for vector in vectors])


def _least_squares(gram: Tensor, products: Tensor) -> Tensor:
    """`argmin ‖target - columns · γ‖`, by normal equations of unit columns; directions of rounding are left out.

    `gram` and `products` are those of the columns with themselves, and with the target.
    """
    limits = torch.finfo(gram.dtype)
    unit = gram.diagonal().clamp(min=limits.tiny).rsqrt()
    values, vectors = torch.linalg.eigh(unit[:, None] * gram * unit)
    inverse = torch.where(values > _RESOLVED * limits.eps * values[-1], 1 / values, 0.0)
    return unit * (vectors @ (inverse * (vectors.mT @ (unit * products))))
