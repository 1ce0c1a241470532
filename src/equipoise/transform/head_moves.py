"""Heads of attention exchanged and turned: the nearest arrangement to a target (docs/theory.md, T9)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from equipoise.graph.interface import Member
from equipoise.laws import Law
from equipoise.laws.commutant import ComplexPlanes
from equipoise.transform.symmetry_action import Weights, rotate
from equipoise.transform.unit_groups import HeadGroup, HeadSlices, Holders, UnitSlices, places_of

ROUNDS = 10  # of rotations and an order of the heads in a group, each given the other
Element = tuple[Tensor, ...]
Matrices = Float[Tensor, "*places width width"]


@dataclass(frozen=True, eq=False)
class Turn:
    """A law within heads: the numbers of its blocks in each group, and which members each head has its own part of."""

    law: Law
    blocks: Int64[Tensor, "groups each"]
    own: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Heads:
    """Groups of heads exchanged, the heads within each, and the vectors of all heads of a group turned.

    An element is the order of the groups, the order of the heads in each of them, group `order[i]` in the place of
    group `i`, and for each law the matrices of its blocks in every place. `fixed` are the parts that no matrix turns.
    """

    group: HeadGroup
    turns: tuple[Turn, ...]
    fixed: HeadGroup
    kind: str = "heads"

    @classmethod
    def of(cls, group: HeadGroup, laws: Sequence[Law]) -> "Heads":
        """With those of some laws that act within heads."""
        names = {part.name for part in group.parts}
        near = [law for law in laws if names.issuperset(law.parameters)]
        held = Holders(group.parts)
        own = Holders([UnitSlices(part.name, part.places.flatten(1)) for part in group.own])
        turns = tuple(turn for law in near if (turn := _turn(group, law, held, own)) is not None)
        turned = [
            UnitSlices(member.parameter, places_of(member)) for turn in turns for member in turn.law.interface.members
        ]
        return cls(group, turns, _without(group, Holders(turned)))

    @property
    def name(self) -> str:
        """The weights of the attention."""
        return self.group.name

    @property
    def size(self) -> int:
        """Heads."""
        return self.group.groups * self.group.heads

    @property
    def names(self) -> Collection[str]:
        """Weights."""
        return {part.name for part in self.group.parts}.union(*(turn.law.parameters for turn in self.turns))

    def random(self, generator: torch.Generator) -> Element:
        """Cyclic orders, and rotations."""
        groups, heads = self.group.groups, self.group.heads
        inner = torch.stack([cycle(heads, generator) for _ in range(groups)])
        return cycle(groups, generator), inner, *(self._drawn(turn, generator) for turn in self.turns)

    def _drawn(self, turn: Turn, generator: torch.Generator) -> Matrices:
        drawn = random_rotations(turn.law, generator)
        return drawn[turn.blocks]

    def nearest(self, weights: Weights, target: Weights, among: Collection[str] | None = None) -> Element:
        """By linear assignments of groups and of the heads in each pair of groups, given rotations by Procrustes.

        Rotations of a pair of groups are those of keys and values first, which no order of heads changes.
        """
        pairs = [_products(turn, weights, target, among, self.group.heads) for turn in self.turns]
        shared = sum((_inner(part, weights, target, among) for part in self.fixed.shared), torch.zeros(()).double())
        own = sum((_inner(part, weights, target, among) for part in self.fixed.own), torch.zeros(()).double())
        groups, heads = self.group.groups, self.group.heads
        shared, own = shared.expand(groups, groups), own.expand(groups, groups, heads, heads)
        place = torch.arange(groups)[:, None, None], torch.arange(groups)[None, :, None], torch.arange(heads)
        inner = torch.arange(heads).expand(groups, groups, heads)
        turns = [nearest_rotations(turn.law, whole) for turn, (whole, _) in zip(self.turns, pairs, strict=True)]
        for _ in range(ROUNDS if heads > 1 else 0):
            gains = own
            for matrices, (_, each) in zip(turns, pairs, strict=True):
                gains = gains + torch.einsum("ijrscwv,ijcwv->ijrs", each, matrices)
            found = _assigned(gains)
            turns = [
                nearest_rotations(turn.law, whole + each[*place, found].sum(2))
                for turn, (whole, each) in zip(self.turns, pairs, strict=True)
            ]
            if torch.equal(found, inner):
                break
            inner = found
        gains = shared + own[*place, inner].sum(2)
        for matrices, (whole, each) in zip(turns, pairs, strict=True):
            gains = gains + ((whole + each[*place, inner].sum(2)) * matrices).flatten(2).sum(2)
        order = _assigned(gains)
        rows = torch.arange(groups)
        return order, inner[rows, order], *(matrices[rows, order] for matrices in turns)

    def apply(self, tensors: Weights, element: Element) -> None:
        """The orders first, then the rotations."""
        order, inner, *turns = element
        for part in self.group.shared:
            flat = tensors[part.name].view(-1)
            flat[part.places] = flat[part.places[order]]
        for part in self.group.own:
            flat = tensors[part.name].view(-1)
            flat[part.places] = flat[part.places[order[:, None], inner]]
        for turn, matrices in zip(self.turns, turns, strict=True):
            own = torch.eye(turn.law.interface.width, dtype=torch.float64).repeat(turn.law.interface.blocks, 1, 1)
            own[turn.blocks] = matrices.cpu()
            rotate(turn.law, tensors, own.to(tensors[turn.law.parameters[0]]))

    def moved(self, element: Element) -> list[int]:
        """Heads whose place changes, or that are turned."""
        order, inner, *turns = element
        changed = (order != torch.arange(self.group.groups))[:, None] | (inner != torch.arange(self.group.heads))
        for matrices in turns:
            changed = changed | turned_by(matrices).any(1)[:, None]
        return torch.nonzero(changed.flatten()).flatten().tolist()


def planes(group: HeadGroup, laws: Sequence[Law]) -> list[Law]:
    """Laws of rates within heads that pairs of components have in common: candidates for complex numbers on planes.

    A rotary embedding turns these planes, so that rotations of them, alike for queries and keys, commute with it.
    """
    held, names = Holders(group.parts), {part.name for part in group.parts}
    return [
        _of_planes(law)
        for law in laws
        if law.interface.width == 1
        and names.issuperset(law.parameters)
        and all(member.index.shape[1] % 2 == 0 for member in law.interface.members)
        and all(held.holds(member.parameter, places_of(member)) for member in law.interface.members)
    ]


def _of_planes(law: Law) -> Law:
    def paired(member: Member) -> Member:
        return replace(member, index=member.index.reshape(len(member.index), -1, 2))

    members = tuple(map(paired, law.interface.members))
    interface = replace(law.interface, members=members, width=2, symmetry="complex")
    return Law(law.name, interface, ComplexPlanes(interface.blocks))


def cycle(size: int, generator: torch.Generator) -> Int64[Tensor, " size"]:
    """An order of units drawn at random that leaves none of several in its place."""
    drawn = torch.randperm(size, generator=generator)
    order = torch.empty_like(drawn)
    order[drawn] = drawn.roll(1)
    return order


def random_rotations(law: Law, generator: torch.Generator) -> Matrices:
    """Orthogonal matrices of a law, one a block, Haar-distributed."""
    width = law.interface.width
    return nearest_rotations(
        law, torch.randn(law.interface.blocks, width, width, generator=generator, dtype=torch.float64)
    )


def nearest_rotations(law: Law, products: Matrices) -> Matrices:
    """Orthogonal Procrustes (Schönemann 1966) within the commutant of a law: `U Vᵀ` of `Σ target wᵀ`."""
    projected = law.commutant.project(products.reshape(-1, *products.shape[-2:]))
    left, _, right = torch.linalg.svd(projected)
    return (left @ right).reshape(products.shape)


def turned_by(matrices: Matrices) -> Bool[Tensor, "*places"]:
    """Whether matrices differ from the identity by more than rounding."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    return ((matrices - identity).flatten(-2).norm(dim=-1) > 1e-12).cpu()


