"""Secant slopes that depend on where they lead: pairs that cross or slide on their kink (THEORY T6.2 and T4.5)."""

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.graph.piecewise import Maximum, Piecewise


def implicit_slopes(
    kink: Piecewise, before: Tensor, after: Tensor, weights: Tensor, stiffness: Tensor
) -> Float[Tensor, "*weights"]:
    """The weights of a kink's linear map if each end answered a change of its own: `implicit_slope`.

    A maximum is the rectifier of its best rival's lead over the one that holds it, `z_{j₀} + max(z_{j₁} - z_{j₀}, 0)`.
    """
    if not isinstance(kink, Maximum):
        assert kink.negative_slope is not None
        return implicit_slope(before, after, weights, stiffness, kink.negative_slope)
    holder, rival, lead, lead_after = kink.rivals(before, after)
    share = implicit_slope(lead, lead_after, weights.gather(-1, rival), 2 * stiffness[..., None], 0.0)
    return torch.zeros_like(weights).scatter(-1, holder, 1 - share).scatter_add(-1, rival, share)


def bounded(kink: Piecewise, weights: Tensor) -> Tensor:
    """The weights, kept to where those of a linear map of this kink may lie."""
    negative = kink.negative_slope or 0.0
    return weights.clamp(min(negative, 1.0), max(negative, 1.0))


def implicit_slope(
    before: Float[Tensor, "*pairs"],
    after: Float[Tensor, "*pairs"],
    slope: Float[Tensor, "*pairs"],
    stiffness: Float[Tensor, "*pairs"],
    negative_slope: float,
) -> Float[Tensor, "*pairs"]:
    """The secant slope `α'` of each pair if its end answered `z₁ - k (α' - α)`, `k ≥ 0` its stiffness (T4.5).

    The secant slope of a pair that slides jumps from one side to the other as `z₁` does, and iterating it flips it for
    ever. Solved together with its own effect on `z₁`, it is a continuous function of `z₁`, and at a fixed point
    `α' = α` it is the secant slope itself. With `σ(z) = νz + (1 - ν) max(z, 0)` it is a root of a quadratic.

    >>> still, once = torch.zeros(3).double(), torch.ones(3).double()
    >>> implicit_slope(still, torch.tensor([-0.5, 0.0, 0.5]).double(), once / 2, 2 * once, 0.0)
    tensor([0.2500, 0.5000, 0.7500], dtype=torch.float64)
    """
    if negative_slope == 1:
        return slope
    share = (slope - negative_slope) / (1 - negative_slope)
    answer = (stiffness * (1 - negative_slope)).clamp(min=0)
    level = after + answer * share
    share = torch.where(before > 0, _leaving(before, level, answer), _entering(before, level, answer))
    return negative_slope + (1 - negative_slope) * share.clamp(0, 1)


def _leaving(before: Tensor, level: Tensor, answer: Tensor) -> Tensor:
    """From above: 1 while `z₁ = q - kβ` stays there, else the positive root of `kβ² + (z₀ - q)β = z₀`."""
    middle = before - level
    root = (middle**2 + 4 * answer * before).clamp(min=0).sqrt()
    tiny = torch.finfo(level.dtype).tiny
    below = torch.where(middle > 0, 2 * before / (middle + root).clamp(min=tiny), (root - middle) / (2 * answer + tiny))
    return torch.where(level >= answer, 1.0, below)


def _entering(before: Tensor, level: Tensor, answer: Tensor) -> Tensor:
    """From below: 0 while `z₁` stays there, else the smaller root of `kβ² - (q - z₀ + k)β + q = 0`."""
    middle = level - before + answer
    root = (middle**2 - 4 * answer * level).clamp(min=0).sqrt()
    return torch.where(level <= 0, 0.0, 2 * level / (middle + root).clamp(min=torch.finfo(level.dtype).tiny))
