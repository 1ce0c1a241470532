"""Signals: the shape of a tensor, which unknown rates act on each of its elements, and constants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from equipoise.graph.labels.ragged import distinct

INERT, ZERO = -1, -2  # labels of elements that do not move, and of zeros (which any linear map leaves alone)


@dataclass(frozen=True, eq=False)
class Role:
    """One action on a tensor: every element's coordinate, and the fibre (vector) of which it is that component.

    Elements with the same coordinate and the same fibre are copies of each other. Both arrays have the tensor's shape
    (axes along which nothing changes have stride 0), so what moves data moves labels in the same way.
    """

    coordinates: Int64[Tensor, "..."]
    fibres: Int64[Tensor, "..."]

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Role":
        """The labels after an operation that only moves elements."""
        return Role(move(self.coordinates), move(self.fibres))

    @property
    def compact(self) -> Tensor:
        """The coordinates at index 0 of the axes along which they do not change in memory."""
        return compact(self.coordinates)

    @property
    def regular(self) -> bool:
        """Whether coordinates and fibres change along different axes: the same pattern in every fibre."""
        strides = zip(self.coordinates.shape, self.coordinates.stride(), self.fibres.stride(), strict=True)
        return all(size == 1 or a == 0 or b == 0 for size, a, b in strides)

    def pattern(self, *others: Tensor) -> "tuple[Role, *tuple[Tensor, ...]]":
        """One fibre for all: the role at index 0 of axes along which neither it nor the others have a new pattern."""
        (role,), rest = patterns([self], *others)
        return role, *rest

    @property
    def acting(self) -> Tensor:
        """The coordinates that occur."""
        return self.compact[self.compact >= 0]

    def varies(self, *axes: int) -> bool:
        """Whether the coordinate changes along any of the axes."""
        for axis in axes:
            labels = self.coordinates
            if labels.shape[axis] > 1 and labels.stride(axis) != 0:
                first = labels.narrow(axis, 0, 1)
                if not torch.equal(labels, first.expand_as(labels)):
                    return True
        return False


@dataclass(frozen=True, eq=False)
class Signal:
    """A tensor of the graph: the generator of each element is the sum of its `roles`; no roles, no motion.

    `value` is the tensor itself where it depends on neither inputs nor parameters. `weights` names the parameters of
    a tensor made of parameters alone. Along the axes in `alike` it is known to be constant.
    """

    shape: tuple[int, ...]
    roles: tuple[Role, ...] = ()
    value: Tensor | None = None
    weights: frozenset[str] = frozenset()
    alike: frozenset[int] = frozenset()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def with_roles(self, roles: Sequence[Role]) -> "Signal":
        """The same tensor under other actions."""
        return replace(self, roles=tuple(roles))

    def identity(self) -> Int64[Tensor, "..."]:
        """A number for each element; equal numbers promise equal values."""
        if self.value is not None and self.value.numel():
            return value_numbers(self.value)
        count = int(torch.Size(self.shape).numel())
        return torch.arange(count).reshape(self.shape)

    def constant_axes(self) -> frozenset[int]:
        """The axes along which it is known to be constant, by its making or by its value."""
        if self.value is None or not self.value.numel():
            return self.alike
        value = self.value
        return self.alike | {axis for axis in range(self.ndim) if bool((value == value.narrow(axis, 0, 1)).all())}

    def axis(self, axis: int) -> int:
        """The axis counted from the front."""
        return axis % max(self.ndim, 1)


def patterns(roles: Sequence[Role], *others: Tensor) -> tuple[list[Role], list[Tensor]]:
    """Roles of one tensor, and other labels of it, at index 0 of the axes along which no pattern is new.

    Along such an axis nothing changes but the numbers of the fibres.

    >>> role = Role(torch.tensor([4, 5]).expand(3, 2), torch.tensor([[0, 0], [1, 1], [2, 2]]))
    >>> (one,), _ = patterns([role])
    >>> one.coordinates.tolist(), one.fibres.tolist()
    ([[4, 5]], [[0, 0]])
    """
    regular = all(role.regular for role in roles)
    roles = list(roles) if regular else [role.moved(tight) for role in roles]
    arrays = [*(role.coordinates for role in roles), *others]
    fixed = [
        axis
        for axis in range(arrays[0].ndim)
        if all(_fixed(array, axis) for array in arrays)
        and (regular or all(_repeated(role.fibres, axis) for role in roles))
    ]
    cut = lambda labels: _first(labels, fixed)  # noqa: E731
    return [role.moved(cut) for role in roles], [cut(other) for other in others]


def _repeated(fibres: Tensor, axis: int) -> bool:
    """Whether fibres at each index along an axis are those at index 0, renumbered: all by one step, to new numbers."""
    if _fixed(fibres, axis):
        return True
    rows = compact(fibres).movedim(axis, 0).flatten(1)
    steps = rows - rows[:1]
    alike = bool((steps == steps[:, :1]).all())
    return alike and len(distinct(rows.numpy())) == len(rows) * len(distinct(rows[0].numpy()))


def value_numbers(value: Tensor) -> Int64[Tensor, "..."]:
    """A number for each element of a tensor, equal where the values are.

    >>> value_numbers(torch.tensor([2.0, 1.0, 2.0]))
    tensor([1, 0, 1])
    """
    if value.is_complex():
        pairs = torch.view_as_real(value.resolve_conj()).reshape(-1, 2)
        return torch.unique(pairs, dim=0, return_inverse=True)[1].reshape(value.shape)
    return torch.unique(value, return_inverse=True)[1].reshape(value.shape)


def compact(labels: Tensor) -> Tensor:
    """Index 0 of every axis of stride 0."""
    return _first(labels, [axis for axis in range(labels.ndim) if _fixed(labels, axis)])


def compactly(change: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
    """Apply an elementwise change; axes of stride 0 stay so."""
    return change(compact(labels)).expand(labels.shape)


def tight(labels: Tensor) -> Tensor:
    """The same labels, with stride 0 along all axes along which they do not change.

    >>> tight(torch.tensor([[1, 1], [2, 2]])).stride()
    (1, 0)
    """
    small = compact(labels)
    for axis in range(small.ndim):
        first = small.narrow(axis, 0, min(1, small.shape[axis]))
        small = first if torch.equal(small, first.expand_as(small)) else small
    return small.clone().expand(labels.shape)


def reshaped(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """A reshape that leaves leading and trailing axes of stride 0 as they are where the shapes agree on them."""
    shape = tuple(shape)
    if labels.shape == shape:
        return labels
    try:
        return labels.view(shape)
    except RuntimeError:  # memory must be copied: keep it small
        head = next((i for i, (a, b) in enumerate(zip(labels.shape, shape, strict=False)) if a != b), 0)
        tails = zip(reversed(labels.shape[head:]), reversed(shape[head:]), strict=False)
        tail = next((i for i, (a, b) in enumerate(tails) if a != b), 0)
        fixed = [axis for axis in (*range(head), *range(-tail, 0)) if _fixed(labels, axis)]
        small = _first(labels, fixed)
        middle = shape[head : len(shape) - tail]
        ends = small.shape[:head], small.shape[small.ndim - tail :]
        return small.reshape(*ends[0], *middle, *ends[1]).expand(shape)


def _fixed(labels: Tensor, axis: int) -> bool:
    return labels.stride(axis) == 0 or labels.shape[axis] == 1


def _first(labels: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        labels = labels.narrow(axis, 0, min(1, labels.shape[axis]))
    return labels


def blank(shape: Sequence[int], label: int = INERT) -> Role:
    """The role under which nothing moves."""
    return Role(torch.full((), label).expand(tuple(shape)), torch.zeros((), dtype=torch.int64).expand(tuple(shape)))


def is_zero(signal: Signal) -> bool:
    """Whether a tensor is known to be zero everywhere."""
    return signal.value is not None and not bool(signal.value.any())
