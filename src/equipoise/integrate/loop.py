"""The loop behind `eq.flow`: a step on the course, a look by the observers, a record kept, until there is an end."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equipoise.errors import InputError, Interrupted
from equipoise.integrate.checkpoints import Progress
from equipoise.integrate.course import STALL_STEPS, Course
from equipoise.integrate.goals import EVERY_QUARTER, Goal, LogLoss, parse_goal
from equipoise.integrate.keeping import Keeper
from equipoise.integrate.problem import Problem, build_problem, require_tail
from equipoise.integrate.recorded import course_from, manifest_of, observers_from, stepper_from
from equipoise.integrate.run import Run, Status, manifest_of_flow, stored_problem
from equipoise.integrate.steppers import EntropicMidpoint, State, Step, Stepper
from equipoise.integrate.validation import require_integer
from equipoise.integrate.witness import Witness
from equipoise.losses import Loss
from equipoise.observers import Activity, Alignment, Defect, Drift, Margin, Observer, Signs, Spectrum
from equipoise.store import Store
from equipoise.threads import one_thread

_SHORT = 2e8  # operations of a pass over the data, below which threads would wait for each other more than they work

Watcher = Callable[[int, float, float, "float | None"], None]  # step, log-loss, growth, worst residual of the tail


def default_observers(stepper: Stepper) -> tuple[Observer, ...]:
    """Spectra, alignment, drift of the laws, activity, signs, margins; what a discrete stepper does to the laws."""
    common = (Spectrum(), Alignment(), Drift(), Activity(), Signs(), Margin())
    return common if stepper.continuous else (*common, Defect())


def flow(
    model: nn.Module,
    data: Any,
    loss: str | Loss = "exponential",
    until: Goal | str = LogLoss(-1e6),  # noqa: B008 - a frozen value
    *,
    observe: Sequence[Observer] | None = None,
    out: str | Path | None = None,
    stepper: Stepper | None = None,
    save_at: Iterable[Goal] = EVERY_QUARTER,
    max_steps: int = 10_000,
    example_weights: Any = None,
    dtype: torch.dtype = torch.float64,
    arguments: dict[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Run gradient flow of `model` on `data = (X, y)` until a goal (T6).

    `X` has shape (n, ...) and any real dtype, `y` labels in {-1, +1} or {0, 1}, or class indices for the losses of
    several classes. `example_weights` are `w_i` of `R = Σ w_i ℓ_i`, divided by their sum; by default all `1/n`. The
    flow runs on a copy in `dtype`, float64 or float32, on the model's device; the caller's model and data stay as they
    are. `out` names a folder for the run: manifest, records, weights, checkpoints. `save_at` lists goals at which
    weights are kept besides the first and the last, in `run.saved` and in the folder: by default at every quarter of
    growth, for what a certificate says of the way. The step that passes `until`, or a goal of your own in `save_at`, is
    cut to end there; the laws stay exact.

    How it ended is `run.status`, a value. Raises `InputError` for data or a model that cannot be used.

    >>> from equipoise.data import load
    >>> from equipoise.networks import mlp
    >>> run = flow(mlp([5, 4, 4, 1], linear_tail=2), load("separable", n=20, d=5), until=LogLoss(-1e4))
    >>> run.status.value, -1.00001e4 < run.log_loss <= -1e4
    ('reached', True)
    """
    goal, points = _goal("until", until), _goals(save_at)
    require_integer("max_steps", max_steps, "pass max_steps=10_000", least=1)
    problem = build_problem(model, data, loss, example_weights, dtype)
    require_tail(problem.loss, goal)
    stepper = stepper or EntropicMidpoint()
    observers = default_observers(stepper) if observe is None else tuple(observe)
    course = Course(problem, goal, points, max_steps, stepper.continuous)
    manifest = manifest_of(course, stepper, observers, arguments or {})
    with nullcontext() if out is None else Store.create(out, manifest, {"initial": problem.initial}) as store:
        loop = _Loop(stepper, course, Witness(problem, observers), Keeper(problem, store), watcher)
        return loop.run(None)


def _goal(name: str, value: Any) -> Goal:
    """A goal, or its text. Raises `InputError` for anything else."""
    goal = parse_goal(value) if isinstance(value, str) else value
    if isinstance(goal, Goal) and not isinstance(goal, type):
        return goal
    raise InputError(
        expected=f"{name} to be a goal like eq.LogLoss(-1e6), or its text",
        found=repr(value),
        remedy='pass until=eq.LogLoss(-1e6), or until="log_loss=-1e6"',
    )


def _goals(save_at: Any) -> tuple[Goal, ...]:
    """The goals of `save_at`, one or several."""
    if isinstance(save_at, str) or not isinstance(save_at, Iterable):
        save_at = (save_at,)
    return tuple(_goal("each point of save_at", point) for point in save_at)


