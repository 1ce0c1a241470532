"""Laws brought back to given values along their own symmetries: the function stays (docs/theory.md, T6.4).

The conserved quantity is the gradient of `½‖w‖²` along its symmetry, and `H A = 2 P sym(ẇ wᵀ)`, `ẇ = A · w`, its
derivative there. So weights that a numerical method has carried off the level set of the laws are brought back by
Newton's method on generators, one product with `H` two passes over the weights, none over data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from equipoise.laws import Law, Laws
from equipoise.transform.movable import exactly_movable
from equipoise.transform.newton import Generators, conjugate_gradients
from equipoise.transform.symmetry_action import (
    Weights,
    add_velocity,
    advance,
    center,
    moments,
    moments_of,
    shift_to,
    squared_norm,
)

_ROUNDS = 12
_FARTHEST = 0.5  # of a move, in the logarithm of a scale: what is farther off is no rounding of a flow


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
        >>> kept.restore(weights) < 1e-15
        True
        """
        movable = exactly_movable(laws, weights)
        shifts = [law for law in laws if law.kind == "shift"]
        known = {law.name for law in (*movable, *shifts)}
        if any(law.count and law.name not in known for law in laws):
            return None
        values = tuple(moments(law, weights, weights) for law in movable)
        return cls(tuple(movable), values, tuple(shifts), tuple(law.value(weights) for law in shifts))

    def restore(self, weights: Weights, gradient: Weights | None = None) -> float:
        """Bring weights back, in place; a gradient there is carried along to what it is at the end.

        Args:
            weights: by canonical name.
            gradient: of any function with these symmetries, in the same shapes.

        Returns:
            The largest `‖C - C₀‖ / ‖w‖²` that is left; infinite where the laws are too far off, or cannot be reached.
        """
        left, rounding = float("inf"), torch.finfo(next(iter(weights.values())).dtype).eps
        for _ in range(_ROUNDS):
            self._restore_sums(weights)
            gaps = [moments(law, weights, weights) - value for law, value in zip(self.laws, self.values, strict=True)]
            before, left = left, max((float(gap.norm()) for gap in gaps), default=0.0) / squared_norm(weights)
            if left <= rounding / 2 or (left < 50 * rounding and left > before / 2):
                return left
            slices = [law.slices(weights) for law in self.laws]
            generators = conjugate_gradients(
                partial(self._hessian, weights, slices),
                gaps,
                self._law_by_law(slices),
                max(left, 0.1 * rounding / left),  # what the next round sees, or all there is
            )
            if not max(float(each.abs().max()) for each in generators) < _FARTHEST:
                return float("inf")
            for law, each in zip(self.laws, generators, strict=True):
                advance(law, weights, -each)
                if gradient is not None:
                    advance(law, gradient, each)
        return left

    def _restore_sums(self, weights: Weights) -> None:
        for law, total in zip(self.shifts, self.sums, strict=True):
            shift_to(law, weights, total)

    def _hessian(self, weights: Weights, slices: Sequence[list[Tensor]], generators: Generators) -> Generators:
        """`2 P sym(ẇ wᵀ)` for the velocity `ẇ` of these generators, with every sum held."""
        velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for law, members, each in zip(self.laws, slices, generators, strict=True):
            add_velocity(law, members, each, velocity)
        for law in self.shifts:
            center(law, velocity)
        return [
            2 * moments_of(law, law.slices(velocity), members) for law, members in zip(self.laws, slices, strict=True)
        ]

    def _law_by_law(self, slices: Sequence[list[Tensor]]) -> Callable[[Generators], Generators]:
        """The inverse of `H` for each law by itself, `S A + A S = R` with `S = Σ degree² w wᵀ`, to precondition by."""
        spectra = [torch.linalg.eigh(_sides(law, members)) for law, members in zip(self.laws, slices, strict=True)]

        def solved(right: Generators) -> Generators:
            return [
                law.commutant.project(_lyapunov(values, vectors, each))
                for law, (values, vectors), each in zip(self.laws, spectra, right, strict=True)
            ]

        return solved


def _sides(law: Law, slices: Sequence[Tensor]) -> Tensor:
    """`Σ degree² w wᵀ` over the members of a law."""
    lines = [degree * each.transpose(1, 2).flatten(2) for degree, each in zip(law.degrees, slices, strict=True)]
    return sum((each @ each.mT for each in lines[1:]), lines[0] @ lines[0].mT)


def _lyapunov(values: Tensor, vectors: Tensor, right: Tensor) -> Tensor:
    """`A` with `S A + A S = R`, from the spectrum of `S`; zero in directions that `S` does not have."""
    sums = values[:, :, None] + values[:, None, :]
    if sums.shape[-1] == 1:
        return torch.where(sums > 0, right / torch.where(sums > 0, sums, 1.0), 0.0)
    resolved = sums > torch.finfo(values.dtype).eps * sums.amax((1, 2), keepdim=True)
    turned = vectors.mT @ right @ vectors
    return vectors @ torch.where(resolved, turned / torch.where(resolved, sums, 1.0), 0.0) @ vectors.mT
