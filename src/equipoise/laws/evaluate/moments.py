"""Moments of many laws in one pass over their parameters.

Laws with one rate for each component (vertex-wise and scalar ones) need sums of products element by element. Each of
their parameters is multiplied once, summed along the axes that its laws keep, and two sparse matrices turn these sums
into moments and norms. Laws whose values are matrices are evaluated by the Gram matrices of their slices.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from equipoise.graph.interface import Member
from equipoise.laws.law import Law, fitting
from equipoise.linalg import wide

Named = Mapping[str, Tensor]
Numbers = Float[np.ndarray, " numbers"]
PerLaw = Float[np.ndarray, " laws"]
Side = TypeVar("Side", Tensor, Named)  # of a product: weights or gradients

CHUNK = 1 << 18
"""Elements multiplied at a time: the products then stay in a second-level cache until they are summed."""


class Figures(NamedTuple):
    """Figures of some laws: values (a row at the weights, with gradients one at those), and three for each law."""

    values: Float[np.ndarray, "rows numbers"]
    sizes: PerLaw
    identities: PerLaw | None
    scales: PerLaw | None


def by_unit(law: Law) -> bool:
    """Whether each component has a rate of its own."""
    return law.interface.width == 1 and law.kind not in ("shift", "antisymmetric")


@dataclass(frozen=True, eq=False)
class UnitLaws:
    """Laws for which `by_unit` holds."""

    laws: tuple[Law, ...]

    @cached_property
    def _reductions(self) -> dict[str, list[Member]]:
        """By parameter, one member for each choice of axes that stay; parameters that stay whole come last."""
        found: dict[str, dict[tuple[object, ...], Member]] = defaultdict(dict)
        for member in (member for law in self.laws for member in law.interface.members):
            found[member.parameter].setdefault((member.view, member.axes), member)
        each = {name: list(mine.values()) for name, mine in found.items()}
        return dict(sorted(each.items(), key=lambda item: _stays_whole(item[1])))

    @cached_property
    def _vectors(self) -> list[Member]:
        return [mine[0] for mine in self._reductions.values() if _stays_whole(mine)]

    @cached_property
    def _matrices(self) -> list[list[Member]]:
        return [mine for mine in self._reductions.values() if not _stays_whole(mine)]

    @cached_property
    def _weights_of_sums(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Which sums make up the moments of each unit, times their degrees; and the square of each member."""
        reductions = [member for mine in self._reductions.values() for member in mine]
        begin = offsets([member.lines for member in reductions])
        start = {_reduction(member): first for member, first in zip(reductions, begin, strict=True)}
        columns, degrees, units, numbers, unit, number = [], [], [], [], 0, 0
        for law in self.laws:
            for member in law.interface.members:
                index = member.index[..., 0].numpy()  # (blocks, copies)
                columns.append(start[_reduction(member)] + index.reshape(-1))
                degrees.append(np.full(index.size, member.degree))
                units.append(unit + np.arange(len(index)).repeat(index.shape[1]))
                numbers.append(np.full(index.size, number))
                number += 1
            unit += law.interface.blocks
        total = sum(member.lines for member in reductions)
        along = np.concatenate(columns)
        of_units = np.concatenate(degrees), (np.concatenate(units), along)
        of_members = np.ones(len(along)), (np.concatenate(numbers), along)
        return sparse.csr_array(of_units, shape=(unit, total)), sparse.csr_array(of_members, shape=(number, total))

    @cached_property
    def _units(self) -> list[int]:
        """The first unit of each law."""
        return offsets([law.interface.blocks for law in self.laws])

    @cached_property
    def _workspace(self) -> "Workspace":
        return Workspace()

    def sums(self, weights: Named, gradients: Named | None) -> Float[Tensor, "pairs sums"]:
        """Sums of squares of weights; with gradients also of gradients times weights, and of squares of gradients."""
        rows: list[list[Tensor]] = [[] for _ in range(1 if gradients is None else 3)]
        pairs = _pairs(weights, gradients)
        for members in self._matrices:
            for row, pair in zip(rows, pairs, strict=True):
                row += self._products(members, *pair)
        if self._vectors:
            joined = _pairs(self._joined(weights), None if gradients is None else self._joined(gradients))
            for row, (x, y) in zip(rows, joined, strict=True):
                row.append(x * y)
        return in_a_row([part for row in rows for part in row]).view(len(rows), -1)

    def _products(self, members: Sequence[Member], left: Named, right: Named) -> list[Tensor]:
        x, y = (fitting(members[0], tensors).reshape(members[0].view) for tensors in (left, right))
        return self._workspace.sums(x, y, members)

    def _joined(self, tensors: Named) -> Float[Tensor, " numbers"]:
        """All vectors in a row, in float32 at least."""
        return wide(in_a_row([fitting(member, tensors).reshape(-1) for member in self._vectors]))

    def figures(self, sums: Float[Tensor, "pairs sums"]) -> Figures:
        """Figures of the laws, from the sums of all processes."""
        columns = np.ascontiguousarray(sums.double().cpu().numpy().T)
        of_units, of_members = self._weights_of_sums
        units, squares = (of_units @ columns).T, (of_members @ columns).T
        sizes = _totals(self.laws, squares[0])
        if len(units) == 1:
            return Figures(units, sizes, None, None)
        return Figures(units[::2], sizes, self._lengths(units[1]), _totals(self.laws, np.sqrt(squares[0] * squares[2])))

    def identities(self, weights: Named, gradients: Named, eps_bias: Named) -> tuple[PerLaw, PerLaw]:
        """Norm of the identity of T1, known biases taken off, and its scale: one product and two norms a parameter."""
        w, g = self._norms(weights), self._norms(gradients)
        parts = [part for members in self._matrices for part in self._products(members, gradients, weights)]
        if self._vectors:
            parts.append(self._joined(gradients) * self._joined(weights))
        moments = self._weights_of_sums[0] @ on_host(parts)
        for law, first in zip(self.laws, self._units, strict=True):
            if law.name in eps_bias:
                moments[first : first + law.interface.blocks] -= on_host([eps_bias[law.name]])
        return self._lengths(moments), _totals(self.laws, w * g)

    def _lengths(self, moments: Float[np.ndarray, " units"]) -> PerLaw:
        return np.sqrt(np.add.reduceat(moments * moments, self._units))

    def _norms(self, tensors: Named) -> Float[np.ndarray, " members"]:
        """Of the slices of every member; a parameter that takes part as a whole is read once."""
        members = [member for law in self.laws for member in law.interface.members]
        keys = [member.parameter if member.covers else member for member in members]
        distinct = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        first = dict(zip(reversed(keys), reversed(members), strict=True))
        parts = [fitting(first[key], tensors) for key in distinct]
        parts = [
            part if first[key].covers else first[key].slices(part) for key, part in zip(distinct, parts, strict=True)
        ]
        norms = on_host([torch.linalg.vector_norm(wide(part)) for part in parts])
        return norms[[distinct[key] for key in keys]]


