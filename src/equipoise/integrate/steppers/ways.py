"""How the pre-activations move over a step, and the slopes that follow (T6.2, T4.5)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from equipoise.graph.piecewise import Maximum, Piecewise
from equipoise.integrate.margins import Evaluation, Slopes, local_slopes
from equipoise.integrate.slopes import Way, implicit_slopes
from equipoise.integrate.steppers.passes import Part, Pass

_STIFFER = 1.5  # times its own effect alone: pairs of one neuron pull together
_TOLD = 1e-3  # change of a slope, from which what followed tells of its effect


@dataclass(frozen=True)
class Ways:
    """How the pre-activations move over a step, as far as its first pass can tell."""

    kinks: tuple[Piecewise, ...]
    span: float
    before: tuple[Tensor, ...]  # z₀
    leaving: tuple[Tensor, ...]  # h dz/dτ at the start
    arriving: tuple[Tensor, ...]  # h dz/dτ at the end of the first pass, under its forces
    reach: Slopes
    answers: tuple[Tensor, ...] = ()  # -Δz₁/Δα between the last two passes, where it is positive

    @classmethod
    def of(cls, part: Part, first: Pass, after: Evaluation) -> "Ways":
        """The ways of a step, from its first pass and where that led."""
        on, span, before = part.on, part.stretch.span, part.before.preactivations
        kinks, leaving = on.margins.kinks, tuple(span * rate for rate in part.bending)
        if not kinks:
            return cls(kinks, span, before, leaving, (), ())
        there = on.linearise(first.end, local_slopes(on.margins, after))
        _, arriving = there.pushforward(span * there.pullback(first.forces))
        return cls(kinks, span, before, leaving, arriving, first.here.here.reach())

    def answered(self, earlier: tuple[Slopes, Evaluation], later: tuple[Slopes, Evaluation]) -> "Ways":
        """These ways, with how ends answered the change of slopes from one guess to the next.

        Where a pair feeds others that are near their kinks as well, its slope moves its end by what it moves theirs,
        far more than by its own effect.
        """
        pairs = (zip(slopes, at.preactivations, strict=True) for slopes, at in (earlier, later))
        known = self.answers or tuple(torch.zeros_like(each) for each in self.before)
        found = (
            old if isinstance(kink, Maximum) else _answer(old, other - slope, moved - end)
            for kink, old, (slope, end), (other, moved) in zip(self.kinks, known, *pairs, strict=True)
        )
        return replace(self, answers=tuple(found))

    def slopes(self, last: Pass, after: Evaluation) -> Slopes:
        """The slopes that follow from a pass and where it led, each pair answering by its effect on its end."""
        onto = last.here.here.sensitivity(last.forces)
        own = (-_STIFFER * self.span * force * reach for force, reach in zip(onto, self.reach, strict=True))
        effects = map(torch.maximum, own, self.answers) if self.answers else own
        ways = map(Way, self.before, after.preactivations, self.leaving, self.arriving)
        return tuple(map(implicit_slopes, self.kinks, ways, last.slopes, effects))


def _answer(known: Tensor, turned: Tensor, moved: Tensor) -> Tensor:
    """`-Δz₁/Δα` where a slope has turned and its end has moved against it; what was known elsewhere."""
    tells = (turned.abs() > _TOLD) & (turned * moved < 0)
    return torch.where(tells, -moved / torch.where(tells, turned, 1.0), known)
