"""The rows of a matrix that one process has, and what a sweep asks of them: products with thin blocks, and norms."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.linalg import SHORT

Block = Float[Tensor, "_ _"]  # rows are directions
Image = Float[Tensor, "_ _"]  # columns are theirs: so BLAS is fastest


@dataclass(frozen=True)
class Piece:
    """The rows of `W` that this process has, `offset` of them before, `rows` in all; or `turned`, its transpose.

    With a `bias`, `[W b]` is followed along with `W`; a turned matrix has none.
    """

    weight: Float[Tensor, "mine inputs"]
    bias: Float[Tensor, " mine"] | None
    offset: int
    rows: int
    turned: bool = False

    @classmethod
    def whole(cls, weight: Float[Tensor, "rows inputs"], bias: Float[Tensor, " rows"] | None = None) -> "Piece":
        """All rows."""
        return cls(weight, bias, 0, len(weight))

    @property
    def columns(self) -> int:
        """How long a direction is."""
        return self.rows if self.turned else self.weight.shape[1]

    @property
    def length(self) -> int:
        """How long its image is."""
        return self.weight.shape[1] if self.turned else self.rows

    @property
    def mine(self) -> slice:
        """The rows of this process among all."""
        return slice(self.offset, self.offset + self.weight.shape[0])

    @property
    def complete(self) -> bool:
        """Whether this process has all rows."""
        return self.weight.shape[0] == self.rows

    def push(self, block: Block, out: Image) -> None:
        """`W X` into `out`, where others' rows stay as they are."""
        if self.turned:
            torch.mm(self.weight.mT, block[:, self.mine].mT, out=out)
        else:
            torch.mm(self.weight, block.mT, out=out[self.mine])

    def pull(self, image: Image, out: Block) -> None:
        """The share of these rows in `(WᵀY)ᵀ`, into `out`; nothing asks it of a turned matrix."""
        torch.mm(image[self.mine].mT, self.weight, out=out)

    def deflated(self, left: Float[Tensor, " rows"], value: float, right: Float[Tensor, " _"]) -> Tensor:
        """`‖W - σ u vᵀ‖_F²` over these rows, turned or not, in float64; of `[W b]` where `v` is longer by one."""
        mine, inputs = left[self.mine] * value, self.weight.shape[1]
        rest = square(torch.addr(self.weight, mine, right[:inputs], alpha=-1))
        if self.bias is None or len(right) == inputs:
            return rest
        return rest + square(self.bias - mine * right[-1])


def square(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The sum of squares in float64, from short sums in the dtype itself.

    >>> float(square(torch.tensor([[3.0, 4.0], [6.0, 8.0]])))
    125.0
    """
    if tensor.ndim < 2 and tensor.numel() <= SHORT:
        return torch.linalg.vector_norm(tensor, dtype=torch.float64).square()
    if tensor.shape[-1:].numel() > SHORT:
        flat = tensor.reshape(-1)
        short = len(flat) - len(flat) % SHORT
        sums = torch.cat([torch.linalg.vector_norm(flat[:short].view(-1, SHORT), dim=1), flat[short:]])
    else:
        sums = torch.linalg.vector_norm(tensor, dim=-1)
    return sums.double().square().sum()