def _pairs(w: Side, g: Side | None) -> list[tuple[Side, Side]]:
    return [(w, w)] if g is None else [(w, w), (g, w), (g, g)]


def _stays_whole(members: Sequence[Member]) -> bool:
    return len(members) == 1 and members[0].single


def _reduction(member: Member) -> tuple[object, ...]:
    return member.parameter, member.view, member.axes


class Workspace:
    """Memory for the products of a few rows at a time: fresh memory would cost more than the products.

    >>> rows = Member("w", (2, 3), (0,), torch.arange(2).reshape(2, 1, 1), 1.0)
    >>> Workspace().sums(torch.ones(2, 3), torch.ones(2, 3), [rows])
    [tensor([3., 3.])]
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def sums(self, x: Tensor, y: Tensor, members: Sequence[Member]) -> list[Tensor]:
        """For each member, the sums of `x y` over the axes that it does not keep, in float32 at least."""
        alike = all(member.view == members[0].view for member in members)
        rows = len(x) if not alike else max(1, CHUNK * len(x) // max(1, x.numel()))
        found = [
            [_reduced(products, member) for member in members]
            for products in (self._products(*pair) for pair in zip(x.split(rows), y.split(rows), strict=True))
        ]
        return [_whole(list(parts), member) for parts, member in zip(zip(*found, strict=True), members, strict=True)]

    def _products(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = wide(x), wide(y)
        dtype, count = torch.promote_types(x.dtype, y.dtype), x.numel()
        memory = self._memory
        if memory is None or memory.dtype != dtype or memory.device != x.device or len(memory) < count:
            memory = self._memory = x.new_empty(count, dtype=dtype)
        return torch.mul(x, y, out=memory[:count].view(x.shape))


def _reduced(products: Tensor, member: Member) -> Tensor:
    """Sums over the axes that a member does not keep, of some of its rows: the axes that it keeps, in their order."""
    rows = products if products.shape[1:] == member.view[1:] else products.view(member.view)
    rest = [axis for axis in range(rows.ndim) if axis not in member.axes]
    sums = rows.sum(rest) if rest else rows.clone()
    return sums.permute([sorted(member.axes).index(axis) for axis in member.axes]) if len(member.axes) > 1 else sums


def _whole(parts: Sequence[Tensor], member: Member) -> Tensor:
    """The sums of all rows: side by side where the member keeps the rows, added up otherwise."""
    if len(parts) == 1:
        return parts[0].reshape(-1)
    if 0 in member.axes:
        return torch.cat(list(parts), dim=member.axes.index(0)).reshape(-1)
    return torch.stack(list(parts)).sum(0).reshape(-1)


@dataclass(frozen=True, eq=False)
class BlockLaws:
    """Laws whose values are matrices, and shifts."""

    laws: tuple[Law, ...]

    def parts(self, weights: Named, gradients: Named | None) -> list[Tensor]:
        """Sums that are linear in the weights, or squares: reduced over processes before products are formed."""
        sides = (weights,) if gradients is None else (weights, gradients)
        found = [part for side in sides for law in self.laws for part in _linear_parts(law, side)]
        shifts = [law for law in self.laws if is_shift(law)]
        squares = [_square_of_summands(law, weights) for law in shifts]
        return [*found, *squares, *([] if gradients is None or not shifts else [square_of_all(gradients)])]

    def figures(self, parts: Sequence[Tensor], gradients: bool) -> Figures:
        """Figures of the laws, from the sums of all processes."""
        whole = iter(parts)
        sides = [[[next(whole) for _ in range(_count(law))] for law in self.laws] for _ in range(1 + gradients)]
        each = [list(zip(self.laws, side, strict=True)) for side in sides]
        values = np.stack([on_host([_value(*pair) for pair in side]) for side in each])
        norms = [on_host([torch.linalg.vector_norm(part) for law in side for part in law]) for side in sides]
        sizes = _totals(self.laws, norms[0] ** 2)
        shifts = np.array([is_shift(law) for law in self.laws])
        sizes[shifts] = [float(next(whole)) ** 0.5 for _ in range(int(shifts.sum()))]
        if not gradients:
            return Figures(values, sizes, None, None)
        identities = on_host([moments_norm(law, *pair) for law, *pair in zip(self.laws, *sides, strict=True)])
        scales = _totals(self.laws, norms[0] * norms[1])
        for square in whole:
            scales[shifts] = float(square) ** 0.5
        return Figures(values, sizes, identities, scales)


def wide_slices(law: Law, tensors: Named) -> list[Tensor]:
    """The slices of each member, in float32 at least."""
    return [wide(each) for each in law.slices(tensors)]


def is_shift(law: Law) -> bool:
    """Whether a law is linear in the weights."""
    return law.kind == "shift"


def _linear_parts(law: Law, tensors: Named) -> list[Tensor]:
    slices = wide_slices(law, tensors)
    return [law.commutant.moments(slices, slices, law.degrees)] if is_shift(law) else slices


def _square_of_summands(law: Law, tensors: Named) -> Tensor:
    """The square of a bound on `Σ |w|` over the groups of a shift, by which its sums are rounded."""
    squares = [torch.linalg.vector_norm(part).square() for part in wide_slices(law, tensors)]
    return law.interface.width * torch.stack(squares).sum()


def _count(law: Law) -> int:
    """How many parts there are of the weights, or of the gradients."""
    return 1 if is_shift(law) else len(law.degrees)


def _value(law: Law, slices: Sequence[Tensor]) -> Tensor:
    if is_shift(law):
        return law.commutant.folded(slices[0])
    return law.commutant.folded(law.commutant.project(law.commutant.moments(slices, slices, law.degrees)))


def moments_norm(law: Law, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Norm of the identity of T1."""
    if is_shift(law):
        return torch.linalg.vector_norm(gradients[0])
    return torch.linalg.vector_norm(law.commutant.project(law.commutant.moments(gradients, weights, law.degrees)))


