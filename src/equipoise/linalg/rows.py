"""The rows of a matrix that one process has, and their part of its products with thin blocks."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.linalg.norms import sum_of_squares

Block = Float[Tensor, "_ _"]  # rows are directions
Image = Float[Tensor, "_ _"]  # columns are theirs: so BLAS is fastest


@dataclass(frozen=True)
class RowBlock:
    """The rows of `W` that this process has, `offset` of them before, `rows` in all; or `turned`, its transpose.

    With a `bias`, `[W b]` is iterated along with `W`; a turned matrix has none.
    """

    weight: Float[Tensor, "mine inputs"]
    bias: Float[Tensor, " mine"] | None
    offset: int
    rows: int
    turned: bool = False

    @classmethod
    def whole(cls, weight: Float[Tensor, "rows inputs"], bias: Float[Tensor, " rows"] | None = None) -> "RowBlock":
        """All rows."""
        return cls(weight, bias, 0, len(weight))

    def oriented(self, directions: int) -> "RowBlock":
        """A matrix of few rows turned, so that its directions span all of its short side and one sweep is exact."""
        turned = self.bias is None and self.rows <= directions < self.columns
        return replace(self, turned=True) if turned else self

    @property
    def columns(self) -> int:
        """The length of a direction."""
        return self.rows if self.turned else self.weight.shape[1]

    @property
    def length(self) -> int:
        """The length of the image of a direction."""
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
        """Write `W X` into `out`, where others' rows stay as they are."""
        if self.turned:
            torch.mm(self.weight.mT, block[:, self.mine].mT, out=out)
        else:
            torch.mm(self.weight, block.mT, out=out[self.mine])

    def pull(self, image: Image, out: Block) -> None:
        """Write the share of these rows in `(WᵀY)ᵀ` into `out`; a turned matrix is never asked for it."""
        torch.mm(image[self.mine].mT, self.weight, out=out)

    def deflated(self, left: Float[Tensor, " rows"], value: float, right: Float[Tensor, " _"]) -> Float[Tensor, ""]:
        """`‖W - σ u vᵀ‖_F²` over these rows, turned or not, in float64; of `[W b]` where `v` is longer by one."""
        mine, inputs = left[self.mine] * value, self.weight.shape[1]
        rest = sum_of_squares(torch.addr(self.weight, mine, right[:inputs], alpha=-1))
        if self.bias is None or len(right) == inputs:
            return rest
        return rest + sum_of_squares(self.bias - mine * right[-1])
