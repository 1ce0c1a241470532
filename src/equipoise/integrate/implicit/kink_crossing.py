"""Slopes of neurons that cross their kink in a step: the share of time above it (T6.2, T4.5)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.graph.piecewise import Maximum, Piecewise
from equipoise.integrate.implicit.step_problem import ActiveProblem, Iterate
from equipoise.integrate.margins.protocol import MarginEvaluation, Slopes, local_slopes

_STIFFER = 1.5  # times its own effect alone: pairs of one neuron pull together
_PACES = 100.0  # the largest ratio of the rates before and after a kink


class KinkPath(NamedTuple):
    """Pre-activations of one kink over a step of span `h`: their values, and `h dz/dτ`, at both ends."""

    before: Tensor
    after: Tensor
    leaving: Tensor
    arriving: Tensor


@dataclass(frozen=True)
class KinkPaths:
    """Paths of all pre-activations over a step, to first order from its first iterate."""

    kinks: tuple[Piecewise, ...]
    span: float
    before: tuple[Tensor, ...]  # z₀
    leaving: tuple[Tensor, ...]  # h dz/dτ at the start
    arriving: tuple[Tensor, ...]  # h dz/dτ at the end of the first iterate, under its cotangents
    squared_gradients: Slopes  # ‖∂z/∂w‖²

    @classmethod
    def of(cls, active: ActiveProblem, first: Iterate, after: MarginEvaluation) -> "KinkPaths":
        """The paths of a step; `after` is the evaluation at the end of its `first` iterate."""
        objective, span, before = active.objective, active.step.span, active.before.preactivations
        kinks, leaving = objective.margins.kinks, tuple(span * rate for rate in active.kink_rates)
        if not kinks:
            return cls(kinks, span, before, leaving, (), ())
        there = objective.linearize(first.end, local_slopes(objective.margins, after))
        _, arriving = there.jvp(span * there.vjp(first.cotangents))
        return cls(kinks, span, before, leaving, arriving, first.linearization.squared_gradients())

    def slopes(self, last: Iterate, after: MarginEvaluation) -> Slopes:
        """The slopes that follow from an iterate and its end, each pair answering by its own effect on its end."""
        onto = last.linearization.sensitivity(last.cotangents)
        paths = map(KinkPath, self.before, after.preactivations, self.leaving, self.arriving)
        each = zip(self.kinks, paths, last.slopes, onto, self.squared_gradients, strict=True)
        return tuple(
            implicit_slopes(kink, path, slope, -_STIFFER * self.span * sensitivity * squares)
            for kink, path, slope, sensitivity, squares in each
        )


def implicit_slopes(kink: Piecewise, path: KinkPath, weights: Tensor, stiffness: Tensor) -> Float[Tensor, "*weights"]:
    """The weights of a kink's linear map if each end answered a change of its own: `implicit_slope`.

    A maximum is the rectifier of its best rival's lead over the one that holds it, `z_{j₀} + max(z_{j₁} - z_{j₀}, 0)`.
    """
    if not isinstance(kink, Maximum):
        assert kink.negative_slope is not None
        return implicit_slope(rate_corrected_start(path), path.after, weights, stiffness, kink.negative_slope)
    windows = KinkPath(*map(kink.windows, path))
    holder = windows.before.argmax(-1, keepdim=True)
    rival = windows.after.scatter(-1, holder, -torch.inf).argmax(-1, keepdim=True)
    leads = KinkPath(*(each.gather(-1, rival) - each.gather(-1, holder) for each in windows))
    share = implicit_slope(
        rate_corrected_start(leads), leads.after, weights.gather(-1, rival), 2 * stiffness[..., None], 0.0
    )
    return torch.zeros_like(weights).scatter(-1, holder, 1 - share).scatter_add(-1, rival, share)


def rate_corrected_start(path: KinkPath) -> Tensor:
    """`z₀ · r₁/r₀` of pairs that reach their kink at one rate `r₀` and leave it at another, `r₁`; `z₀` of the others.

    Such a pair takes the time `-z₀/r₀` to its kink and `z₁/r₁` from there, so that the share of time it is on is the
    secant slope between `z₀ r₁/r₀` and `z₁`. That from `z₀` differs by what crossing does to the rate, however short
    the step, and costs the method an order. Where the two pieces do not meet `z₁` the way is not so simple, and the
    ratio enters to the power `(1 - d)⁴`, `d` the distance over what the faster rate makes of the step.

    >>> still = torch.zeros(1).double()
    >>> rate_corrected_start(KinkPath(still - 1, still + 1, still + 2, still + 2))
    tensor([-1.], dtype=torch.float64)
    >>> rate_corrected_start(KinkPath(still - 1, still + 1, still + 4, still + 4 / 3))  # there in a quarter of the time
    tensor([-0.3333], dtype=torch.float64)
    """
    crosses = (path.before * path.leaving < 0) & (path.leaving * path.arriving > 0)
    leaving, arriving = (torch.where(crosses, rate, 1.0) for rate in (path.leaving, path.arriving))
    ratio, spent = arriving / leaving, path.after / arriving - path.before / leaving
    distance = (spent - 1).abs() * torch.minimum(ratio, 1 / ratio)
    trusted = ratio.clamp(1 / _PACES, _PACES) ** (1 - distance).clamp(min=0).pow(4)
    return torch.where(crosses, path.before * trusted, path.before)


def clamp_slopes(kink: Piecewise, weights: Tensor) -> Tensor:
    """The slopes, clamped to those that a secant of this kink may have."""
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
