"""The block of a matrix that one process has, and its part of the matrix's products with thin blocks."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.linalg.norms import sum_of_squares

Block = Float[Tensor, "_ _"]  # rows are directions
Image = Float[Tensor, "_ _"]  # columns are theirs: so BLAS is fastest


@dataclass(frozen=True)
class MatrixBlock:
    """The entries of `W` that this process has; the blocks of all processes make up `W`, or `turned` its transpose.

    With a `bias`, `[W b]` is iterated along with `W`; a turned matrix has none.

    Attributes:
        weight: these entries.
        bias: those of the bias that this process has, which may be of other rows.
        shape: of the whole matrix.
        begin: the numbers of rows and of columns before these.
        bias_begin: the number of entries of the bias before these.
        across: whether some process has not all columns of its rows, or not the bias of just its rows: images are then
            summed before they are pulled.
    """

    weight: Float[Tensor, "rows columns"]
    bias: Float[Tensor, " _"] | None
    shape: tuple[int, int]
    begin: tuple[int, int] = (0, 0)
    bias_begin: int = 0
    across: bool = False
    turned: bool = False

    @classmethod
    def whole(cls, weight: Float[Tensor, "rows inputs"], bias: Float[Tensor, " rows"] | None = None) -> "MatrixBlock":
        """All of a matrix."""
        return cls(weight, bias, (weight.shape[0], weight.shape[1]))

    def oriented(self, directions: int) -> "MatrixBlock":
        """A matrix of few rows turned, so that its directions span all of its short side and one sweep is exact."""
        turned = self.bias is None and self.shape[0] <= directions < self.columns
        return replace(self, turned=True) if turned else self

    @property
    def columns(self) -> int:
        """The length of a direction."""
        return self.shape[0] if self.turned else self.shape[1]

    @property
    def length(self) -> int:
        """The length of the image of a direction."""
        return self.shape[1] if self.turned else self.shape[0]

    @property
    def complete(self) -> bool:
        """Whether this process has all entries, and all of the bias."""
        return tuple(self.weight.shape) == self.shape and (self.bias is None or len(self.bias) == self.shape[0])

    def push(self, block: Block, out: Image) -> None:
        """Write this block's share of `W X` into `out`, where the rest stays as it is."""
        rows, columns = self._rows, self._columns
        if self.turned:
            torch.mm(self.weight.mT, block[:, rows].mT, out=out[columns])
        else:
            torch.mm(self.weight, block[:, columns].mT, out=out[rows])

    def add_bias(self, out: Float[Tensor, " length"]) -> None:
        """Write this process's share of the bias into `out`."""
        if self.bias is not None:
            out[self._bias_rows] = self.bias

    def pull(self, image: Image, out: Block) -> None:
        """Write the share of this block in `(WᵀY)ᵀ` into `out`; a turned matrix is never asked for it."""
        if self.weight.shape[1] != self.shape[1]:
            out.zero_()  # others' columns
        torch.mm(image[self._rows].mT, self.weight, out=out[:, self._columns])

    def deflated(self, left: Float[Tensor, " rows"], value: float, right: Float[Tensor, " _"]) -> Float[Tensor, ""]:
        """`‖W - σ u vᵀ‖_F²` over this block, turned or not, in float64; of `[W b]` where `v` is longer by one."""
        scaled = left * value
        rest = sum_of_squares(torch.addr(self.weight, scaled[self._rows], right[self._columns], alpha=-1))
        if self.bias is None or len(right) == self.shape[1]:
            return rest
        return rest + sum_of_squares(self.bias - scaled[self._bias_rows] * right[-1])

    @property
    def _rows(self) -> slice:
        return slice(self.begin[0], self.begin[0] + self.weight.shape[0])

    @property
    def _columns(self) -> slice:
        return slice(self.begin[1], self.begin[1] + self.weight.shape[1])

    @property
    def _bias_rows(self) -> slice:
        assert self.bias is not None
        return slice(self.bias_begin, self.bias_begin + len(self.bias))
