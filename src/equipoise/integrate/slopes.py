"""Secant slopes as an iteration that settles, pairs that chatter or slide included (THEORY T6.2 and T4.5)."""

from dataclasses import dataclass

import torch
from torch import Tensor

_RECOVERY = 1.2  # growth of a pair's step once its residual keeps its sign


@dataclass(frozen=True)
class Settling:
    """Slopes on their way to the secant slopes they imply.

    A pair that slides along its kink turns off when on and on when off: plain iteration flips it for ever. Each pair
    has a step of its own, halved whenever its residual changes sign.
    """

    slopes: tuple[Tensor, ...]
    steps: tuple[Tensor, ...]
    residuals: tuple[Tensor, ...]

    @classmethod
    def start(cls, slopes: tuple[Tensor, ...]) -> "Settling":
        """Full steps from these slopes."""
        return cls(slopes, tuple(map(torch.ones_like, slopes)), tuple(map(torch.zeros_like, slopes)))

    def towards(self, targets: tuple[Tensor, ...]) -> "Settling":
        """One damped step towards the secant slopes that the present ones led to.

        >>> first = Settling.start((torch.tensor([1.0]),)).towards((torch.tensor([0.0]),))
        >>> first.towards((torch.tensor([1.0]),)).slopes
        (tensor([0.5000]),)
        """
        moves = [
            _relaxed(slope, target, step, residual)
            for slope, target, step, residual in zip(self.slopes, targets, self.steps, self.residuals, strict=True)
        ]
        slopes, steps, residuals = zip(*moves, strict=True) if moves else ((), (), ())
        return Settling(slopes, steps, residuals)


def _relaxed(slope: Tensor, target: Tensor, step: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    residual = target - slope
    step = torch.where(residual * before < 0, step / 2, (step * _RECOVERY).clamp(max=1.0))
    return slope + step * residual, step, residual
