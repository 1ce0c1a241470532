"""How the pre-activations move over a step, and the slopes that follow (T6.2, T4.5)."""

from dataclasses import dataclass

from torch import Tensor

from equipoise.graph.piecewise import Piecewise
from equipoise.integrate.margins import Evaluation, Slopes, local_slopes
from equipoise.integrate.slopes import Way, implicit_slopes
from equipoise.integrate.steppers.passes import Part, Pass

_STIFFER = 1.5  # times its own effect alone: pairs of one neuron pull together


@dataclass(frozen=True)
class Ways:
    """How the pre-activations move over a step, as far as its first pass can tell."""

    kinks: tuple[Piecewise, ...]
    span: float
    before: tuple[Tensor, ...]  # z₀
    leaving: tuple[Tensor, ...]  # h dz/dτ at the start
    arriving: tuple[Tensor, ...]  # h dz/dτ at the end of the first pass, under its forces
    reach: Slopes

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

    def slopes(self, last: Pass, after: Evaluation) -> Slopes:
        """The slopes that follow from a pass and where it led, each pair answering by its own effect on its end."""
        onto = last.here.here.sensitivity(last.forces)
        ways = map(Way, self.before, after.preactivations, self.leaving, self.arriving)
        return tuple(
            implicit_slopes(kink, way, slope, -_STIFFER * self.span * force * reach)
            for kink, way, slope, force, reach in zip(self.kinks, ways, last.slopes, onto, self.reach, strict=True)
        )
