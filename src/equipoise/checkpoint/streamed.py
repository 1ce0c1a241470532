"""A matrix that stays where it is stored, and passes by in float64, a few lines at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 17  # numbers that are in float64 at a time,
_LINES = 128  # or so many lines, if that is more: fewer would make the products slow


@dataclass(frozen=True, eq=False)
class Streamed:
    """`read(share)` gives the whole matrix, of which that share is going to be looked at.

    A mapped matrix is read anew for every chunk: what was looked at need not stay in memory then.
    """

    read: Callable[[float], Tensor]
    shape: tuple[int, int]
    dtype: torch.dtype
    by_rows: bool  # whether slices across the longer side are rows
    by_row_in_memory: bool = True

    @classmethod
    def of(cls, matrix: Tensor, read: Callable[[float], Tensor] | None = None) -> "Streamed":
        """One that is at hand or, with `read`, one that looks like this and is read again and again.

        >>> tall = Streamed.of(torch.ones(3, 2))
        >>> [tuple(chunk.shape) for chunk in tall.chunks()], tall.by_rows
        ([(3, 2)], True)
        """
        rows, columns = matrix.shape
        in_memory = matrix.stride(0) >= matrix.stride(1)
        by_rows = in_memory if rows == columns else rows > columns
        return cls(read or (lambda _: matrix), (rows, columns), matrix.dtype, by_rows, in_memory)

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

    def rows(self) -> Iterator[Tensor]:
        """Slices of `height` rows, likewise."""
        return self._slices(self.height, 0)

    @property
    def height(self) -> int:
        """How many rows are in float64 at a time."""
        return max(CHUNK // self.shape[1], 1)

    def _slices(self, lines: int, dimension: int) -> Iterator[Tensor]:
        """All in one place, each overwrites the one before: fresh ones would scatter over the heap."""
        length = self.shape[dimension]
        lines = min(lines, length)
        place = torch.empty(lines * self.count // max(length, 1), dtype=torch.float64)
        share = lines / length if (dimension == 0) == self.by_row_in_memory else 1.0  # columns lie on every page
        for start in range(0, length, lines):
            part = self.read(share).narrow(dimension, start, min(lines, length - start))
            chunk = place[: part.numel()].view(part.shape).copy_(part)
            del part  # and with it perhaps a mapping
            yield chunk
