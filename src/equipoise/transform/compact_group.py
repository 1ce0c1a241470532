"""The compact part of the symmetry: permutations, signs and rotations, and the nearest of each to a target.

Each part solves `max_g ⟨target, g · w⟩` over its own elements: a linear assignment for permutations, with signs where
each unit has one, and orthogonal Procrustes for rotations (docs/theory.md, T9).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from equipoise.graph.capture import Captured
from equipoise.laws import Law
from equipoise.transform.symmetry_action import Weights, rearrange, rotate, stacked
from equipoise.transform.unit_groups import UnitGroup, UnitSlices, exchangeable, heads, negatable, rotatable

Element = tuple[Tensor, ...]
Rotations = Float[Tensor, "blocks width width"]


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
        return _cycle(self.size, generator), torch.ones(self.size, dtype=torch.int64)

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
        """Haar-distributed up to signs."""
        return (_random_rotations(self.law, generator),)

    def nearest(self, weights: Weights, target: Weights, among: Collection[str] | None = None) -> Element:
        """Orthogonal Procrustes (Schönemann 1966): `U Vᵀ` of `Σ target wᵀ`."""
        wanted, own = (_chosen(self.law, tensors, among) for tensors in (target, weights))
        return (_procrustes(wanted @ own.mT),)

    def apply(self, tensors: Weights, element: Element) -> None:
        """Producers and consumers alike."""
        rotate(self.law, tensors, element[0].to(tensors[self.law.parameters[0]]))

    def moved(self, element: Element) -> list[int]:
        """Blocks that are turned by more than rounding."""
        return torch.nonzero(_turned(element[0])).flatten().tolist()


@dataclass(frozen=True, eq=False)
class Heads:
    """The blocks of one law exchanged, or of two jointly (queries and keys, values and outputs), and each turned.

    An element is the order of the blocks, and for each law a matrix for each block in its new place.
    """

    laws: tuple[Law, ...]
    kind: str = "heads"

    @property
    def name(self) -> str:
        """Those of the laws."""
        return " with ".join(law.name for law in self.laws)

    @property
    def size(self) -> int:
        """Heads."""
        return self.laws[0].interface.blocks

    @property
    def names(self) -> Collection[str]:
        """Weights."""
        return {name for law in self.laws for name in law.parameters}

    def random(self, generator: torch.Generator) -> Element:
        """A cyclic order, and rotations."""
        return _cycle(self.size, generator), *(_random_rotations(law, generator) for law in self.laws)

    def nearest(self, weights: Weights, target: Weights, among: Collection[str] | None = None) -> Element:
        """By a linear assignment on what each pair of heads gains when turned: a sum of singular values."""
        pairs = [[_chosen(law, tensors, among) for tensors in (target, weights)] for law in self.laws]
        products = [torch.einsum("iwn,jvn->ijwv", wanted, own) for wanted, own in pairs]
        gains = torch.stack([torch.linalg.svdvals(each).sum(-1) for each in products]).sum(0)
        order = torch.from_numpy(linear_sum_assignment(gains.cpu().numpy(), maximize=True)[1])
        return order, *(_procrustes(each[torch.arange(self.size), order]) for each in products)

    def apply(self, tensors: Weights, element: Element) -> None:
        """The order first, then the rotations."""
        for law, turn in zip(self.laws, element[1:], strict=True):
            rearrange(law, tensors, element[0])
            rotate(law, tensors, turn.to(tensors[law.parameters[0]]))

    def moved(self, element: Element) -> list[int]:
        """Heads whose place changes, or that are turned."""
        changed = element[0] != torch.arange(self.size)
        return torch.nonzero(torch.stack([changed, *map(_turned, element[1:])]).any(0)).flatten().tolist()


def symmetries(captured: Captured) -> tuple[list[Symmetry], list[Symmetry]]:
    """Candidates: those that move weights in independent ways, and those of heads, which may undo each other."""
    signs, laws = negatable(captured), rotatable(captured)
    units = [Permutation(group, _odd_parts(group, signs)) for group in exchangeable(captured)]
    independent = [*units, *(Rotation(law) for law in laws), *(SignChange(group) for group in signs)]
    return independent, [Heads(each) for each in heads(laws)]


def _cycle(size: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randperm(size, generator=generator)
    order = torch.empty_like(drawn)
    order[drawn] = drawn.roll(1)
    return order


def _random_rotations(law: Law, generator: torch.Generator) -> Rotations:
    width = law.interface.width
    drawn = torch.randn(law.interface.blocks, width, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


def _chosen(law: Law, tensors: Weights, among: Collection[str] | None) -> Float[Tensor, "blocks width rest"]:
    named = None if among is None else set(among) & set(law.parameters)
    return stacked(law, tensors, lambda member: not named or member.parameter in named)


def _procrustes(products: Rotations) -> Rotations:
    left, _, right = torch.linalg.svd(products)
    return left @ right


def _turned(rotations: Rotations) -> Tensor:
    identity = torch.eye(rotations.shape[-1], dtype=rotations.dtype, device=rotations.device)
    return ((rotations - identity).flatten(1).norm(dim=1) > 1e-12).cpu()


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


def _odd_parts(group: UnitGroup, signs: Sequence[UnitGroup]) -> tuple[int, ...]:
    """The parts that change sign with a unit, where some group of signs has one for each unit; else none."""
    for each in signs:
        held = {key for part in each.parts for key in _keys(part)}
        odd = [place for place, part in enumerate(group.parts) if set(_keys(part)) <= held]
        if odd:
            return tuple(odd)
    return ()


def _keys(part: UnitSlices) -> list[tuple[str, bytes]]:
    return [(part.name, row.numpy().tobytes()) for row in part.places.sort(1).values]