def _turn(group: HeadGroup, law: Law, held: Holders, own: Holders) -> Turn | None:
    """None for a law that acts on more than one group, or on some only."""
    places = [places_of(member) for member in law.interface.members]
    owners = [held.of(member.parameter, each) for member, each in zip(law.interface.members, places, strict=True)]
    found = torch.cat(owners, 1)
    count, rest = divmod(law.interface.blocks, group.groups)
    if rest or bool((found < 0).any()) or bool((found != found[:, :1]).any()):
        return None
    if not torch.equal(found[:, 0].bincount(minlength=group.groups), torch.full((group.groups,), count)):
        return None
    blocks = found[:, 0].argsort(stable=True).reshape(group.groups, count)
    apart = [
        own.holds(member.parameter, each) and member.index.shape[1] % group.heads == 0
        for member, each in zip(law.interface.members, places, strict=True)
    ]
    return Turn(law, blocks, tuple(apart))


def _without(group: HeadGroup, turned: Holders) -> HeadGroup:
    """The elements that no law turns."""
    shared = [UnitSlices(part.name, part.places[:, turned.of(part.name, part.places[0]) < 0]) for part in group.shared]
    own = [HeadSlices(part.name, part.places[..., turned.of(part.name, part.places[0, 0]) < 0]) for part in group.own]
    return HeadGroup(group.name, tuple(shared), tuple(own))


