"""Roles under the operations that all rules of symmetry are made of: restrict, share, multiply, sum over axes."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from equipoise.graph.constraints import STILL, GeneratorConstraints
from equipoise.graph.labels.ragged import distinct, joined
from equipoise.graph.labels.signal import (
    INERT,
    ZERO,
    Role,
    Signal,
    blank,
    compact,
    compactly,
    patterns,
    tight,
    value_numbers,
)


@dataclass(frozen=True)
class Absorbed:
    """Coordinates whose scale a normalisation takes away, its `eps`, and the node that does it."""

    coordinates: np.ndarray
    eps: float
    place: str


class Algebra:
    """The verbs of the rules; each restricts the unknown generators of `symmetry` and returns new labels."""

    def __init__(self):
        self.symmetry = GeneratorConstraints()
        self.absorbed: list[Absorbed] = []
        self.place = ""
        self.narrowed: set[str] = set()  # places at which a rule keeps less than the operation allows
        self.scalable: set[str] = set()  # products whose common scale is not followed
        self.turnable: set[str] = set()  # norms that leave rotations alone
        self._scaled: defaultdict[Fraction, dict[int, int]] = defaultdict(dict)

    # Labels ---------------------------------------------------------------------------------------------------------

    def renewed(self, role: Role) -> Role:
        """Fresh fibre numbers, for values that are no longer copies of what they were computed from."""
        return Role(role.coordinates, compactly(self._renumbered, role.fibres))

    def _renumbered(self, fibres: Tensor) -> Tensor:
        if fibres.numel() == 0:
            return fibres
        fibres = fibres - fibres.min()
        if int(fibres.max()) > 8 * fibres.numel():
            fibres = torch.unique(fibres, return_inverse=True)[1]
        return fibres + self.symmetry.fibres(int(fibres.max()) + 1)

    def distinct(self, role: Role) -> Role:
        """Number copies: the r-th copy of every coordinate of a fibre goes into the r-th new fibre."""
        role = self._numbered(role)
        if role.regular and len(compact(role.coordinates).unique()) == compact(role.coordinates).numel():
            return role
        fibres, coordinates = role.fibres.reshape(-1), role.coordinates.reshape(-1)
        copy = _rank(_pair(fibres, coordinates))
        numbered = self._renumbered(_pair(fibres, copy)).reshape(role.fibres.shape)
        return Role(tight(role.coordinates), tight(numbered))

    def _numbered(self, role: Role) -> Role:
        """Number the fibres along axes that broadcasting has added."""
        shape, fibres = role.coordinates.shape, role.fibres
        strides = zip(shape, role.coordinates.stride(), fibres.stride(), strict=True)
        added = [size if size > 1 and a == 0 and b == 0 else 1 for size, a, b in strides]
        count = math.prod(added)
        if count > 1:
            fibres = compact(fibres) * count + torch.arange(count).reshape(added)
        return Role(role.coordinates, compactly(self._renumbered, fibres.expand(shape)))

    def expanded(self, role: Role, shape: Sequence[int]) -> Role:
        """Broadcast to a shape; the copies are numbered."""
        if tuple(role.coordinates.shape) == tuple(shape):
            return role
        return self.distinct(role.moved(lambda labels: labels.expand(tuple(shape))))

    def fresh(self, shape: Sequence[int], axes: Sequence[int]) -> tuple[Role, np.ndarray]:
        """A new role over the given axes of a tensor, one coordinate for each index into them, and its coordinates."""
        sizes = [shape[axis] for axis in axes]
        others = [axis for axis in range(len(shape)) if axis not in axes]
        coordinates = self.symmetry.fresh(int(np.prod(sizes, dtype=int)))
        count = int(np.prod([shape[axis] for axis in others], dtype=int))
        fibres = self.symmetry.fibres(count) + torch.arange(count)
        labels = _spread(torch.from_numpy(coordinates), axes, shape)
        return Role(labels, _spread(fibres, others, shape)), coordinates

    # What is not followed -------------------------------------------------------------------------------------------

    def mixes(self, role: Role) -> bool:
        """Whether a matrix may act under this role."""
        return self.symmetry.wide(role.acting.numpy())

    def narrows(self, *roles: Role) -> None:
        """Of a sum of these roles only rates are followed here; matrices might act under more than one of them."""
        if sum(map(self.mixes, roles)) > 1:
            self.narrowed.add(self.place)

    def merges(self, role: Role, axes: Sequence[int]) -> None:
        """A linear map over these axes keeps rates that are the same everywhere; others might pass it as well."""
        first = role.coordinates
        for axis in axes:
            first = first.narrow(axis, 0, 1)
        self._compared(role, Role(first.expand_as(role.coordinates), role.fibres))

    def turns(self, signal: Signal, axes: Sequence[int]) -> None:
        """Rotations along axes over which a norm is taken here are given up."""
        roles = [role for role in signal.roles if role.varies(*(signal.axis(axis) for axis in axes))]
        if any(map(self.mixes, roles)):
            self.turnable.add(self.place)

    def _compared(self, left: Role, right: Role) -> None:
        """Two linear images of one vector are compared element by element: matrices that suit both are given up."""
        a, b = left.coordinates, right.coordinates
        both = (a >= 0) & (b >= 0)
        if self.symmetry.akin(a[both].numpy(), b[both].numpy()):
            self.narrowed.add(self.place)

    # Restrictions ---------------------------------------------------------------------------------------------------

    def still(self, *signals: Signal) -> None:
        """These tensors must not move: the sum of their roles vanishes on every element."""
        for signal in signals:
            self.vanish(signal.roles)

    def pin(self, role: Role) -> None:
        """Nothing acts under this role."""
        self.symmetry.still(role.acting.numpy())

    def diagonal(self, signal: Signal) -> Signal:
        """No mixing between elements, as under every map that acts on each element by itself."""
        for role in signal.roles:
            self.symmetry.single(role.acting.numpy())
            self.symmetry.unmix(role.acting.numpy())
        return signal

    def absorb(self, role: Role, eps: float | int) -> None:
        """The scale of this role is normalised away at the current place, exactly if `eps` is zero."""
        if len(role.acting):
            self.absorbed.append(Absorbed(distinct(role.acting.numpy()), float(eps), self.place))

    def separate(self, role: Role, key: Tensor) -> None:
        """No mixing between elements whose keys differ."""
        role, key = role.pattern(key.expand(role.coordinates.shape))
        if compact(key).numel() == 1:
            return
        self.close(Role(role.coordinates, _pair(role.fibres, key)))

    def close(self, role: Role) -> Role:
        """No mixing with what a selection has left out."""
        (pattern,) = role.pattern()
        moving = pattern.coordinates >= 0
        self.symmetry.close(pattern.coordinates[moving].numpy(), pattern.fibres[moving].numpy())
        return role

    def agree(self, left: Role, right: Role, ratio: int) -> None:
        """`generator(left) = ratio · generator(right)` on every element, mixing included."""
        (left, right), _ = patterns([left, right])
        a, b = left.coordinates, right.coordinates
        self.symmetry.still(a[(a >= 0) & (b == INERT)].numpy())
        self.symmetry.still(b[(b >= 0) & (a == INERT)].numpy())
        both = (a >= 0) & (b >= 0)
        a, b, f, g = (labels[both] for labels in (a, b, left.fibres, right.fibres))
        if torch.equal(a, b) and ratio == 1 and torch.equal(_pair(f, f), _pair(f, g)):
            return
        cells_a, cells_b = (torch.from_numpy(self.symmetry.cells(labels.numpy())) for labels in (a, b))
        self.symmetry.close(a.numpy(), _pair(f, _pair(g, cells_b)).numpy())
        self.symmetry.close(b.numpy(), _pair(g, _pair(f, cells_a)).numpy())
        self.symmetry.relate(a.numpy(), b.numpy(), float(ratio))

    def vanish(self, roles: Sequence[Role]) -> None:
        """The generators of one tensor sum to zero on every element: `A = -B`, never the contragredient `A = -Bᵀ`.

        A ratio of -1 between cells means the contragredient, so only rates are compared, without mixing.
        """
        moving = self.reduced(roles)
        if len(moving) > 1:
            self._unmixed(*moving)
        self._cancelled(moving)

    def cancel(self, left: Sequence[Role], right: Sequence[Role]) -> None:
        """Generators of the two sides of a sum of products cancel: `A = -Bᵀ`."""
        self._cancelled(self._without_opposites([*left, *right]))

    def _cancelled(self, moving: Sequence[Role]) -> None:
        if len(moving) == 1:
            self.pin(moving[0])
        elif len(moving) == 2:
            self.agree(moving[0], moving[1], -1)
        elif moving:
            self._balance(moving)

    def _unmixed(self, *roles: Role) -> None:
        self.narrows(*roles)
        for role in roles:
            self.symmetry.single(role.acting.numpy())

    def _balance(self, roles: Sequence[Role], weights: Sequence[float] | None = None) -> None:
        labels = torch.stack([role.coordinates.reshape(-1) for role in roles])
        labels = torch.unique(labels[:, (labels != ZERO).all(0)], dim=1)
        self._unmixed(*roles)
        roots, ratios = self.symmetry.find(labels.clamp(min=STILL).numpy())
        self.symmetry.balance(roots, ratios * np.asarray(weights or [1.0] * len(roots))[:, None])

    def reduced(self, roles: Sequence[Role]) -> tuple[Role, ...]:
        """Roles of one tensor that move something, without pairs that cancel."""
        kept = self._without_opposites(roles)
        dropped = [role for role in roles if all(role is not other for other in kept)]
        self._unmixed(*dropped)  # opposite rates are contragredient matrices, which cancel only as rates
        return kept

    def _without_opposites(self, roles: Sequence[Role]) -> tuple[Role, ...]:
        kept: list[tuple[Role, np.ndarray, np.ndarray]] = []
        for role in roles:
            roots, ratios = self.symmetry.find(role.compact.clamp(min=STILL).numpy())
            if not (roots != STILL).any():
                if (role.compact == ZERO).any():
                    kept.append((role, roots, ratios))
                continue
            opposite = [i for i, (_, r, q) in enumerate(kept) if _same(r, roots) and _same(q, -ratios)]
            if opposite:
                kept.pop(opposite[0])
            else:
                kept.append((role, roots, ratios))
        return tuple(role for role, _, _ in kept)

    def equal(self, left: Signal, right: Signal) -> None:
        """Two tensors of one shape must move alike (the condition for adding them)."""
        a, b = self.reduced(left.roles), self.reduced(right.roles)
        partners = _matched(a, b)
        if partners is not None:
            for one, other in partners:
                self._compared(one, other)
                self.agree(one, other, 1)
        else:
            self._balance([*a, *b], [1.0] * len(a) + [-1.0] * len(b))

    # Operations -----------------------------------------------------------------------------------------------------

    def added(self, left: Signal, right: Signal) -> list[Role]:
        """The roles of a sum of two tensors of one shape: they move alike, and where one is zero like the other."""
        if left.roles or right.roles:
            self.equal(left, right)
        if not left.roles or not right.roles or _wild(left) or _wild(right):
            kept = right if _wild(left) or (not left.roles and not _wild(right)) else left
            return [self.renewed(role) for role in kept.roles]
        kept, other = sorted((left.roles, right.roles), key=len)
        if not any(bool((role.compact == ZERO).any()) for role in kept):
            return [self.renewed(role) for role in kept]
        kept, other = sorted((self.reduced(kept), self.reduced(other)), key=len)
        partners = _matched(kept, other)
        if partners is None:  # ambiguous: nothing moves
            self.narrowed.add(self.place)
            for role in (*kept, *other):
                self.pin(role)
            return []
        return [self.renewed(_filled(*pair)) for pair in partners]

    def scaled(self, signal: Signal, degree: Fraction) -> Signal:
        """The roles of a power of a tensor: every rate times the degree."""
        self.diagonal(signal)
        return signal.with_roles([self._scaled_role(role, degree) for role in signal.roles])

    def _scaled_role(self, role: Role, degree: Fraction) -> Role:
        def image(labels: Tensor) -> Tensor:
            values, inverse = torch.unique(labels, return_inverse=True)
            return torch.tensor(self._multiples(values.tolist(), degree))[inverse]

        return self.renewed(Role(compactly(image, role.coordinates), role.fibres))

    def _multiples(self, labels: Sequence[int], degree: Fraction) -> list[int]:
        """The coordinates whose rates are `degree` times those of the labels, made where there are none yet."""
        known = self._scaled[degree]
        missing = [label for label in labels if label >= 0 and label not in known]
        if missing:
            images = self.symmetry.multiples(np.array(missing), float(degree))
            known.update(zip(missing, images.tolist(), strict=True))
        return [known.get(label, label) for label in labels]

    def broadcast(self, *signals: Signal) -> list[Signal]:
        """Tensors at their common shape."""
        shape = tuple(torch.broadcast_shapes(*(signal.shape for signal in signals)))
        return [signal if signal.shape == shape else self._broadcast(signal, shape) for signal in signals]

    def _broadcast(self, signal: Signal, shape: tuple[int, ...]) -> Signal:
        value = None if signal.value is None else signal.value.expand(shape)
        return Signal(shape, tuple(self.expanded(role, shape) for role in signal.roles), value, signal.weights)

    def product(self, left: Signal, right: Signal) -> Signal:
        """Generators add, element by element; elements that are multiplied by different values do not mix."""
        factors = self.broadcast(left, right)
        for factor, other in zip(factors, (right, left), strict=True):
            for role in factor.roles:
                self._separated_by(role, other)
        shape = factors[0].shape
        roles = self.reduced([*factors[0].roles, *factors[1].roles])
        weights = left.weights | right.weights if left.weights and right.weights else frozenset()
        return Signal(shape, tuple(self.renewed(role) for role in roles), None, weights)

    def _separated_by(self, role: Role, other: Signal) -> None:
        """No mixing between elements that another tensor multiplies by different values."""
        shape = role.coordinates.shape
        if other.value is not None and other.value.numel():
            self.separate(role, value_numbers(other.value).expand(shape))
            return
        sizes = (1,) * (len(shape) - other.ndim) + other.shape
        if role.regular:  # along other axes every fibre has the same pattern
            sizes = tuple(1 if role.coordinates.stride(axis) == 0 else size for axis, size in enumerate(sizes))
        self.separate(role, torch.arange(math.prod(sizes)).reshape(sizes).expand(shape))

    def total(self, signal: Signal, axes: Sequence[int], *, keep: bool = False) -> Signal:
        """The sum over axes, for linear reductions: what is summed must move alike."""
        axes = sorted(signal.axis(axis) for axis in axes)
        varying = [role for role in signal.roles if role.varies(*axes)]
        for role in varying:
            self.merges(role, axes)
        roles = [self.uniform(role, axes) for role in signal.roles if role not in varying or len(varying) == 1]
        if len(varying) > 1:
            self.vanish(varying)
        if not keep:
            roles = [role.moved(lambda labels: _squeezed(labels, axes)) for role in roles]
        shape = [1 if axis in axes else size for axis, size in enumerate(signal.shape)]
        shape = shape if keep else [size for axis, size in enumerate(signal.shape) if axis not in axes]
        return Signal(tuple(shape), tuple(self.renewed(role) for role in roles))

    def uniform(self, role: Role, axes: Sequence[int]) -> Role:
        """The role at index 0 of the axes, after demanding that it is the same at every other index."""
        for axis in axes:
            labels = role.coordinates
            first = role.moved(lambda labels, axis=axis: labels.narrow(axis, 0, 1))
            if labels.shape[axis] > 1 and labels.stride(axis) != 0:
                rest = role.moved(lambda labels, axis=axis: labels.narrow(axis, 1, labels.shape[axis] - 1))
                if bool((compact(first.coordinates) == ZERO).any()):
                    first, rest = _first_moving(role, axis), role
                copies = first.moved(lambda labels, like=rest.coordinates: labels.expand_as(like))
                self.agree(rest, Role(copies.coordinates, _pair(copies.fibres, rest.fibres)), 1)
            role = first
        return role


def _first_moving(role: Role, axis: int) -> Role:
    """The role at the first index along an axis at which it is not that of a zero."""
    place = (role.coordinates != ZERO).int().argmax(axis, keepdim=True)
    return role.moved(lambda labels: labels.gather(axis, place))


def _matched(a: Sequence[Role], b: Sequence[Role]) -> list[tuple[Role, Role]] | None:
    """Pairs of roles that act along the same axes; what has no partner is paired with rest. None if ambiguous."""
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]
    axes_a, axes_b = ([_axes(role) for role in roles] for roles in (a, b))
    if len(set(axes_a)) < len(a) or len(set(axes_b)) < len(b):
        return None
    by_axes = dict(zip(axes_b, b, strict=True))
    if not (set(axes_a) & set(by_axes)) and a and b:
        return None
    pairs = [(role, by_axes.pop(axes, blank(role.coordinates.shape))) for role, axes in zip(a, axes_a, strict=True)]
    return pairs + [(role, blank(role.coordinates.shape)) for role in by_axes.values()]


def _wild(signal: Signal) -> bool:
    """Whether a tensor is zero everywhere, and so moves with anything."""
    return bool(signal.roles) and all(bool((role.compact == ZERO).all()) for role in signal.roles)


def _filled(role: Role, other: Role) -> Role:
    """A role, with the labels of another where it is that of a zero."""
    zero = role.coordinates == ZERO
    return Role(torch.where(zero, other.coordinates, role.coordinates), _pair(role.fibres, other.fibres))


def _axes(role: Role) -> tuple[int, ...]:
    return tuple(axis for axis in range(role.coordinates.ndim) if role.varies(axis))


def _squeezed(labels: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in reversed(axes):
        labels = labels.squeeze(axis)
    return labels


def _pair(left: Tensor, right: Tensor) -> Tensor:
    """One number for each pair of numbers; axes along which both have stride 0 stay so."""
    small = torch.broadcast_tensors(compact(left), compact(right))
    found = torch.from_numpy(joined(*(labels.reshape(-1).numpy() for labels in small)))
    return found.reshape(small[0].shape).expand(left.shape)


def _rank(group: Tensor) -> Tensor:
    """For each element, how many of its group come before it."""
    order = torch.argsort(group, stable=True)
    ordered = group[order]
    starts = torch.cat([torch.ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    position = torch.arange(len(group))
    rank = torch.empty_like(group)
    rank[order] = position - torch.cummax(torch.where(starts, position, 0), 0).values
    return rank


def _spread(numbers: Tensor, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Numbers laid out along some axes of a shape, with stride 0 along the others."""
    sizes = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
    return numbers.reshape(sizes).expand(tuple(shape))


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether all values are equal; most that are not differ in the first."""
    return bool(left.flat[0] == right.flat[0]) and bool((left == right).all())