def _totals(laws: Sequence[Law], figures: Float[np.ndarray, " members"]) -> PerLaw:
    """By law, `Σ |degree|` times a figure of each member; a shift has one."""
    degrees = [(1.0,) if is_shift(law) else law.degrees for law in laws]
    return np.add.reduceat(np.abs(np.concatenate(degrees)) * figures, offsets([len(each) for each in degrees]))


def square_of_all(tensors: Named) -> Tensor:
    """`Σ x²` over all of them."""
    return torch.stack([torch.linalg.vector_norm(wide(tensor)).square() for tensor in tensors.values()]).sum()


def on_host(parts: Sequence[Tensor]) -> Numbers:
    """All numbers in a row, in float64."""
    return in_a_row([part.reshape(-1) for part in parts]).double().cpu().numpy()


def in_a_row(parts: Sequence[Float[Tensor, " _"]]) -> Float[Tensor, " numbers"]:
    """All numbers on the device of the first part."""
    device = parts[0].device
    return torch.cat([part if part.device == device else part.to(device) for part in parts])


def offsets(counts: Sequence[int]) -> list[int]:
    """Exclusive prefix sums: the offset of each segment.

    >>> offsets([2, 3, 1])
    [0, 2, 5]
    """
    return np.cumsum([0, *counts])[:-1].tolist()
