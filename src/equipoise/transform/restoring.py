"""Laws brought back to given values along their own symmetries: the function stays (docs/theory.md, T6.4).

The conserved quantity is the gradient of `½‖w‖²` along its symmetry, and `H A = 2 P sym(ẇ wᵀ)`, `ẇ = A · w`, its
derivative there. So weights that a numerical method has carried off the level set of the laws are brought back by
Newton's method on generators, one product with `H` two passes over the weights, none over data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.laws import Law, Laws
from equipoise.laws.commutant import Matrices
from equipoise.transform.movable import exactly_movable
from equipoise.transform.newton import Generators, conjugate_gradients
from equipoise.transform.symmetry_action import (
    Weights,
    add_velocity,
    advance,
    center,
    moments,
    moments_of,
    rotate,
    shift_to,
    squared_norm,
)

_ROUNDS = 12
_FARTHEST = 0.5  # of a move, in the logarithm of a scale: what is farther off is no rounding of a flow


class Restored(NamedTuple):
    """How far laws are from their values after they were restored, and the operations that it took."""

    left: float
    operations: float


@dataclass(frozen=True, eq=False)
class LawValues:
    """The values of all laws of a model at some weights, to which other weights are brought back."""

    laws: tuple[Law, ...]  # scales and matrices
    values: tuple[Tensor, ...]
    shifts: tuple[Law, ...]  # sums over groups
    sums: tuple[Tensor, ...]

    @classmethod
    def at(cls, laws: Laws, weights: Weights) -> "LawValues | None":
        """The values at these weights; `None` for a model with a law that no move restores, or an `eps` breaks.

        >>> import equipoise as eq
        >>> model = eq.networks.mlp([3, 4, 4, 1], linear_tail=2)
        >>> weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        >>> kept = LawValues.at(eq.invariances(model, torch.ones(2, 3).double()), weights)
        >>> weights["layer2.weight"] *= 1.01  # no move of the flow
        >>> kept.restore(weights).left < 1e-15
        True
        """
        movable = exactly_movable(laws, weights)
        shifts = [law for law in laws if law.kind == "shift"]
        known = {law.name for law in (*movable, *shifts)}
        if any(law.count and law.name not in known for law in laws):
            return None
        values = tuple(moments(law, weights, weights) for law in movable)
        return cls(tuple(movable), values, tuple(shifts), tuple(law.value(weights) for law in shifts))

    def restore(self, weights: Weights, gradient: Weights | None = None) -> Restored:
        """Bring weights back, in place; a gradient there is carried along to what it is at the end.

        Args:
            weights: by canonical name.
            gradient: of any function with these symmetries, in the same shapes.

        Returns:
            The largest `‖C - C₀‖ / ‖w‖²` that is left, infinite where the laws are too far off, or cannot be reached;
            and the operations that it took.
        """
        left, rounding, operations = math.inf, torch.finfo(next(iter(weights.values())).dtype).eps, 0.0
        for _ in range(_ROUNDS):
            for law, total in zip(self.shifts, self.sums, strict=True):
                shift_to(law, weights, total)
            gaps = [moments(law, weights, weights) - value for law, value in zip(self.laws, self.values, strict=True)]
            before, left = left, max((float(gap.norm()) for gap in gaps), default=0.0) / squared_norm(weights)
            if left <= rounding / 2 or (left < 50 * rounding and left > before / 2):
                break
            system = _System.at(self.laws, self.shifts, weights)
            generators, count = system.solve(gaps, max(left, 0.1 * rounding / left))  # what the next round sees, or all
            operations += count
            if not max(float(each.abs().max()) for each in generators) < _FARTHEST:
                return Restored(math.inf, operations)
            for law, each in zip(self.laws, generators, strict=True):
                advance(law, weights, -each)
                if gradient is not None:
                    advance(law, gradient, each)
        return Restored(left, operations)


@dataclass(frozen=True, eq=False)
class _Block:
    """The block of `H` of one law by itself, `A → S A + A S` with `S = Σ degree² w wᵀ`.

    The weights of a law of whole matrices are turned to where `S` is diagonal: it is then inverted entry by entry.
    """

    law: Law
    values: Tensor  # of `S`
    vectors: Tensor
    turned: bool
    exact: bool  # whether this is the block to rounding

    @classmethod
    def at(cls, law: Law, weights: Weights, free: bool) -> "_Block":
        """The block at some weights; `free` where no sum is held."""
        values, vectors = torch.linalg.eigh(_sides(law, law.slices(weights)))
        whole = type(law.commutant).project is Matrices.project
        single = len(set(law.parameters)) == len(law.interface.members)
        turned = free and whole and values.shape[-1] > 1
        return cls(law, values, vectors, turned, free and whole and single)

    def inwards(self, generator: Tensor) -> Tensor:
        """A generator in the coordinates of the turned weights."""
        return self.vectors.mT @ generator @ self.vectors if self.turned else generator

    def outwards(self, generator: Tensor) -> Tensor:
        """The same in those of the weights."""
        return self.vectors @ generator @ self.vectors.mT if self.turned else generator

    def product(self, generator: Tensor) -> Tensor:
        """`S A + A S`, where the weights are turned or `A` is a number."""
        return (self.values[:, :, None] + self.values[:, None, :]) * generator

    def solve(self, right: Tensor) -> Tensor:
        """The inverse; zero in directions that `S` does not have."""
        if self.turned or self.values.shape[-1] == 1:
            return _over_sums(self.values, right)
        found = _over_sums(self.values, self.vectors.mT @ right @ self.vectors)
        return self.law.commutant.project(self.vectors @ found @ self.vectors.mT)


@dataclass(frozen=True, eq=False)
class _System:
    """The equations `H A = R` at some weights, for a generator `A` of each law.

    Laws that share no weight, of a chain every other one, are eliminated by their blocks: conjugate gradients on what
    is left take half as many iterations.
    """

    blocks: list[_Block]
    shifts: tuple[Law, ...]
    weights: Weights  # turned
    slices: list[list[Tensor]]  # of these, by law
    kept: list[int]
    eliminated: list[int]
    apart: bool  # whether those kept share no weight with each other either

    @classmethod
    def at(cls, laws: tuple[Law, ...], shifts: tuple[Law, ...], weights: Weights) -> "_System":
        """The system at these weights."""
        blocks = [_Block.at(law, weights, free=not shifts) for law in laws]
        if any(block.turned for block in blocks):
            weights = {name: weight.clone() for name, weight in weights.items()}
        for block in blocks:
            if block.turned:
                rotate(block.law, weights, block.vectors.mT)
        exact = [number for number, block in enumerate(blocks) if block.exact]
        eliminated = _apart(laws, exact)
        kept = [number for number in range(len(laws)) if number not in eliminated]
        apart = _apart(laws, [number for number in kept if number in exact]) == kept
        return cls(blocks, shifts, weights, [law.slices(weights) for law in laws], kept, eliminated, apart)

    def solve(self, gaps: Generators, tolerance: float) -> tuple[Generators, float]:
        """The generators, and the operations that they took."""
        kept, eliminated, products = self.kept, self.eliminated, 0
        gaps = [block.inwards(gap) for block, gap in zip(self.blocks, gaps, strict=True)]

        def product(generators: Generators) -> Generators:
            nonlocal products
            products += 1
            if self.apart:
                own = [self.blocks[number].product(each) for number, each in zip(kept, generators, strict=True)]
                moved = self._product(generators, kept, eliminated)
            else:
                both = self._product(generators, kept, kept + eliminated)
                own, moved = both[: len(kept)], both[len(kept) :]
            return self._less_answer(own, moved)

        target = self._less_answer([gaps[number] for number in kept], [gaps[number] for number in eliminated])
        found = conjugate_gradients(product, target, lambda right: self._inverse(right, kept), tolerance)
        moved = self._product(found, kept, eliminated)
        rest = [gaps[number] - each for number, each in zip(eliminated, moved, strict=True)]
        both = dict(zip(kept + eliminated, found + self._inverse(rest, eliminated), strict=True))
        generators = [block.outwards(both[number]) for number, block in enumerate(self.blocks)]
        return generators, (products + 1) * self._operations

    def _less_answer(self, onto_kept: Generators, onto_eliminated: Generators) -> Generators:
        """What is left on the laws kept when those eliminated have answered."""
        if not self.eliminated:
            return onto_kept
        answer = self._product(self._inverse(onto_eliminated, self.eliminated), self.eliminated, self.kept)
        return [each - its for each, its in zip(onto_kept, answer, strict=True)]

    def _inverse(self, right: Generators, numbers: list[int]) -> Generators:
        """The inverse of `H` for each of some laws by itself."""
        return [self.blocks[number].solve(each) for number, each in zip(numbers, right, strict=True)]

    def _product(self, generators: Generators, moving: list[int], onto: list[int]) -> Generators:
        """`2 P sym(ẇ wᵀ)` of some laws for the velocity `ẇ` of these generators of others, with every sum held."""
        if not onto:
            return []
        names = self._shared(moving, onto) if not self.shifts else set(self.weights)
        velocity = {name: torch.zeros_like(self.weights[name]) for name in names}
        for number, each in zip(moving, generators, strict=True):
            add_velocity(self.blocks[number].law, self.slices[number], each, velocity)
        for law in self.shifts:
            center(law, velocity)
        return [2 * moments_of(self.blocks[number].law, velocity, self.slices[number]) for number in onto]

    def _shared(self, moving: list[int], onto: list[int]) -> set[str]:
        """The weights that laws of both kinds are of."""
        moved, read = (
            {name for number in each for name in self.blocks[number].law.parameters} for each in (moving, onto)
        )
        return moved & read

    @property
    def _operations(self) -> float:
        """Of one product on the laws kept: two with every member of every law, by its matrices."""
        return sum(4.0 * one.numel() * one.shape[2] for members in self.slices for one in members)


def _apart(laws: Sequence[Law], numbers: Sequence[int]) -> list[int]:
    """Of laws with these numbers as many as come, in their order, without a weight in common."""
    found, taken = [], set()
    for number in numbers:
        if taken.isdisjoint(laws[number].parameters):
            found.append(number)
            taken.update(laws[number].parameters)
    return found


def _sides(law: Law, slices: Sequence[Tensor]) -> Tensor:
    """`Σ degree² w wᵀ` over the members of a law."""
    lines = [degree * each.transpose(1, 2).flatten(2) for degree, each in zip(law.degrees, slices, strict=True)]
    return sum((each @ each.mT for each in lines[1:]), lines[0] @ lines[0].mT)


def _over_sums(values: Tensor, right: Tensor) -> Tensor:
    """`A` with `S A + A S = R` where `S` is the diagonal matrix of these values."""
    sums = values[:, :, None] + values[:, None, :]
    resolved = sums > torch.finfo(values.dtype).eps * sums.amax((1, 2), keepdim=True)
    return torch.where(resolved, right / torch.where(resolved, sums, 1.0), 0.0)
