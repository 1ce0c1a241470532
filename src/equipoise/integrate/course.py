"""The course of a flow: goals ahead of it, steps that end where a goal lies, and reasons to stop."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from equipoise.integrate.checkpoints import Progress
from equipoise.integrate.goals import EVERY_QUARTER, Goal, Instant, LogLoss
from equipoise.integrate.landing import landed
from equipoise.integrate.problem import Problem, why_not_separable, why_unresolved
from equipoise.integrate.run import Status
from equipoise.integrate.stalling import driven, escaping, unstable, why_stalled
from equipoise.integrate.steppers import State, Step, Stepper

STALL_STEPS = 60
"""Steps over which the loss must fall by more than a millionth of itself."""
_STALL_FALL = 1e-6

_ASKED = 20  # steps between two linearisations of a flow that does not fall
_MOVING = 1e-3  # ‖Δw‖/‖w‖ of the last steps together, below which the weights stand still

Taken = tuple[State, Step]


@dataclass(frozen=True)
class Course:
    """Until `goal`, by `save_at` on the way, for no more than `max_steps`."""

    problem: Problem
    goal: Goal
    save_at: tuple[Goal, ...]
    max_steps: int
    continuous: bool = True  # whether the stepper follows the flow

    def hopeless(self) -> Status | None:
        """`not_separable` where a goal of loss is proved out of reach."""
        bottomless = isinstance(self.goal, LogLoss) and self.goal.value < -math.log(self.problem.margins.count) - 1
        return Status.not_separable if bottomless and why_not_separable(self.problem) else None

    def status(self, before: Progress, now: Progress) -> Status | None:
        """Why to stop after the step from `before` to `now` (before the first: the same twice); None to go on."""
        if not self.ahead(before, now, [self.goal]):
            return Status.precision_floor if now.state.temperature > 1 else Status.reached
        if now.step >= self.max_steps:
            return Status.step_limit
        return Status.stalled if self._flat(now) and not escaping(now.slopes) and not self._leaving(now) else None

    def _flat(self, now: Progress) -> bool:
        """Whether the loss stood still over the last steps; of a discrete method, whether longer ones would not help.

        `‖∇ log R‖ ‖w‖` is the fall that the weights would bring if they moved by their own size.
        """
        fell = now.falls
        if len(fell) < STALL_STEPS:
            return False
        least = _STALL_FALL * max(1.0, abs(fell[-1]))
        return fell[0] - fell[-1] < least if self.continuous else max(now.slopes) < least

    def _leaving(self, now: Progress) -> bool:
        """Whether the weights move under forces that do not cancel, or pass a saddle; asked now and then."""
        if not self.continuous:
            return False
        moves = sum(now.sizes) > _MOVING and driven(self.problem, now.state)
        return now.step % _ASKED != 0 or moves or unstable(self.problem.objective, now.state)

    def reason(self, status: Status, state: State) -> str | None:
        """What was found where a run ended short of its goal, in words."""
        if status == Status.stalled:
            return why_stalled(self.problem, state)
        if status == Status.precision_floor:
            return why_unresolved(self.problem, state.evaluation)
        return why_not_separable(self.problem) if status == Status.not_separable else None

    def ahead(self, before: Progress, now: Progress, goals: Iterable[Goal]) -> list[Goal]:
        """The goals that the step between the two has not reached."""
        start, end = (self._instant(each.state, each.step) for each in (before, now))
        return [goal for goal in goals if goal.distance(start, end) > 0]

    def advance(self, stepper: Stepper, progress: Progress, pending: Sequence[Goal]) -> Taken | None:
        """The next step, cut to end at the first goal on its way; None where the stepper finds none."""
        taken = stepper.step(self.problem.objective, progress.state)
        if taken is not None and stepper.continuous:
            for goal in (self.goal, *(() if self.save_at == EVERY_QUARTER else pending)):
                taken = self._cut(goal, stepper, progress, taken)
        return taken

    def _cut(self, goal: Goal, stepper: Stepper, progress: Progress, whole: Taken) -> Taken:
        """The step, or one in its place that ends at the goal if it passes it."""
        start = self._instant(progress.state, progress.step)
        begun, distance = goal.distance(start, start), lambda taken: self._distance(goal, start, taken)
        if goal.tolerance is None or not begun > 0 >= distance(whole):
            return whole
        return landed(
            again=lambda size: stepper.step(self.problem.objective, progress.state, size),
            sized=lambda taken: taken[1].asked,
            distance=distance,
            whole=whole,
            begun=begun,
            tolerance=goal.tolerance,
        )

    def _distance(self, goal: Goal, start: Instant, taken: Taken) -> float:
        return goal.distance(start, self._instant(taken[0], start.steps + 1))

    def _instant(self, state: State, steps: int) -> Instant:
        problem = self.problem
        separation = problem.loss.log_at_zero() - math.log(problem.margins.count)
        here = problem.log_loss(state.evaluation), problem.growth(state.weights)
        return Instant(*here, steps, separation, state.evaluation.preactivations)