def _products(
    turn: Turn, weights: Weights, target: Weights, among: Collection[str] | None, heads: int
) -> tuple[Float[Tensor, "i j c w v"], Float[Tensor, "i j r s c w v"]]:
    """Inner products of all vectors of group `i` of the target with those of group `j`, of all heads and of pairs."""
    named = None if among is None else set(among) & set(turn.law.parameters)
    groups, each = turn.blocks.shape
    width = turn.law.interface.width
    whole = torch.zeros(groups, groups, each, width, width, dtype=torch.float64)
    pairs = torch.zeros(groups, groups, heads, heads, each, width, width, dtype=torch.float64)
    sides = (turn.law.slices(tensors) for tensors in (target, weights))
    for member, apart, *slices in zip(turn.law.interface.members, turn.own, *sides, strict=True):
        if named and member.parameter not in named:
            continue
        wanted, own = (part[turn.blocks.to(part.device)].to(whole) for part in slices)  # groups each copies width rest
        if apart:
            wanted, own = (part.unflatten(2, (heads, -1)) for part in (wanted, own))
            pairs += torch.einsum("icrkwn,jcskvn->ijrscwv", wanted, own)
        else:
            whole += torch.einsum("ickwn,jckvn->ijcwv", wanted, own)
    return whole, pairs


def _inner(
    part: UnitSlices | HeadSlices, weights: Weights, target: Weights, among: Collection[str] | None
) -> Float[Tensor, "..."]:
    """Inner products of all pairs of groups; and of all pairs of heads in them."""
    if among is not None and part.name not in among:
        return torch.zeros(()).double()
    own, wanted = (tensors[part.name].reshape(-1)[part.places].double().cpu() for tensors in (weights, target))
    pairs = torch.einsum("...e,...e->...", own, wanted)
    return torch.einsum("ie,je->ij", wanted, own) if pairs.ndim == 1 else torch.einsum("ire,jse->ijrs", wanted, own)


def _assigned(gains: Float[Tensor, "*pairs n n"]) -> Int64[Tensor, "*pairs n"]:
    """For each row the column, each once, at the largest sum."""
    flat = gains.reshape(-1, *gains.shape[-2:]).cpu().numpy()
    found = [torch.from_numpy(linear_sum_assignment(each, maximize=True)[1]) for each in flat]
    return torch.stack(found).reshape(gains.shape[:-1])
