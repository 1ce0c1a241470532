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
class _System:
    """The equations `H A = R` at some weights, for a generator `A` of each law.

    Of laws of whole matrices the weights are turned to where `S = Σ degree² w wᵀ` is diagonal: the block of `H` of each
    is then inverted entry by entry.
    """

    laws: tuple[Law, ...]
    shifts: tuple[Law, ...]
    weights: Weights  # turned
    slices: list[list[Tensor]]  # of these, by law
    spectra: list[tuple[Tensor, Tensor]]  # of `S`, by law
    turned: list[bool]

    @classmethod
    def at(cls, laws: tuple[Law, ...], shifts: tuple[Law, ...], weights: Weights) -> "_System":
        """The system at these weights."""
        spectra = [torch.linalg.eigh(_sides(law, law.slices(weights))) for law in laws]
        turned = [not shifts and _is_whole(law) for law in laws]
        weights = {name: weight.clone() for name, weight in weights.items()} if any(turned) else weights
        for law, (_, vectors), turns in zip(laws, spectra, turned, strict=True):
            if turns:
                rotate(law, weights, vectors.mT)
        return cls(laws, shifts, weights, [law.slices(weights) for law in laws], spectra, turned)

    def solve(self, gaps: Generators, tolerance: float) -> tuple[Generators, float]:
        """The generators, and the operations that they took."""
        products = 0

        def product(generators: Generators) -> Generators:
            nonlocal products
            products += 1
            return self._product(generators)

        frames = [vectors if turns else None for (_, vectors), turns in zip(self.spectra, self.turned, strict=True)]
        gaps = [gap if frame is None else frame.mT @ gap @ frame for gap, frame in zip(gaps, frames, strict=True)]
        found = conjugate_gradients(product, gaps, self._law_by_law, tolerance)
        found = [each if frame is None else frame @ each @ frame.mT for each, frame in zip(found, frames, strict=True)]
        return found, products * self._operations

    def _product(self, generators: Generators) -> Generators:
        """`2 P sym(ẇ wᵀ)` for the velocity `ẇ` of these generators, with every sum held."""
        velocity = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        for law, members, each in zip(self.laws, self.slices, generators, strict=True):
            add_velocity(law, members, each, velocity)
        for law in self.shifts:
            center(law, velocity)
        pairs = zip(self.laws, self.slices, strict=True)
        return [2 * moments_of(law, law.slices(velocity), members) for law, members in pairs]

    def _law_by_law(self, right: Generators) -> Generators:
        """The inverse of `H` for each law by itself, `S A + A S = R`, to precondition by."""
        each = zip(self.laws, self.spectra, self.turned, right, strict=True)
        return [
            _over_sums(values, one) if turns else law.commutant.project(_lyapunov(values, vectors, one))
            for law, (values, vectors), turns, one in each
        ]

    @property
    def _operations(self) -> float:
        """Of one product with `H`: two with every member, by its matrices."""
        return sum(4.0 * one.numel() * one.shape[2] for members in self.slices for one in members)


def _is_whole(law: Law) -> bool:
    """Whether a law is one of all matrices on some blocks."""
    return law.commutant.shape[1] > 1 and type(law.commutant).project is Matrices.project


def _sides(law: Law, slices: Sequence[Tensor]) -> Tensor:
    """`Σ degree² w wᵀ` over the members of a law."""
    lines = [degree * each.transpose(1, 2).flatten(2) for degree, each in zip(law.degrees, slices, strict=True)]
    return sum((each @ each.mT for each in lines[1:]), lines[0] @ lines[0].mT)


def _lyapunov(values: Tensor, vectors: Tensor, right: Tensor) -> Tensor:
    """`A` with `S A + A S = R`, from the spectrum of `S`; zero in directions that `S` does not have."""
    if values.shape[-1] == 1:
        return torch.where(values > 0, right[:, 0] / torch.where(values > 0, 2 * values, 1.0), 0.0)[:, None]
    return vectors @ _over_sums(values, vectors.mT @ right @ vectors) @ vectors.mT


def _over_sums(values: Tensor, right: Tensor) -> Tensor:
    """The same where `S` is the diagonal matrix of these values."""
    sums = values[:, :, None] + values[:, None, :]
    resolved = sums > torch.finfo(values.dtype).eps * sums.amax((1, 2), keepdim=True)
    return torch.where(resolved, right / torch.where(resolved, sums, 1.0), 0.0)
