"""Losses with an exponential tail, kept in the log domain (THEORY §0 and T6.3).

With `u = -log ℓ(m)` the risk is *exactly* `R = mean e^{-u}`, so that `-∇ log R = (D J)ᵀ softmax(-u)` for every such
loss; only `u(m)` and `D = du/dm` differ. Nothing here ever forms `R` itself: it underflows at `log R ≈ -708`.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.errors import InputError


@runtime_checkable
class Loss(Protocol):
    """A loss `ℓ` of the margin, known by `u(m) = -log ℓ(m)` and its slope."""

    @property
    def name(self) -> str:
        """The name users type."""
        ...

    def potential(self, margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`u = -log ℓ(m)`, without overflow at either end."""
        ...

    def slope(self, margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`D = du/dm = -ℓ'(m)/ℓ(m)`, between 0 and 1."""
        ...

    def log_at_zero(self) -> float:
        """`log ℓ(0)`: the data are separated once `n R < ℓ(0)`."""
        ...


@dataclass(frozen=True)
class Exponential:
    """`ℓ(m) = e^{-m}`.

    >>> Exponential().potential(torch.tensor([3.0]))
    tensor([3.])
    """

    name: str = "exponential"

    def potential(self, margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`u = m`."""
        return margins

    def slope(self, margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`D = 1`."""
        return torch.ones_like(margins)

    def log_at_zero(self) -> float:
        """`log ℓ(0) = 0`."""
        return 0.0


@dataclass(frozen=True)
class Logistic:
    """`ℓ(m) = log(1 + e^{-m})`.

    >>> Logistic().potential(torch.tensor([100.0, 0.0]))
    tensor([100.0000,   0.3665])
    """

    name: str = "logistic"

    def potential(self, margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`u = -log log(1 + e^{-m})`; beyond `m = 30`, where `ℓ = e^{-m}(1 - e^{-m}/2)` to rounding, `m + e^{-m}/2`."""
        tail = margins > 30
        body = -torch.log(torch.nn.functional.softplus(-margins.clamp(max=30)))
        return torch.where(tail, margins + 0.5 * torch.exp(-margins.clamp(min=30)), body)

    def slope(self, margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`D = σ(-m) / log(1 + e^{-m})`, which tends to 1 as `1 - e^{-m}/2`."""
        body = torch.sigmoid(-margins.clamp(max=30)) / torch.nn.functional.softplus(-margins.clamp(max=30))
        return torch.where(margins > 30, 1 - 0.5 * torch.exp(-margins.clamp(min=30)), body)

    def log_at_zero(self) -> float:
        """`log log 2`."""
        return math.log(math.log(2))


LOSSES: dict[str, Loss] = {loss.name: loss for loss in (Exponential(), Logistic())}


def named_loss(loss: "str | Loss") -> Loss:
    """The loss of that name, or the loss itself.

    Raises `InputError` for a name that is none of `LOSSES`.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise InputError(
            expected=f"a loss among {', '.join(LOSSES)}", found=f"{loss!r}", remedy='pass loss="exponential"'
        )
    return LOSSES[loss]


def log_risk(potential: Float[Tensor, " n"]) -> float:
    """`log R = log mean e^{-u}`.

    >>> log_risk(torch.full((4,), 1e12, dtype=torch.float64))
    -1000000000000.0
    """
    return float(torch.logsumexp(-potential, 0) - math.log(potential.numel()))
