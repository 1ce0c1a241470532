"""Losses of margins, kept in the log domain (docs/theory.md §0 and T6.3).

With `u = -log ℓ(m)`, or for classes `u_ic = m_ic + log(S_i/ℓ_i)`, the risk is *exactly* `R = mean_i Σ_c e^{-u_ic}`, so
that `-∇ log R = (D J)ᵀ softmax(-u)` for every loss; only `u(m)` and `D = du/dm` differ. Nothing here ever forms `R`
itself: it underflows at `log R ≈ -708`.

Margins have shape (n,) for two classes, `m_i = y_i f(x_i)`, and (n, C - 1) for `C`, `m_ic = f_{y_i} - f_c`, `c ≠ y_i`.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from equipoise.errors import InputError

__all__ = [
    "LOSSES",
    "CrossEntropy",
    "Differential",
    "Exponential",
    "Logistic",
    "Loss",
    "NamedLoss",
    "Squared",
    "log_risk",
    "named_loss",
    "tailed_losses",
]

_DEEP = -30.0  # log S below which `log(1 + S) = S (1 - S/2)` to rounding
_LARGEST = 709.0  # log t above which t is beyond float64


@runtime_checkable
class Differential(Protocol):
    """`D = du/dm` at given margins, block-diagonal over the examples, by its products."""

    def jvp(self, change: Float[Tensor, " n *others"]) -> Float[Tensor, " n *others"]:
        """`D δm`."""
        ...

    def vjp(self, cotangents: Float[Tensor, " n *others"]) -> Float[Tensor, " n *others"]:
        """`Dᵀ p`."""
        ...

    def take(self, examples: Tensor) -> "Differential":
        """The blocks of these examples, which may repeat."""
        ...


@runtime_checkable
class Loss(Protocol):
    """A loss `ℓ` of the margins of one example, known by `u` with `ℓ = Σ_c e^{-u_c}`, and by `D = du/dm`."""

    @property
    def name(self) -> str:
        """The name users type."""
        ...

    @property
    def multiclass(self) -> bool:
        """Whether the network gives one score for each class, rather than one score."""
        ...

    @property
    def exponential_tail(self) -> bool:
        """Whether `ℓ(m) e^m → 1`: what every statement about limits needs."""
        ...

    def potential(self, margins: Float[Tensor, " n *others"]) -> Float[Tensor, " n *others"]:
        """`u`, without overflow at either end."""
        ...

    def differential(self, margins: Float[Tensor, " n *others"]) -> Differential:
        """`D`."""
        ...

    def log_at_zero(self) -> float:
        """The logarithm of the least loss of an example that is not classified correctly.

        The data are separated once `n R` is below it (each example's share of `R` being `1/n`).
        """
        ...


@runtime_checkable
class NamedLoss(Loss, Protocol):
    """A loss of the table `LOSSES`, also as a function of scores that autograd differentiates, and inverted."""

    def mean(self, scores: Tensor, target: Tensor) -> Tensor:
        """`R` in plain arithmetic: scores of shape (n,), (n, 1) or (n, C), signs or class indices of shape (n,)."""
        ...

    def inverse(self, log_loss: float) -> float:
        """`ℓ⁻¹(t)` from `log t`: the one margin whose loss is `t`. Raises `InputError` where there is none."""
        ...


@dataclass(frozen=True)
class DiagonalDifferential:
    """`D = diag(slope)`."""

    slope: Float[Tensor, " n *others"]

    def jvp(self, change: Float[Tensor, " n *others"]) -> Float[Tensor, " n *others"]:
        """`D δm`."""
        return self.slope * change

    def vjp(self, cotangents: Float[Tensor, " n *others"]) -> Float[Tensor, " n *others"]:
        """`Dᵀ p`."""
        return self.slope * cotangents

    def take(self, examples: Tensor) -> "DiagonalDifferential":
        """The blocks of these examples."""
        return DiagonalDifferential(self.slope[examples])


@dataclass(frozen=True)
class CentredDifferential:
    """`D_i = I - a_i 1 π_iᵀ`, with `a` of shape (n, 1) and `π` of shape (n, C - 1) (T6.3)."""

    share: Float[Tensor, "n 1"]
    weights: Float[Tensor, "n others"]

    def jvp(self, change: Float[Tensor, "n others"]) -> Float[Tensor, "n others"]:
        """`δm - a ⟨π, δm⟩ 1`."""
        return change - self.share * (self.weights * change).sum(1, keepdim=True)

    def vjp(self, cotangents: Float[Tensor, "n others"]) -> Float[Tensor, "n others"]:
        """`p - a ⟨1, p⟩ π`."""
        return cotangents - self.share * cotangents.sum(1, keepdim=True) * self.weights

    def take(self, examples: Tensor) -> "CentredDifferential":
        """The blocks of these examples."""
        return CentredDifferential(self.share[examples], self.weights[examples])


@dataclass(frozen=True)
class Exponential:
    """`ℓ = Σ_c e^{-m_c}`: one term for two classes, `C - 1` for `C`.

    >>> Exponential().potential(torch.tensor([3.0]))
    tensor([3.])
    """

    name: str = "exponential"
    multiclass: bool = False
    exponential_tail: bool = True

    def potential(self, margins: Float[Tensor, " n *others"]) -> Float[Tensor, " n *others"]:
        """`u = m`."""
        return margins

    def differential(self, margins: Float[Tensor, " n *others"]) -> Differential:
        """`D = 1`."""
        return DiagonalDifferential(torch.ones_like(margins))

    def log_at_zero(self) -> float:
        """`log 1`: a margin of zero alone costs that much."""
        return 0.0

    def mean(self, scores: Tensor, target: Tensor) -> Tensor:
        """`mean_i Σ_c e^{-m_ic}`."""
        if not self.multiclass:
            return (-target * scores.reshape(target.shape)).exp().mean()
        own = target[:, None]
        return (scores - scores.gather(1, own)).exp().scatter(1, own, 0.0).sum(1).mean()

    def inverse(self, log_loss: float) -> float:
        """`-log t`."""
        return -_finite(log_loss)


@dataclass(frozen=True)
class Logistic:
    """`ℓ(m) = log(1 + e^{-m})`.

    >>> Logistic().potential(torch.tensor([100.0, 0.0]))
    tensor([100.0000,   0.3665])
    """

    name: str = "logistic"
    multiclass: bool = False
    exponential_tail: bool = True

    def potential(self, margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`u = -log log(1 + e^{-m})`."""
        return margins + _log_excess(-margins)

    def differential(self, margins: Float[Tensor, " n"]) -> Differential:
        """`D = σ(-m) / log(1 + e^{-m})`, which tends to 1 as `1 - e^{-m}/2`."""
        return DiagonalDifferential(_elasticity(-margins))

    def log_at_zero(self) -> float:
        """`log log 2`."""
        return math.log(math.log(2))

    def mean(self, scores: Tensor, target: Tensor) -> Tensor:
        """`mean_i log(1 + e^{-m_i})`."""
        return F.softplus(-target * scores.reshape(target.shape)).mean()

    def inverse(self, log_loss: float) -> float:
        """`-log(e^t - 1)`."""
        return _inverse_logistic(log_loss)


@dataclass(frozen=True)
class CrossEntropy:
    """`ℓ = log(1 + S)`, `S = Σ_c e^{-m_c}`: minus the log-softmax of the true class.

    >>> CrossEntropy().potential(torch.tensor([[100.0, 101.0]]))
    tensor([[100., 101.]])
    """

    name: str = "cross_entropy"
    multiclass: bool = True
    exponential_tail: bool = True

    def potential(self, margins: Float[Tensor, "n others"]) -> Float[Tensor, "n others"]:
        """`u_c = m_c + log(S/ℓ)`, so that `Σ_c e^{-u_c} = ℓ` (T6.3)."""
        return margins + _log_excess(torch.logsumexp(-margins, 1, keepdim=True))

    def differential(self, margins: Float[Tensor, "n others"]) -> Differential:
        """`I - a 1 πᵀ`, `π = softmax(-m)`, `a = 1 - S/((1 + S) ℓ)` (T6.3)."""
        share = 1 - _elasticity(torch.logsumexp(-margins, 1, keepdim=True))
        return CentredDifferential(share, torch.softmax(-margins, 1))

    def log_at_zero(self) -> float:
        """`log log 2`: a tie with one class and no other."""
        return math.log(math.log(2))

    def mean(self, scores: Tensor, target: Tensor) -> Tensor:
        """`torch.nn.functional.cross_entropy`, with all the shapes that it takes."""
        return F.cross_entropy(scores, target)

    def inverse(self, log_loss: float) -> float:
        """`-log(e^t - 1)`: the margin over one other class."""
        return _inverse_logistic(log_loss)


@dataclass(frozen=True)
class Squared:
    """`ℓ(m) = ½(1 - m)²`, which is `½(y - f)²` for labels in {-1, +1}: for laws and trajectories, not for limits.

    It has no exponential tail: its gradient vanishes at `m = 1`, where weights stop growing.

    >>> Squared().potential(torch.tensor([3.0])).exp()
    tensor([0.5000])
    """

    name: str = "squared"
    multiclass: bool = False
    exponential_tail: bool = False

    def potential(self, margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`u = log 2 - 2 log |1 - m|`."""
        return math.log(2) - 2 * torch.log(_residual(margins).abs())

    def differential(self, margins: Float[Tensor, " n"]) -> Differential:
        """`D = 2 / (1 - m)`."""
        return DiagonalDifferential(2 / _residual(margins))

    def log_at_zero(self) -> float:
        """`log ½`."""
        return math.log(0.5)

    def mean(self, scores: Tensor, target: Tensor) -> Tensor:
        """`mean_i ½(1 - m_i)²`."""
        return (1 - target * scores.reshape(target.shape)).square().mean() / 2

    def inverse(self, log_loss: float) -> float:
        """Always raises `InputError`: two margins have the same loss."""
        raise InputError(
            expected="a loss that falls as the margin grows",
            found=f"the {self.name} loss",
            remedy="pass an exponential or a logistic loss",
        )


LOSSES: dict[str, NamedLoss] = {
    loss.name: loss
    for loss in (
        Exponential(),
        Logistic(),
        CrossEntropy(),
        Exponential("multiclass_exponential", multiclass=True),
        Squared(),
    )
}


def named_loss(loss: "str | Loss") -> Loss:
    """The loss of that name, or the loss itself.

    Raises:
        InputError: for a name that is none of `LOSSES`, and for an object that is no `Loss`.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise InputError(
            expected=f"a loss among {', '.join(LOSSES)}, or an object with "
            "name, multiclass, exponential_tail, potential, differential and log_at_zero",
            found=f"{loss!r}",
            remedy='pass loss="exponential"',
        )
    return LOSSES[loss]


def tailed_losses() -> tuple[str, ...]:
    """Names of the losses with an exponential tail.

    >>> tailed_losses()
    ('exponential', 'logistic', 'cross_entropy', 'multiclass_exponential')
    """
    return tuple(name for name, loss in LOSSES.items() if loss.exponential_tail)


def log_risk(potential: Float[Tensor, " n *others"]) -> float:
    """`log R = log mean_i Σ_c e^{-u_ic}`.

    >>> log_risk(torch.full((4,), 1e12, dtype=torch.float64))
    -1000000000000.0
    """
    return float(torch.logsumexp(-potential.flatten(), 0) - math.log(len(potential)))


def _log_excess(log_sum: Tensor) -> Tensor:
    """`log(S / log(1 + S))` from `log S`; `S/2` where `S` is tiny."""
    body = log_sum - torch.log(F.softplus(log_sum.clamp(min=_DEEP)))
    return torch.where(log_sum < _DEEP, 0.5 * torch.exp(log_sum.clamp(max=_DEEP)), body)


def _elasticity(log_sum: Tensor) -> Tensor:
    """`d log ℓ / d log S = S / ((1 + S) log(1 + S))`; `1 - S/2` where `S` is tiny."""
    bounded = log_sum.clamp(min=_DEEP)
    body = torch.sigmoid(bounded) / F.softplus(bounded)
    return torch.where(log_sum < _DEEP, 1 - 0.5 * torch.exp(log_sum.clamp(max=_DEEP)), body)


def _residual(margins: Tensor) -> Tensor:
    """`1 - m`, kept off zero, where `u` is infinite and `D p` nevertheless finite."""
    residual = 1 - margins
    return torch.where(residual.abs() < 1e-150, torch.full_like(residual, 1e-150), residual)


def _finite(log_loss: float, below: float = math.inf) -> float:
    if not math.isfinite(log_loss) or log_loss > below:
        raise InputError(
            expected="the finite logarithm of a total loss",
            found=f"{log_loss}",
            remedy="compute log R by logsumexp, and check that the margins are finite",
        )
    return float(log_loss)


def _inverse_logistic(log_loss: float) -> float:
    """`-log t - log((e^t - 1)/t)` for `t ≤ 1` and `-t - log(1 - e^{-t})` above: neither over- nor underflows."""
    total = math.exp(_finite(log_loss, below=_LARGEST))
    if total > 1:
        return -total - math.log(-math.expm1(-total))
    return -log_loss - (math.log(math.expm1(total) / total) if total > 0 else 0.0)
