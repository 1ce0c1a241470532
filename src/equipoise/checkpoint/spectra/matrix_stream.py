"""A matrix that stays where it is stored, and passes by in float64, a few lines at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.checkpoint.spectra.workspace import workspace

CHUNK = 1 << 17  # numbers that are in float64 at a time,
_LINES = 128  # or this number of lines, if that is more: fewer would make the products slow
_STRIPS = 16  # of a matrix that has to pass by along its longer side, at most

Part = Callable[[int, int, int], Tensor]  # dimension, first line, how many: as `torch.narrow`


@dataclass(frozen=True, eq=False)
class MatrixStream:
    """`read(share)` gives the whole matrix, of which that share is going to be looked at.

    A mapped matrix is read anew for every chunk: what was looked at need not stay in memory then. `part`, where there
    is one, reads nothing but a slice.
    """

    read: Callable[[float], Tensor]
    shape: tuple[int, int]
    dtype: torch.dtype
    by_rows: bool  # whether slices across the longer side are rows
    by_row_in_memory: bool = True
    mapped: bool = False
    part: Part | None = None

    @classmethod
    def of(
        cls, matrix: Tensor, read: Callable[[float], Tensor] | None = None, part: Part | None = None
    ) -> "MatrixStream":
        """A stream of a matrix in memory or, with `read`, of one of this shape that is read anew each time.

        >>> tall = MatrixStream.of(torch.ones(3, 2))
        >>> [tuple(chunk.shape) for chunk in tall.chunks()], tall.by_rows
        ([(3, 2)], True)
        """
        rows, columns = matrix.shape
        in_memory = matrix.stride(0) >= matrix.stride(1)
        by_rows = in_memory if rows == columns else rows > columns
        mapped = read is not None
        return cls(read or (lambda _: matrix), (rows, columns), matrix.dtype, by_rows, in_memory, mapped, part)

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return self.shape[0] * self.shape[1]

    def whole(self) -> Tensor:
        """All of it, as it is stored."""
        return self.read(1.0)

    def chunks(self) -> Iterator[Tensor]:
        """Slices across the longer side, contiguous and in float64 on the CPU, each valid until the next."""
        lines = max(CHUNK // min(self.shape), _LINES)
        return self._slices(lines, 0 if self.by_rows else 1)

    @property
    def across(self) -> bool:
        """Whether it is mapped, and these slices lie on every page of it."""
        return self.mapped and self.by_rows != self.by_row_in_memory

    def strips(self, stop: int | None = None) -> Iterator[Float[Tensor, "lines longer"]]:
        """Slices along the longer side, likewise, up to line `stop` of the shorter one."""
        lines = max(CHUNK, self.count // _STRIPS) // max(self.shape)
        turned = self.by_rows
        for strip in self._slices(max(lines, 1), 1 if turned else 0, stop):
            yield strip.T if turned else strip

    def row_blocks(self) -> Callable[[], Iterable[Tensor]]:
        """A source of slices of `height` rows, likewise; a matrix of one such slice is read and converted once."""
        if self.height >= self.shape[0]:
            block = [self.whole().to("cpu", torch.float64)]
            return lambda: block
        return lambda: self._slices(self.height, 0)

    @property
    def height(self) -> int:
        """How many rows are in float64 at a time."""
        return max(CHUNK // self.shape[1], 1)

    def _slices(self, lines: int, dimension: int, stop: int | None = None) -> Iterator[Tensor]:
        """All in one place, each overwrites the one before."""
        length = self.shape[dimension]
        lines, stop = min(lines, length), length if stop is None else stop
        share = lines / length if (dimension == 0) == self.by_row_in_memory else 1.0  # columns lie on every page
        with workspace(lines * self.count // max(length, 1)) as place:
            for start in range(0, stop, lines):
                which = dimension, start, min(lines, stop - start)
                part = self.read(share).narrow(*which) if self.part is None else self.part(*which)
                chunk = place[: part.numel()].view(part.shape).copy_(part)
                del part  # and with it perhaps a mapping
                yield chunk
