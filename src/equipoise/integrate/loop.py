"""`eq.flow` and `eq.resume`: step towards the goal, observe, record, until there is a reason to stop."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from equipoise.arguments import checked, checked_except, require_integer
from equipoise.errors import InputError, Interrupted
from equipoise.integrate.goals import EVERY_QUARTER, Goal, LogLoss, parse_goal
from equipoise.integrate.implicit.event_location import locate_event
from equipoise.integrate.manifest import (
    FlowArguments,
    Origin,
    StoredInputs,
    arguments_from,
    describe_flow,
    flow_manifest,
)
from equipoise.integrate.objective import ExampleWeights
from equipoise.integrate.observation import Observation, tail_residual
from equipoise.integrate.problem import Problem, build_problem
from equipoise.integrate.recorder import Recorder
from equipoise.integrate.run import Run, Status
from equipoise.integrate.state import Progress, State, Step
from equipoise.integrate.steppers import EntropicMidpoint, Stepper
from equipoise.integrate.termination import STALL_STEPS, Termination, instant, require_tail, unreached
from equipoise.losses import Loss
from equipoise.modes import default_modes, one_thread
from equipoise.observers import Activity, Alignment, Defect, Drift, Margin, Observer, Signs, Spectrum
from equipoise.store import Store

_SHORT = 2e8  # operations of a pass over the data, below which threads cost more than they save

Callback = Callable[[int, float, float, "float | None"], object]
"""Called after every step with step, log-loss, growth, and the largest rank-one residual of the linear tail."""
Taken = tuple[State, Step]


def default_observers(stepper: Stepper) -> tuple[Observer, ...]:
    """Spectra, alignment, drift of the laws, activity, signs, margins; of a discrete one its effect on laws."""
    common = (Spectrum(), Alignment(), Drift(), Activity(), Signs(), Margin())
    return common if stepper.continuous else (*common, Defect())


@checked_except("data", "until", "save_at")
def flow(
    model: nn.Module,
    data: object,
    loss: str | Loss = "exponential",
    until: Goal | str = LogLoss(-1e6),  # noqa: B008 - a frozen value
    *,
    observe: Sequence[Observer] | None = None,
    out: str | Path | None = None,
    stepper: Stepper | None = None,
    save_at: Goal | str | Iterable[Goal | str] | None = None,
    max_steps: int = 10_000,
    example_weights: ExampleWeights | None = None,
    dtype: torch.dtype = torch.float64,
    callback: Callback | None = None,
) -> Run:
    """Run gradient flow of `model` on `data = (X, y)` until a goal (T6).

    The flow runs on a copy in `dtype`, on the model's device; the caller's model and data stay as they are. The step
    that passes `until`, or a goal of your own in `save_at`, is cut to end there; the laws stay exact.

    Args:
        model: the network with its initial weights.
        data: `X` of shape (n, ...) and any real dtype, and `y`: labels in {-1, +1} or {0, 1}, or class indices for the
            losses of several classes.
        loss: a name of `eq.losses.LOSSES`, or a loss.
        until: the goal, or its text.
        observe: the observers; by default spectra, alignment, laws, activity, signs and margins.
        out: a folder for the run: manifest, records, weights, checkpoints.
        stepper: of `eq.steppers`; by default `EntropicMidpoint()`.
        save_at: goals at which weights are kept besides the first and the last, in `run.saved` and in the folder; by
            default every quarter of growth, from which a certificate reads the way.
        max_steps: the limit of steps.
        example_weights: `w_i` of `R = Σ w_i ℓ_i`, divided by their sum; by default all `1/n`. Examples of weight 0 take
            no part: the run is that of the others, whose positions in the data are reported.
        dtype: float64 or float32.
        callback: called after every step.

    Returns:
        The run; how it ended is `run.status`, a value.

    Raises:
        InputError: for data or a model that cannot be used.
        CaptureError: for a model that cannot be read.

    >>> from equipoise.data import load
    >>> from equipoise.networks import mlp
    >>> run = flow(mlp([5, 4, 4, 1], linear_tail=2), load("separable", n=20, d=5), until=LogLoss(-1e4))
    >>> run.status.value, -1.00001e4 < run.log_loss <= -1e4
    ('reached', True)
    """
    return run_flow(
        model,
        data,
        loss,
        until,
        observe=observe,
        out=out,
        stepper=stepper,
        save_at=save_at,
        max_steps=max_steps,
        example_weights=example_weights,
        dtype=dtype,
        callback=callback,
    )


@default_modes()
def run_flow(
    model: nn.Module,
    data: object,
    loss: str | Loss = "exponential",
    until: Goal | str = LogLoss(-1e6),  # noqa: B008 - a frozen value
    *,
    observe: Sequence[Observer] | None = None,
    out: str | Path | None = None,
    stepper: Stepper | None = None,
    save_at: Goal | str | Iterable[Goal | str] | None = None,
    max_steps: int = 10_000,
    example_weights: ExampleWeights | None = None,
    dtype: torch.dtype = torch.float64,
    callback: Callback | None = None,
    origin: Origin = Origin(),  # noqa: B008 - a frozen value
) -> Run:
    """Run `flow` with the origin of its network in the manifest: its folder is then resumed without a model."""
    goal, points = _goal("until", until), EVERY_QUARTER if save_at is None else _goals(save_at)
    require_integer("max_steps", max_steps, "pass max_steps=10_000", least=1)
    problem = build_problem(model, data, loss, example_weights, dtype)
    require_tail(problem.loss, goal)
    stepper = stepper or EntropicMidpoint()
    observers = default_observers(stepper) if observe is None else tuple(observe)
    asked = FlowArguments(goal, points, max_steps, stepper, observers)
    manifest = describe_flow(problem, asked, origin)
    with nullcontext() if out is None else Store.create(out, manifest, {"initial": problem.initial}) as store:
        if store is not None and origin.options is not None:
            store.save_options(origin.options)
        return _Loop.of(problem, asked, Recorder(problem, store), callback).run(None)


def _goal(name: str, value: object) -> Goal:
    """A goal, or its text. Raises `InputError` for anything else."""
    goal = parse_goal(value) if isinstance(value, str) else value
    if isinstance(goal, Goal) and not isinstance(goal, type):
        return goal
    raise InputError(
        expected=f"{name} to be a goal like eq.LogLoss(-1e6), or its text",
        found=repr(value),
        remedy='pass until=eq.LogLoss(-1e6), or until="log_loss=-1e6"',
    )


def _goals(save_at: object) -> tuple[Goal, ...]:
    """The goals of `save_at`, one or several."""
    if isinstance(save_at, str) or not isinstance(save_at, Iterable):
        save_at = (save_at,)
    return tuple(_goal("each point of save_at", point) for point in save_at)


@checked
@default_modes()
def resume(
    folder: str | Path,
    model: nn.Module | None = None,
    data: object = None,
    observe: Sequence[Observer] | None = None,
    callback: Callback | None = None,
    *,
    until: Goal | str | None = None,
    max_steps: int | None = None,
) -> Run:
    """Go on with a run from its last checkpoint; it ends with the numbers of an uninterrupted one.

    Everything is read and compared with the run before anything in the folder is changed.

    Args:
        folder: of a run that `flow(out=...)` began, finished or not.
        model: for a run on a model of your own, its architecture; the weights are those of the run.
        data: for a run on data of your own, the same examples.
        observe: where observers hold tensors, the same observers; the others are in the manifest.
        callback: as of `flow`.
        until: another goal, recorded in the manifest (default: the goal of the run).
        max_steps: another limit, recorded likewise (default: that of the run).

    Returns:
        The run, as `flow` returns it.

    Raises:
        InputError: for another model, other data or other observers than those of the run.
        StoreError: for a folder that is no run of `flow`, that is damaged, or that another process is writing.
    """
    with Store.resume(folder) as store:
        changes = _changed(until, max_steps)
        with flow_manifest(store):
            problem, arguments = StoredInputs.read(store, model, data).problem(), store.manifest["arguments"] | changes
            asked = arguments_from(arguments, observe)
        recorder, saved = Recorder(problem, store), store.checkpoint()
        loop = _Loop.of(problem, asked, recorder, callback)
        progress = None if saved is None else recorder.restored(saved, loop.observation.start())
        options = store.manifest.get("options")
        options = options and options | changes
        store.rewind({"arguments": arguments, "options": options} if changes else None)
        if options:
            store.save_options(options)
        if "initial" not in store.weights():
            store.save_weights("initial", problem.initial)
        return loop.run(progress)


def _changed(until: Goal | str | None, max_steps: int | None) -> dict[str, object]:
    """The arguments of the manifest that change."""
    if max_steps is not None:
        require_integer("max_steps", max_steps, "pass max_steps=10_000", least=1)
    asked = {"until": None if until is None else _goal("until", until).describe(), "max_steps": max_steps}
    return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class _Loop:
    """The loop of a flow."""

    problem: Problem
    stepper: Stepper
    save_at: tuple[Goal, ...]
    termination: Termination
    observation: Observation
    recorder: Recorder
    callback: Callback | None

    @classmethod
    def of(cls, problem: Problem, asked: FlowArguments, recorder: Recorder, callback: Callback | None) -> "_Loop":
        """The loop of a flow with these arguments."""
        termination = Termination(problem, asked.until, asked.max_steps, asked.stepper.continuous)
        observation = Observation(problem, asked.observers)
        return cls(problem, asked.stepper, asked.save_at, termination, observation, recorder, callback)

    def run(self, progress: Progress | None) -> Run:
        """Run from the start, or from a checkpoint; on one thread where a pass is short."""
        with one_thread(self.problem.objective.operations <= _SHORT):
            return self._finish(progress or self._start())

    def _start(self) -> Progress:
        """The progress before the first step, with the initial weights observed."""
        state = self.stepper.init(self.problem.objective, self.problem.weights)
        falls, slopes = (self.problem.log_loss(state.evaluation),), (_relative_slope(state),)
        progress = Progress(0, state, self.observation.start(), falls, slopes)
        return self._observed(progress, None, final=self.termination.status(progress, progress) is not None)

    def _finish(self, progress: Progress) -> Run:
        """Step until the goal, or until there is a reason to stop."""
        begun = time.perf_counter() - progress.seconds
        status = self.termination.out_of_reach() or self.termination.status(progress, progress)
        pending = unreached(self.problem, progress, progress, self.save_at)
        try:
            while status is None:
                taken = self._step(progress, pending)
                if taken is None:
                    status = Status.stalled
                    break
                moved = self._moved(progress, *taken, time.perf_counter() - begun)
                pending = self._saved(progress, moved, pending)
                status = self.termination.status(progress, moved)
                progress = self.recorder.checkpoint(self._observed(moved, taken[1], final=status is not None))
        except KeyboardInterrupt:
            self.recorder.commit(progress)
            raise Interrupted(self.recorder.interruption(progress)) from None
        return self.recorder.concluded(progress, status, self.termination.reason(status, progress.state))

    def _step(self, progress: Progress, pending: Sequence[Goal]) -> Taken | None:
        """The next step, cut to end at the first goal that it passes; None where the stepper finds none."""
        taken = self.stepper.step(self.problem.objective, progress.state)
        if taken is not None and self.stepper.continuous:
            for goal in (self.termination.goal, *(() if self.save_at == EVERY_QUARTER else pending)):
                taken = self._cut(goal, progress, taken)
        return taken and (taken[0], replace(taken[1], resized=None))  # with all that it keeps for that

    def _cut(self, goal: Goal, progress: Progress, whole: Taken) -> Taken:
        """The step, or one in its place that ends at the goal if it passes it."""
        start = instant(self.problem, progress.state, progress.step)

        def distance(taken: Taken) -> float:
            return goal.distance(start, instant(self.problem, taken[0], start.steps + 1))

        begun, solved = goal.distance(start, start), whole
        if goal.tolerance is None or not begun > 0 >= distance(whole):
            return whole

        def again(size: float) -> Taken | None:
            nonlocal solved
            resized = solved[1].resized and solved[1].resized(size)
            if resized:
                return resized
            taken = self.stepper.step(self.problem.objective, progress.state, size)
            solved = taken or solved
            return taken

        return locate_event(
            again=again,
            sized=lambda taken: taken[1].planned,
            distance=distance,
            whole=whole,
            begun=begun,
            tolerance=goal.tolerance,
        )

    def _moved(self, progress: Progress, state: State, step: Step, seconds: float) -> Progress:
        """The progress after a step, before it is observed."""
        return replace(
            self.observation.before_step(progress, step),
            step=progress.step + 1,
            state=state,
            falls=(*progress.falls, self.problem.log_loss(state.evaluation))[-STALL_STEPS:],
            slopes=(*progress.slopes, _relative_slope(state))[-STALL_STEPS:],
            sizes=(*progress.sizes, step.size)[-STALL_STEPS:],
            seconds=seconds,
        )

    def _saved(self, before: Progress, now: Progress, pending: list[Goal]) -> list[Goal]:
        """Save the weights at goals just reached; the goals that remain."""
        ahead = unreached(self.problem, before, now, pending)
        self.recorder.keep(now, [goal for goal in pending if goal not in ahead])
        return ahead

    def _observed(self, progress: Progress, step: Step | None, *, final: bool) -> Progress:
        """The progress with its records; the callback is called."""
        seen = self.observation.observe(progress, step, final=final)
        if self.callback is not None:
            growth = self.problem.growth(progress.state.weights)
            self.callback(progress.step, progress.falls[-1], growth, tail_residual(self.problem.chain, seen))
        return seen


def _relative_slope(state: State) -> float:
    """`‖∇ log R‖ ‖w‖`: the fall of the loss if the weights moved by their own size."""
    return state.gradient_norm * float(state.weights.norm())
