"""What a step starts from, and one pass of the iteration that settles it (T6.1, T6.2)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.acceleration import Anderson
from equipoise.integrate.entropic import Start
from equipoise.integrate.margins import Evaluation, Margins, Slopes, Weights
from equipoise.integrate.objective import Forces, Objective, Tangent
from equipoise.integrate.quadratic import Quadratic
from equipoise.integrate.readout import Rows
from equipoise.integrate.slopes import bounded
from equipoise.integrate.steppers.state import State


@dataclass(frozen=True)
class Outlook:
    """The flow at the start of a step: its velocity and where that would lead."""

    potential: Float[Tensor, " potentials"]  # u
    velocity: Weights  # -∇ log R, or its mean over the last implicit step
    rates: Float[Tensor, " potentials"]  # du/dτ
    bending: tuple[Tensor, ...]  # dz/dτ at every kink
    speed: float  # ‖velocity‖ / ‖w‖

    @cached_property
    def fastest(self) -> float:
        """The largest `|du/dτ|`."""
        return float(self.rates.abs().max())

    @classmethod
    def of(cls, objective: Objective, state: State) -> "Outlook":
        """From where a flow stands."""
        here = objective.linearise(state.weights, state.slopes)
        flow = here.pullback(objective.forces(state.evaluation)) if state.velocity is None else state.velocity
        speed = float(flow.norm() / state.weights.norm())
        return cls(objective.potential(state.evaluation), flow, *here.pushforward(flow), speed)


@dataclass(frozen=True)
class Stretch:
    """The stretch of flow that a step is to cover: from where, how far, on which problem."""

    objective: Objective
    state: State
    outlook: Outlook
    span: float  # h
    order: int = 2
    precise: bool = False  # its end is sought to more digits: the step is cut to end at a goal

    @property
    def size(self) -> float:
        """`‖Δw‖ / ‖w‖` at the velocity of the start."""
        return self.span * self.outlook.speed

    @property
    def forecast(self) -> Weights:
        """Where the velocity of the start leads."""
        return self.state.weights + self.span * self.outlook.velocity

    def taken(self, on: Objective, rows: Rows | None) -> "Part":
        """The stretch on these potentials, of all that there are."""
        state, bending = self.state, self.outlook.bending
        if rows is None:
            return Part(self, on, state.evaluation, state.slopes, bending)
        examples = self.objective.examples(rows)
        slopes, bending = (tuple(each[examples] for each in both) for both in (state.slopes, bending))
        return Part(self, on, state.evaluation.take(examples), slopes, bending)


@dataclass(frozen=True)
class Part:
    """A stretch on the examples that take part in it, as they are at its start."""

    stretch: Stretch
    on: Objective
    before: Evaluation
    slopes: Slopes
    bending: tuple[Tensor, ...]  # dz/dτ at every kink


class Warm(NamedTuple):
    """The implicit problem of a pass and its solutions, to start the next from; `mean` is `p̄`, `kernel` is `K`."""

    kernel: Quadratic
    solutions: tuple[Start, Start, Start]
    mean: Tensor

    def scattered(self, rows: Rows, like: Tensor) -> Tensor:
        """The weights over the whole step, where they belong among all potentials."""
        return like.new_zeros(like.shape).index_copy(0, rows, self.solutions[0].weights)


# Given the linearisation, both ends on its examples, a warm start, and the tolerance of the solution:
# (mean forces, their doubt, next warm start).
Average = Callable[[Tangent, Evaluation, Evaluation, Warm | None, float], tuple[Forces, Forces, Warm | None]]


@dataclass(frozen=True)
class Pass:
    """One pass of the iteration that settles a step: from a guess of its end, what it led to."""

    end: Weights
    slopes: Slopes
    warm: Warm | None
    forces: Forces  # Dᵀ p̄
    doubt: Forces  # Dᵀ (p̄ - p of lower order)
    here: Tangent

    def error(self, stretch: Stretch) -> float:
        """What the doubt moves, relative to `‖w‖`: the error of the step."""
        return stretch.span * float(self.here.pullback(self.doubt).norm() / stretch.state.weights.norm())

    def mixed(self, history: Anderson, entered: Weights, margins: Margins) -> tuple[Anderson, "Pass"]:
        """The next guess, from this pass and those before."""
        mean = () if self.warm is None else (self.warm.mean,)
        history, (end, *others) = history.mixed(entered, (self.end, *self.slopes, *mean))
        count = len(self.slopes)
        slopes = tuple(bounded(kink, slope) for kink, slope in zip(margins.kinks, others[:count], strict=True))
        warm = None if self.warm is None else self.warm._replace(mean=others[count])
        return history, replace(self, end=end, slopes=slopes, warm=warm)
