"""The compact part of the symmetry: permutations, signs and rotations, and the nearest of each to a target.

Each part solves `max_g ⟨target, g · w⟩` over its own elements: a linear assignment for permutations, with signs where
each unit has one, and orthogonal Procrustes for rotations (docs/theory.md, T9).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from equipoise.laws import Law
from equipoise.transform.head_moves import Element, cycle, nearest_rotations, random_rotations, turned_by
from equipoise.transform.symmetry_action import Weights, rotate, stacked
from equipoise.transform.unit_groups import Holders, UnitGroup, UnitSlices


class Symmetry(Protocol):
    """One part of the group; what its elements are is its own affair."""

    @property
    def kind(self) -> str:
        """`permutation`, `heads`, `sign` or `rotation`."""
        ...

    @property
    def name(self) -> str:
        """The interface."""
        ...

    @property
    def size(self) -> int:
        """How many units it moves."""
        ...

    @property
    def names(self) -> Collection[str]:
        """The tensors that it moves."""
        ...

    def random(self, generator: torch.Generator) -> Element:
        """An element that moves every unit where that is possible."""
        ...

    def nearest(self, weights: Weights, target: Weights, among: Collection[str] | None = None) -> Element:
        """The element that brings the weights nearest to the target; of the tensors named, if any are."""
        ...

    def apply(self, tensors: Weights, element: Element) -> None:
        """Move the tensors in place."""
        ...

    def moved(self, element: Element) -> list[int]:
        """The units that an element moves."""
        ...


@dataclass(frozen=True, eq=False)
class _OfUnits:
    """A part of the group that moves whole units."""

    group: UnitGroup

    @property
    def name(self) -> str:
        """That of the interface."""
        return self.group.name

    @property
    def size(self) -> int:
        """Units."""
        return self.group.size

    @property
    def names(self) -> Collection[str]:
        """Weights and running statistics."""
        return {part.name for part in self.group.parts}


@dataclass(frozen=True, eq=False)
class Permutation(_OfUnits):
    """Units exchanged, each with a sign if `odd` names the parts that change it.

    An element is the order, unit `order[i]` in the place of unit `i`, and the signs.
    """

    odd: tuple[int, ...] = ()
    kind: str = "permutation"

    def random(self, generator: torch.Generator) -> Element:
        """A cyclic order of the units, drawn at random."""
        return cycle(self.size, generator), torch.ones(self.size, dtype=torch.int64)

    def nearest(self, weights: Weights, target: Weights, among: Collection[str] | None = None) -> Element:
        """By a linear assignment on the inner products of units."""
        names = [part.name for part in self.group.parts]
        used = [n for n, name in enumerate(names) if among is None or (name in among and names.count(name) == 1)]
        even, odd = (
            _products([self.group.parts[n] for n in used if (n in self.odd) == side], weights, target, self.size)
            for side in (False, True)
        )
        order = torch.from_numpy(linear_sum_assignment((even + odd.abs()).cpu().numpy(), maximize=True)[1])
        return order, torch.where(odd.cpu()[torch.arange(self.size), order] < 0, -1, 1)

    def apply(self, tensors: Weights, element: Element) -> None:
        """Part by part; a weight that a unit both writes and reads is permuted on both sides."""
        order, signs = element
        for place, part in enumerate(self.group.parts):
            flat = tensors[part.name].view(-1)
            chosen = flat[part.places[order]]
            flat[part.places] = chosen * signs[:, None].to(flat) if place in self.odd else chosen

    def moved(self, element: Element) -> list[int]:
        """Units whose place or sign changes."""
        order, signs = element
        return torch.nonzero((order != torch.arange(self.size)) | (signs < 0)).flatten().tolist()


@dataclass(frozen=True, eq=False)
class SignChange(_OfUnits):
    """Units negated where they are written and where they are read. An element is a sign for each."""

    kind: str = "sign"

    def random(self, generator: torch.Generator) -> Element:
        """Every other sign, from the first."""
        return (1 - 2 * ((torch.arange(self.size) + 1) % 2),)

    def nearest(self, weights: Weights, target: Weights, among: Collection[str] | None = None) -> Element:
        """The sign of the inner product of each unit."""
        parts = [part for part in self.group.parts if among is None or part.name in among]
        return (torch.where(_products(parts, weights, target, self.size).diagonal() < 0, -1, 1).cpu(),)

    def apply(self, tensors: Weights, element: Element) -> None:
        """Part by part; a weight on both sides of a unit changes its sign twice."""
        for part in self.group.parts:
            flat = tensors[part.name].view(-1)
            flat[part.places] = flat[part.places] * element[0][:, None].to(flat)

    def moved(self, element: Element) -> list[int]:
        """Units whose sign changes."""
        return torch.nonzero(element[0] < 0).flatten().tolist()


@dataclass(frozen=True, eq=False)
class Rotation:
    """Orthogonal matrices on the blocks of a linear interface. An element is one matrix for each block."""

    law: Law
    kind: str = "rotation"

    @property
    def name(self) -> str:
        """That of the law."""
        return self.law.name

    @property
    def size(self) -> int:
        """Blocks."""
        return self.law.interface.blocks

    @property
    def names(self) -> Collection[str]:
        """Weights."""
        return self.law.parameters

    def random(self, generator: torch.Generator) -> Element:
        """Haar-distributed."""
        return (random_rotations(self.law, generator),)

    def nearest(self, weights: Weights, target: Weights, among: Collection[str] | None = None) -> Element:
        """Orthogonal Procrustes (Schönemann 1966): `U Vᵀ` of `Σ target wᵀ`."""
        wanted, own = (_chosen(self.law, tensors, among) for tensors in (target, weights))
        return (nearest_rotations(self.law, wanted @ own.mT),)

    def apply(self, tensors: Weights, element: Element) -> None:
        """Producers and consumers alike."""
        rotate(self.law, tensors, element[0].to(tensors[self.law.parameters[0]]))

    def moved(self, element: Element) -> list[int]:
        """Blocks that are turned by more than rounding."""
        return torch.nonzero(turned_by(element[0])).flatten().tolist()


def _chosen(law: Law, tensors: Weights, among: Collection[str] | None) -> Float[Tensor, "blocks width rest"]:
    named = None if among is None else set(among) & set(law.parameters)
    return stacked(law, tensors, lambda member: not named or member.parameter in named)


def _products(
    parts: Sequence[UnitSlices], weights: Weights, target: Weights, units: int
) -> Float[Tensor, "units units"]:
    """The inner product of unit `i` of the target with unit `j` of the weights; zero without parts."""
    total = torch.zeros(units, units, dtype=torch.float64)
    for part in parts:
        if part.weighs:
            own, wanted = (tensors[part.name].reshape(-1)[part.places] for tensors in (weights, target))
            total = total + (wanted @ own.mT).to(total)
    return total


def with_signs(group: UnitGroup, signs: Sequence[UnitGroup]) -> Permutation:
    """A permutation whose units change sign too, where some group of signs has one for each of them.

    Parts are divided into the elements that change sign and those that do not.
    """
    for each in signs:
        odd = _odd_elements(group, each)
        if odd is not None:
            divided = [
                (UnitSlices(part.name, part.places[:, mask == side], part.weighs), side)
                for part, mask in zip(group.parts, odd, strict=True)
                for side in (False, True)
                if bool((mask == side).any())
            ]
            parts = tuple(part for part, _ in divided)
            return Permutation(
                UnitGroup(group.name, parts), tuple(place for place, (_, side) in enumerate(divided) if side)
            )
    return Permutation(group)


def _odd_elements(group: UnitGroup, signs: UnitGroup) -> list[Bool[Tensor, " elements"]] | None:
    """By part, the elements of a unit that a sign changes; None unless each unit has a sign, which is all its own."""
    masks = [torch.zeros(part.places.shape[1], dtype=torch.bool) for part in group.parts]
    if signs.size != group.size:
        return None
    for changed in signs.parts:
        inside = [
            place
            for place, part in enumerate(group.parts)
            if part.name == changed.name and _same_unit(part, changed) is not None
        ]
        if not inside:
            return None
        for place in inside:
            part = group.parts[place]
            mask = Holders([changed]).of(part.name, part.places) >= 0
            if not bool((mask == mask[:1]).all()):
                return None
            masks[place] |= mask[0]
    return masks


def _same_unit(part: UnitSlices, changed: UnitSlices) -> Tensor | None:
    """The unit of a part that holds all elements of each changed one; None where they are spread."""
    owners = Holders([part]).of(part.name, changed.places)
    alone = bool((owners >= 0).all()) and bool((owners == owners[:, :1]).all())
    return owners[:, 0] if alone and len(owners[:, 0].unique()) == len(owners) else None
