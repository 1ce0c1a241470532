"""Piecewise-linear operations and the linear maps that replace them along a step (T6.2).

Each is replaced by a map that is linear in its input, with weights `α` fixed for the step: a slope for each neuron of a
rectifier, convex weights on each window of a maximum. Chosen as the secant between the two ends of the step they carry
one end to the other, `A(z₁) - A(z₀) = σ(z₁) - σ(z₀)`; with any weights, the vertex-wise laws hold.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


@runtime_checkable
class Piecewise(Protocol):
    """A piecewise-linear map of `z`, which may have parameters of its own."""

    @property
    def negative_slope(self) -> float | None:
        """The slope below zero, for a map that acts on one number at a time; `None` for a maximum of several."""
        ...

    def exact(self, z: Tensor, *parameters: Tensor) -> Tensor:
        """`σ(z)`."""
        ...

    def sloped(self, z: Tensor, weights: Tensor, *parameters: Tensor) -> Tensor:
        """The linear map with these weights."""
        ...

    def secant(self, before: Tensor, after: Tensor) -> Tensor:
        """The weights with which the linear map carries one end to the other; at equal ends those of a derivative."""
        ...

    def inside(self, weights: Tensor) -> Bool[Tensor, "..."]:
        """Which outputs these weights put between two of its pieces: there it is crossed or slid along (T4.5)."""
        ...


def activation(preactivation: Tensor, negative_slope: float) -> Tensor:
    """`σ(z)`: the identity above zero, `negative_slope · z` below.

    >>> activation(torch.tensor([-2.0, 3.0]), 0.0)
    tensor([-0., 3.])
    """
    return torch.where(preactivation > 0, preactivation, negative_slope * preactivation)


def secant_slope(
    before: Float[Tensor, "*shape"], after: Float[Tensor, "*shape"], negative_slope: float
) -> Float[Tensor, "*shape"]:
    """`α = (σ(z₁) - σ(z₀)) / (z₁ - z₀)`: a one-sided slope unless the pair crosses its kink (T6.2).

    >>> secant_slope(torch.tensor([1.0, -1.0, -1.0]), torch.tensor([2.0, -2.0, 3.0]), 0.0)
    tensor([1.0000, 0.0000, 0.7500])
    """
    on = after > 0
    crosses = on != (before > 0)
    width = torch.where(crosses, after - before, 1.0)
    chord = (activation(after, negative_slope) - activation(before, negative_slope)) / width
    one_sided = torch.where(on, torch.ones_like(after), torch.full_like(after, negative_slope))
    return torch.where(crosses, chord, one_sided)


@dataclass(frozen=True)
class Rectifier:
    """`σ(z) = z` for `z > 0`, `negative_slope · z` otherwise: ReLU, leaky ReLU, absolute value."""

    negative_slope: float

    def exact(self, z: Tensor, *parameters: Tensor) -> Tensor:
        """`σ(z)`."""
        return activation(z, self.negative_slope)

    def sloped(self, z: Tensor, weights: Tensor, *parameters: Tensor) -> Tensor:
        """`α ∘ z`."""
        return weights * z

    def secant(self, before: Tensor, after: Tensor) -> Tensor:
        """`(σ(z₁) - σ(z₀)) / (z₁ - z₀)`."""
        if before is after:
            return torch.where(after > 0, torch.ones_like(after), torch.full_like(after, self.negative_slope))
        return secant_slope(before, after, self.negative_slope)

    def inside(self, weights: Tensor) -> Bool[Tensor, "..."]:
        """Slopes strictly between those of both sides.

        >>> Rectifier(0.1).inside(torch.tensor([0.1, 0.3, 1.0]))
        tensor([False,  True, False])
        """
        low, high = sorted((self.negative_slope, 1.0))
        return (weights > low) & (weights < high)


@dataclass(frozen=True)
class ParametricRectifier:
    """PReLU, `σ(z) = max(z, 0) + a min(z, 0)` with a trained `a`: `(α + a (1 - α)) z`, multilinear in `a` and `z`."""

    negative_slope: float = 0.0  # of α, the slope of max(z, 0)

    def exact(self, z: Tensor, *parameters: Tensor) -> Tensor:
        """`σ(z)`."""
        return F.prelu(z, *parameters)

    def sloped(self, z: Tensor, weights: Tensor, *parameters: Tensor) -> Tensor:
        """`α z + a (1 - α) z`."""
        (slope,) = parameters
        if slope.numel() > 1:
            slope = slope.view(-1, *[1] * (z.ndim - 2))
        return (weights + slope * (1 - weights)) * z

    def secant(self, before: Tensor, after: Tensor) -> Tensor:
        """Of `max(z, 0)`: the rest of `z` is `min(z, 0)`."""
        return secant_slope(before, after, 0.0)

    def inside(self, weights: Tensor) -> Bool[Tensor, "..."]:
        """`α` strictly between 0 and 1."""
        return Rectifier(0.0).inside(weights)


class Maximum(ABC):
    """The maximum over windows: `Σ_j β_j z_j`, the weights `β` convex, along a last axis.

    Between `j₀`, the place of the maximum before, and `j₁`, that after, the secant weights are `θ` and `1 - θ` with
    `θ = g₀ / (g₀ + g₁)`, `g₀ = z_{j₀} - z_{j₁}` before and `g₁ = z_{j₁} - z_{j₀}` after.
    """

    @property
    def negative_slope(self) -> None:
        """It acts on several numbers at a time."""
        return None

    def exact(self, z: Tensor, *parameters: Tensor) -> Tensor:
        """The maximum of every window."""
        return self.windows(z).amax(-1)

    def sloped(self, z: Tensor, weights: Tensor, *parameters: Tensor) -> Tensor:
        """The weighted sum of every window."""
        return (weights * self._windows(z, 0.0)).sum(-1)

    def secant(self, before: Tensor, after: Tensor) -> Tensor:
        """Convex weights on the places of both maxima."""
        ends = [self.windows(z) for z in (before, after)]
        places = [end.argmax(-1, keepdim=True) for end in ends]
        lost = ends[0].gather(-1, places[0]) - ends[0].gather(-1, places[1])
        won = ends[1].gather(-1, places[1]) - ends[1].gather(-1, places[0])
        total = lost + won
        share = torch.where(total > 0, lost / torch.where(total > 0, total, 1.0), 0.0)
        weights = torch.zeros_like(ends[0]).scatter(-1, places[0], share)
        return weights.scatter_add(-1, places[1], 1 - share)

    def inside(self, weights: Tensor) -> Bool[Tensor, "..."]:
        """Windows whose maximum is shared.

        >>> Largest((1,)).inside(torch.tensor([[0.0, 1.0], [0.4, 0.6]]))
        tensor([False,  True])
        """
        return weights.amax(-1) < 1

    def windows(self, z: Tensor) -> Tensor:
        """The elements that each maximum is taken of, along a new last axis."""
        return self._windows(z, -torch.inf)

    @abstractmethod
    def _windows(self, z: Tensor, fill: float) -> Tensor:
        """The windows, each flattened along a new last axis; `fill` is what surrounds `z`."""


@dataclass(frozen=True)
class Pooled(Maximum):
    """Over windows that slide along one or two axes.

    >>> pool = Pooled((2,), (2,), (0,))
    >>> pool.secant(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 4.0]]]))
    tensor([[[[0.2500, 0.7500]]]])
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def _windows(self, z: Tensor, fill: float) -> Tensor:
        if len(self.kernel) == 1:
            pool = Pooled((1, *self.kernel), (1, *self.stride), (0, *self.padding))
            return pool._windows(z.unsqueeze(-2), fill).squeeze(-3)
        if any(self.padding):
            z = F.pad(z, [side for pad in reversed(self.padding) for side in (pad, pad)], value=fill)
        shape = [(size - k) // s + 1 for size, k, s in zip(z.shape[-2:], self.kernel, self.stride, strict=True)]
        return (
            F.unfold(z, self.kernel, stride=self.stride)
            .unflatten(2, shape)
            .unflatten(1, (z.shape[1], -1))
            .movedim(2, -1)
        )


@dataclass(frozen=True)
class Largest(Maximum):
    """Over these axes, which are `kept` with length 1, or go; over all where none is named.

    >>> Largest((1,)).exact(torch.tensor([[1.0, 3.0], [0.0, -1.0]]))
    tensor([3., 0.])
    """

    axes: tuple[int, ...]
    kept: bool = False

    def _windows(self, z: Tensor, fill: float) -> Tensor:
        axes = sorted(axis % z.ndim for axis in self.axes or range(z.ndim))
        windows = z.movedim(axes, [*range(-len(axes), 0)]).flatten(-len(axes))
        for axis in axes if self.kept else ():
            windows = windows.unsqueeze(axis)
        return windows