def resume(
    folder: str | Path,
    model: nn.Module | None = None,
    data: Any = None,
    observe: Sequence[Observer] | None = None,
    watcher: Watcher | None = None,
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
        watcher: as of `flow`.
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
        with manifest_of_flow(store):
            problem, asked = stored_problem(store, model, data), store.manifest["arguments"] | changes
            observers, stepper = observers_from(asked["observers"], observe), stepper_from(asked["stepper"])
            course = course_from(problem, asked)
        keeper, saved = Keeper(problem, store), store.checkpoint()
        progress = None if saved is None else keeper.restored(saved, len(observers))
        store.rewind({"arguments": asked} if changes else None)
        if "initial" not in store.weights():
            store.save_weights("initial", problem.initial)
        return _Loop(stepper, course, Witness(problem, observers), keeper, watcher).run(progress)


def _changed(until: Goal | str | None, max_steps: int | None) -> dict[str, Any]:
    """The arguments of the manifest that are to be others."""
    if max_steps is not None:
        require_integer("max_steps", max_steps, "pass max_steps=10_000", least=1)
    asked = {"until": None if until is None else _goal("until", until).describe(), "max_steps": max_steps}
    return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class _Loop:
    """One step after another: taken on the course, looked at by the witness, kept by the keeper."""

    stepper: Stepper
    course: Course
    witness: Witness
    keeper: Keeper
    watcher: Watcher | None

    def run(self, progress: Progress | None) -> Run:
        """From the start, or from what was kept; on one thread where a pass is short."""
        with one_thread(self.course.problem.objective.operations <= _SHORT):
            return self.finish(progress or self.start())

    def start(self) -> Progress:
        """Before the first step, with the initial weights observed."""
        problem = self.course.problem
        state = self.stepper.init(problem.objective, problem.weights)
        falls, slopes = (problem.log_loss(state.evaluation),), (_slope(state),)
        progress = Progress(0, state, self.witness.memories(), falls, slopes)
        return self._looked(progress, None, final=self.course.status(progress, progress) is not None)

    def finish(self, progress: Progress) -> Run:
        """Step until the goal, or until there is a reason to stop."""
        begun = time.perf_counter() - progress.seconds
        status = self.course.hopeless() or self.course.status(progress, progress)
        pending = self.course.ahead(progress, progress, self.course.save_at)
        try:
            while status is None:
                taken = self.course.advance(self.stepper, progress, pending)
                if taken is None:
                    status = Status.stalled
                    break
                moved = self._moved(progress, *taken, time.perf_counter() - begun)
                pending = self._passed(progress, moved, pending)
                status = self.course.status(progress, moved)
                progress = self.keeper.checkpoint(self._looked(moved, taken[1], final=status is not None))
        except KeyboardInterrupt:
            self.keeper.commit(progress)
            raise Interrupted(self.keeper.interruption(progress)) from None
        return self.keeper.concluded(progress, status, self.course.reason(status, progress.state))

    def _moved(self, progress: Progress, state: State, step: Step, seconds: float) -> Progress:
        falls = (*progress.falls, self.course.problem.log_loss(state.evaluation))[-STALL_STEPS:]
        slopes = (*progress.slopes, _slope(state))[-STALL_STEPS:]
        sizes = (*progress.sizes, step.size)[-STALL_STEPS:]
        known = {"state": state, "falls": falls, "slopes": slopes, "sizes": sizes, "seconds": seconds}
        return replace(progress, step=progress.step + 1, memories=self.witness.foresee(progress, step), **known)

    def _passed(self, before: Progress, now: Progress, pending: list[Goal]) -> list[Goal]:
        """Keep the weights at goals just reached; the goals that remain."""
        ahead = self.course.ahead(before, now, pending)
        self.keeper.keep(now, [goal for goal in pending if goal not in ahead])
        return ahead

    def _looked(self, progress: Progress, step: Step | None, *, final: bool) -> Progress:
        seen = self.witness.look(progress, step, final=final)
        if self.watcher is not None:
            growth = self.course.problem.growth(progress.state.weights)
            self.watcher(progress.step, progress.falls[-1], growth, _tail_residual(self.course.problem, seen))
        return seen


def _slope(state: State) -> float:
    """`‖∇ log R‖ ‖w‖`: by how much the loss would fall if the weights moved by their own size."""
    return state.steepness * float(state.weights.norm())


def _tail_residual(problem: Problem, progress: Progress) -> float | None:
    """The largest rank-one residual on record among the linear layers at this step."""
    tail = {layer.weight for layer in problem.chain or () if layer.kind == "linear"}
    now = takewhile(lambda record: record.step == progress.step, reversed(progress.records))
    seen = [record.value for record in now if record.quantity == "rank_one_residual" and record.place in tail]
    return max(seen, default=None)
