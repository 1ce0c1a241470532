"""Sums of the products of a parameter, element by element, along some of its axes: planned once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.graph.interface import Member
from equipoise.laws.law import fitting
from equipoise.laws.scratch import Scratch
from equipoise.linalg.norms import SHORT, wide


class Reduction(NamedTuple):
    """A sum over each of the slices that a member chooses from; None: what there is nothing to do for.

    The tensor is reshaped to `view` and summed along the axes `rest`, then along the first one if that is of `blocks`;
    the others are brought into their `order`.
    """

    view: tuple[int, ...] | None
    rest: tuple[int, ...]
    blocks: bool
    order: tuple[int, ...] | None

    @classmethod
    def of(cls, member: Member, shape: tuple[int, ...]) -> "Reduction":
        """For tensors of this shape."""
        view, kept = member.view, sorted(member.axes)
        rest = tuple(axis for axis in range(len(view)) if axis not in kept)
        order = None if len(kept) == 1 else tuple(kept.index(axis) for axis in member.axes)
        blocks = _blocks(view[0]) if 0 in rest and math.prod(view) >= _SHARED else 1
        if blocks > 1:
            return cls((blocks, view[0] // blocks, *view[1:]), tuple(axis + 1 for axis in rest), True, order)
        return cls(None if view == shape else view, rest, False, order)


_SHARED = 1 << 15  # elements from which on torch gives each thread its part of them


def _blocks(rows: int) -> int:
    """Into how many blocks of rows to cut for a sum along them.

    Each thread then sums rows that it has itself multiplied: what one core has written, another one reads slowly.
    """
    return next(blocks for blocks in range(16, 0, -1) if rows % blocks == 0)


@dataclass(frozen=True)
class Matrix:
    """A parameter that is summed along some of its axes, once for each of its members."""

    members: tuple[Member, ...]
    scratch: Scratch

    @property
    def first(self) -> Member:
        """Its view is the shape in which products are formed."""
        return self.members[0]

    @cached_property
    def _reductions(self) -> list[Reduction]:
        return [Reduction.of(member, self.first.view) for member in self.members]

    @cached_property
    def _runs(self) -> list[int]:
        """Where each slice of each member is one run of a few numbers in memory: how many slices there are."""
        few = all(runs(member) for member in self.members)
        return [member.lines for member in self.members] if few else []

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The one among the tensors that belongs to it."""
        tensor = fitting(self.first, tensors)
        return tensor if tensor.shape == self.first.view else tensor.reshape(self.first.view)

    def squares(self, x: Tensor) -> list[Tensor]:
        """Sums of `x²`; of runs without writing them first."""
        if not self._runs:
            return self.products(x, x)
        norms = [torch.linalg.vector_norm(wide(x.reshape(lines, -1)), dim=1) for lines in self._runs]
        return [norm.mul_(norm) for norm in norms]

    def products(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Sums of `x y`, in float32 at least."""
        products, found = self.scratch.product(x, y), []
        dtype = torch.float64 if products.dtype == torch.float64 else torch.float32
        for view, rest, blocks, order in self._reductions:
            viewed = products if view is None else products.view(view)
            sums = viewed.sum(rest, dtype=dtype) if rest else viewed.to(dtype, copy=True)
            sums = sums.sum(0) if blocks else sums
            found.append(sums if order is None else sums.permute(order).reshape(-1))
        return found


def runs(member: Member) -> bool:
    """Whether each of its slices is one run of a few numbers in memory."""
    numbers = math.prod(member.view)
    return numbers <= SHORT * member.lines and member.axes == tuple(range(len(member.axes))) and member.lines < numbers
