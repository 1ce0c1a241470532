"""Weight tensors as matrices (docs/theory.md §6)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def written(
    weight: Float[Tensor, "out in *taps"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "out columns"]:
    """The matrix that a layer writes with: `out × (in·taps)`, with the bias as one more column."""
    matrix = weight if weight.ndim == 2 else weight.flatten(1)
    return matrix if bias is None else torch.cat([matrix, bias[:, None]], dim=1)


def read(weight: Float[Tensor, "out in *taps"]) -> Float[Tensor, "rows in"]:
    """The matrix that a layer reads with: `(out·taps) × in`."""
    return weight.transpose(1, -1).flatten(0, -2) if weight.ndim > 2 else weight


@dataclass(frozen=True)
class Unfolding:
    """One weight by name, as the matrix that it writes with (and its bias), or reads with.

    >>> kernel = torch.ones(4, 3, 2, 2)
    >>> [tuple(Unfolding("w", reads=reads).matrix({"w": kernel}).shape) for reads in (False, True)]
    [(4, 12), (16, 3)]
    """

    weight: str
    bias: str | None = None
    reads: bool = False

    def matrix(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "rows columns"]:
        """The matrix; a view of the weight where it can be one."""
        weight = tensors[self.weight]
        if self.reads:
            return read(weight)
        return written(weight, tensors[self.bias] if self.bias else None)

    def canonical(self, tensors: Mapping[str, Tensor]) -> "Unfolding":
        """The same matrix by one name: read or written, a weight without taps and bias is the same.

        >>> Unfolding("w", reads=True).canonical({"w": torch.ones(4, 3)})
        Unfolding(weight='w', bias=None, reads=False)
        """
        plain = self.bias is None and tensors[self.weight].ndim == 2
        return Unfolding(self.weight) if plain else self
