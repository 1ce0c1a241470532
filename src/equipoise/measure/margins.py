"""Margins, their normalised and smoothed forms, and the examples that carry the gradient (docs/theory.md §0)."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equipoise.errors import InputError
from equipoise.losses import LOSSES, tailed_losses


def binary_margins(scores: Float[Tensor, " n *one"], labels: Tensor) -> Float[Tensor, " n"]:
    """`m_i = y_i f(x_i)` for scores of shape (n,) or (n, 1) and labels in {-1, +1} of any dtype.

    Raises:
        InputError: for other labels, and when the counts differ.

    >>> binary_margins(torch.tensor([[2.0], [-3.0]]), torch.tensor([1, 1]))
    tensor([ 2., -3.])
    """
    if labels.shape != scores.shape[:1] or scores.numel() != labels.numel():
        raise InputError(
            expected="one score and one label for each example",
            found=f"scores of shape {tuple(scores.shape)}, labels of shape {tuple(labels.shape)}",
            remedy="pass scores as (n,) or (n, 1) and labels as (n,); for several classes use class_margins",
        )
    signs = labels.to(scores.dtype)
    if not (signs.abs() == 1).all():
        raise InputError(
            expected="labels in {-1, +1}",
            found=f"labels {sorted(set(labels.tolist()))[:4]}",
            remedy="map the classes with 2 * labels - 1",
        )
    return signs * scores.flatten()


def class_margins(scores: Float[Tensor, "n classes"], labels: Int[Tensor, " _"]) -> Float[Tensor, "n others"]:
    """`m_ic = f_{y_i}(x_i) - f_c(x_i)` for every other class `c ≠ y_i` in ascending order.

    Raises:
        InputError: for labels outside `0 … classes - 1`, and when the counts differ.

    >>> class_margins(torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([1]))
    tensor([[4., 3.]])
    """
    n, classes = scores.shape
    if labels.shape != (n,) or bool(((labels < 0) | (labels >= classes)).any()):
        raise InputError(
            expected=f"{n} labels in 0 … {classes - 1}",
            found=f"labels of shape {tuple(labels.shape)} in {sorted(set(labels.flatten().tolist()))[:4]} …",
            remedy="pass class indices, one an example",
        )
    true = scores.gather(1, labels.long()[:, None])
    others = torch.arange(classes, device=scores.device) != labels[:, None]
    return (true - scores)[others].view(n, classes - 1)


def normalised_margin(margins: Float[Tensor, " n *others"], norm: float | int, degree: float | int) -> float:
    """`γ = min_i m_i / ‖w‖^L` for a network homogeneous of degree `L`, unchanged under `w → a w`.

    Raises `InputError` unless the norm and the degree are positive and the margins finite.

    >>> round(normalised_margin(torch.tensor([24.0, 8.0]), norm=2.0, degree=3), 12)
    1.0
    """
    return _over_power(_smallest(margins), norm, degree)


def smoothed_normalised_margin(
    log_risk: float | int, examples: int, norm: float | int, degree: float | int, loss: str = "exponential"
) -> float:
    """`ℓ^{-1}(nR) / ‖w‖^L` from `log R`: at most the normalised margin, and non-decreasing along gradient flow.

    Monotone once `R < ℓ(0)/n` (Lyu & Li 2020); `log R` may be -1e15.

    Raises:
        InputError: as `inverse_loss` and `normalised_margin` do.

    >>> round(smoothed_normalised_margin(-1e15, examples=1, norm=1e3, degree=5), 12)
    1.0
    """
    if examples < 1:
        raise InputError(expected="one or more examples", found=f"examples={examples}", remedy="pass the data's size")
    return _over_power(inverse_loss(math.log(examples) + log_risk, loss), norm, degree)


def inverse_loss(log_total: float | int, loss: str = "exponential") -> float:
    """`ℓ^{-1}(t)` from `log t`: the one margin whose loss is `t`.

    `-log t` for the exponential losses, `-log(e^t - 1)` for logistic and cross-entropy, without overflow or underflow:
    the latter is `-log t - log((e^t - 1)/t)` for `t ≤ 1` and `-t - log(1 - e^{-t})` above.

    Raises:
        InputError: for an unknown loss, for NaN and infinity, and where `t` is beyond float64 (`log t > 709`, logistic
            only).

    >>> [inverse_loss(log_total, "logistic") for log_total in (-1e15, -40.0, 5.0)]
    [1000000000000000.0, 40.0, -148.4131591025766]
    """
    if loss not in tailed_losses():
        raise InputError(
            expected=f"a loss among {', '.join(tailed_losses())}", found=repr(loss), remedy="pass one of these names"
        )
    return LOSSES[loss].inverse(log_total)


def support(margins: Float[Tensor, " n *others"], discard: float = 0.01) -> Bool[Tensor, " n *others"]:
    """Which examples carry the gradient of `log R`: those of weight `p_i = softmax(-m)_i` at least `discard / N`.

    Each example left out weighs less than `discard / N` with `N` the number of margins, so that together they weigh
    less than `discard` of the whole, for any margins: by default under one percent of the gradient's weights.
    For logistic loss and cross-entropy pass `u = -log ℓ(m)` in place of the margins (T6.3). Margins of classes count
    each for itself; an example is a support example when any of its margins is.

    Raises:
        InputError: unless `discard` is in (0, 1) and the margins are finite.

    >>> support(torch.tensor([1.0, 1.5, 40.0]))
    tensor([ True,  True, False])
    """
    if not 0 < discard < 1:
        raise InputError(
            expected="a share to discard between 0 and 1", found=f"discard={discard}", remedy="pass discard=0.01"
        )
    _smallest(margins)
    weights = torch.softmax(-margins.flatten(), dim=0).view_as(margins)
    return weights >= discard / margins.numel()


def _smallest(margins: Tensor) -> float:
    if margins.numel() == 0 or not torch.isfinite(margins).all():
        raise InputError(
            expected="finite margins of at least one example",
            found=f"{int((~torch.isfinite(margins)).sum())} of {margins.numel()} margins NaN or infinite",
            remedy="check the network's outputs",
        )
    return float(margins.min())


def _over_power(margin: float, norm: float | int, degree: float | int) -> float:
    """`margin / norm^degree` as `(|margin|^{1/L} / norm)^L`, whose intermediate values neither over- nor underflow."""
    if not (norm > 0 and degree > 0 and math.isfinite(norm)):
        raise InputError(
            expected="a positive finite norm and a positive degree of homogeneity",
            found=f"norm={norm}, degree={degree}",
            remedy="pass ‖w‖ over all trained weights and the number of homogeneous layers",
        )
    return math.copysign((abs(margin) ** (1 / degree) / norm) ** degree, margin)
