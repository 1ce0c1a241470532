"""Which pairs of a neuron and an example slid along their kink, and from when to when (T4.5)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

SHORTEST = 3
"""Consecutive steps inside its kink after which a pair is said to slide: one that only crosses is inside for one."""

Spans = Int[Tensor, "slides 4"]  # example, neuron, first and last step inside


@dataclass(frozen=True)
class Slides:
    """The slides of one layer: for how many steps each pair has been inside its kink, and the slides that are over."""

    inside: Int[Tensor, "examples neurons"]
    over: Spans

    @classmethod
    def none(cls, inside: Bool[Tensor, "examples neurons"]) -> "Slides":
        """Before the first step."""
        return cls(torch.zeros_like(inside, dtype=torch.int32), torch.zeros(0, 4, dtype=torch.long).to(inside.device))

    @property
    def current(self) -> Bool[Tensor, "examples neurons"]:
        """The pairs that slide now."""
        return self.inside >= SHORTEST

    def after(self, inside: Bool[Tensor, "examples neurons"], step: int) -> "Slides":
        """With the pairs that were inside their kink in one more step.

        >>> slides, inside = Slides.none(torch.zeros(1, 2).bool()), torch.tensor([[True, False]])
        >>> for step in range(1, 5):
        ...     slides = slides.after(inside, step)
        >>> slides.current.tolist(), slides.after(~inside, 5).over.tolist()
        ([[True, False]], [[0, 0, 1, 4]])
        """
        ended = self._spans(self.current & ~inside, step - 1)
        return Slides(torch.where(inside, self.inside + 1, 0).int(), torch.cat([self.over, ended]))

    def spans(self, step: int) -> Spans:
        """All slides: those that are over, then those that go on at `step`."""
        return torch.cat([self.over, self._spans(self.current, step)])

    def _spans(self, pairs: Tensor, last: int) -> Spans:
        where = pairs.nonzero()
        first = last + 1 - self.inside[pairs].long()
        return torch.cat([where, first[:, None], torch.full_like(first, last)[:, None]], 1)
