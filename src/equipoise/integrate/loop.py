"""The loop behind `eq.flow`: steps, observers, records, checkpoints, and the decision to stop."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.integrate.checkpoints import Progress, memory_of, packed, state_of
from equipoise.integrate.goals import EVERY_QUARTER, Goal, Instant, LogLoss, parse_goal
from equipoise.integrate.landing import landed
from equipoise.integrate.losses import Exponential, Loss
from equipoise.integrate.margins import Weights
from equipoise.integrate.objective import Objective, Tangent
from equipoise.integrate.problem import (
    Problem,
    build_problem,
    require_tail,
    why_not_separable,
    why_stalled,
    why_unresolved,
)
from equipoise.integrate.recorded import described, observers_from, stepper_from
from equipoise.integrate.run import Run, Status, all_slides, stored_problem
from equipoise.integrate.steppers import EntropicMidpoint, State, Step, Stepper
from equipoise.laws.gauge import Gauge
from equipoise.measure.leading import ExactSpectra
from equipoise.measure.unfolding import Unfolding
from equipoise.observers import (
    Activity,
    Alignment,
    Defect,
    Drift,
    Foresight,
    Margin,
    Memory,
    Observer,
    Scene,
    Signs,
    Snapshot,
    Spectrum,
)
from equipoise.observers.defect import accumulated
from equipoise.store import Checkpoint, Record, Store

_CHECKPOINT_SECONDS = 1.0
_STALL_STEPS = 60  # steps over which the loss must fall by more than _STALL_FALL of itself
_STALL_FALL = 1e-6

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
    """Run gradient flow of `model` on `data = (X, y)` until a goal (THEORY T6).

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
    goal = parse_goal(until) if isinstance(until, str) else until
    problem = build_problem(model, data, loss, example_weights, dtype)
    require_tail(problem.loss, goal)
    stepper, points = stepper or EntropicMidpoint(), tuple(save_at)
    observers = default_observers(stepper) if observe is None else tuple(observe)
    with ExitStack() as stack:
        store = None
        if out is not None:
            store = stack.enter_context(
                Store.create(out, _manifest(problem, goal, points, stepper, observers, max_steps, arguments or {}))
            )
            store.save_weights("initial", problem.initial)
        loop = _Loop(problem, goal, stepper, observers, points, max_steps, store, watcher)
        return loop.finish(loop.start())


def resume(
    folder: str | Path,
    model: nn.Module | None = None,
    data: Any = None,
    observe: Sequence[Observer] | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Go on with a run from its last checkpoint; it ends with the numbers of an uninterrupted one.

    Stepper, goals and observers are those of the manifest. A model or data of one's own, and observers that hold
    tensors, are passed again. Raises `InputError` or `StoreError` for a folder that is not such a run, and for
    observers that are not those of the run.
    """
    with Store.resume(folder) as store:
        problem, manifest = stored_problem(store, model, data), store.manifest
        asked = manifest["arguments"]
        observers, stepper = observers_from(asked["observers"], observe), stepper_from(asked["stepper"])
        goal, points = parse_goal(asked["until"]), tuple(map(parse_goal, asked["save_at"]))
        loop = _Loop(problem, goal, stepper, observers, points, asked["max_steps"], store, watcher)
        saved = store.checkpoint()
        return loop.finish(loop.start() if saved is None else loop.restored(saved))


def _manifest(
    problem: Problem,
    goal: Goal,
    save_at: Sequence[Goal],
    stepper: Stepper,
    observers: Sequence[Observer],
    max_steps: int,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    return {
        "network": arguments.get("network"),
        "layers": [{"weight": layer.weight, "bias": layer.bias, "kind": layer.kind} for layer in problem.chain or ()],
        "data": asdict(problem.data.provenance),
        "loss": problem.loss.name,
        "seed": arguments.get("seed"),
        "arguments": {
            "until": goal.describe(),
            "save_at": [point.describe() for point in save_at],
            "stepper": described(stepper),
            "observers": [described(observer) for observer in observers],
            "max_steps": max_steps,
            "example_weights": problem.example_weights,
            "dtype": str(problem.weights.dtype).removeprefix("torch."),
            "command": arguments.get("command"),
        },
    }


@dataclass(frozen=True)
class _Loop:
    problem: Problem
    goal: Goal
    stepper: Stepper
    observers: tuple[Observer, ...]
    save_at: tuple[Goal, ...]
    max_steps: int
    store: Store | None
    watcher: Watcher | None

    @cached_property
    def scene(self) -> Scene:
        """What the observers are told once."""
        problem = self.problem
        return Scene(
            initial=problem.initial,
            matrices=tuple(Unfolding(name) for name, weight in problem.initial.items() if weight.ndim > 1),
            consecutive=tuple(
                (Unfolding(below.weight, below.bias), Unfolding(above.weight, reads=True))
                for below, above in pairwise(problem.chain or ())
            ),
            laws=problem.laws,
            gauge=Gauge(tuple(problem.laws)),
            probe=problem.probe,
            kinks=problem.kink_names,
            negative_slopes=tuple(problem.margins.kinks[k].negative_slope or 0.0 for k in problem.rectifiers),
            examples=problem.margins.count,
            homogeneity=problem.homogeneity,
            loss=problem.loss.name,
        )

    def start(self) -> Progress:
        """Before the first step, with the initial weights observed."""
        state = self.stepper.init(self.problem.objective, self.problem.weights)
        scene = self.scene
        return self._observed(Progress(0, state, tuple(observer.init(scene) for observer in self.observers)))

    def finish(self, progress: Progress) -> Run:
        """Step until the goal, or until there is a reason to stop."""
        begun = time.perf_counter() - progress.seconds
        status, written = self._hopeless(), time.perf_counter()
        pending = self._ahead(progress, progress, self.save_at)
        try:
            while status is None and (status := self._status(progress)) is None:
                advanced = self._advance(progress, pending)
                if advanced is None:
                    status = Status.stalled
                    break
                before, (state, step) = progress, advanced
                progress = replace(progress, step=progress.step + 1, state=state, seconds=time.perf_counter() - begun)
                pending = self._save(before, progress, pending)
                if not self._ahead(before, progress, [self.goal]):
                    status = Status.precision_floor if state.temperature > 1 else Status.reached
                progress = self._observed(progress, step, before, status)
                if self.store is not None and time.perf_counter() - written > _CHECKPOINT_SECONDS:
                    progress, written = self._commit(progress), time.perf_counter()
        except KeyboardInterrupt:
            self._commit(progress)
            raise
        return self._run(progress, status)

    def _advance(self, progress: Progress, pending: Sequence[Goal]) -> tuple[State, Step] | None:
        """The next step, cut to end at the first goal on its way."""
        objective = self.problem.objective
        taken = self.stepper.step(objective, progress.state)
        if taken is None or not self.stepper.continuous:
            return taken
        start = self._instant(progress.state, progress.step)
        landings = (self.goal, *(() if self.save_at == EVERY_QUARTER else pending))
        for goal in landings:
            if goal.tolerance is None:
                continue

            def distance(taken: tuple[State, Step], goal: Goal = goal) -> float:
                return goal.distance(start, self._instant(taken[0], progress.step + 1))

            if goal.distance(start, start) > 0 >= distance(taken):
                taken = landed(
                    again=lambda size: self.stepper.step(objective, progress.state, size),
                    sized=lambda taken: taken[1].asked,
                    distance=distance,
                    whole=taken,
                    begun=goal.distance(start, start),
                    tolerance=goal.tolerance,
                )
        return taken

    # --- where it stands ---

    def _log_loss(self, state: State) -> float:
        return self.problem.objective.log_risk(state.evaluation)

    @cached_property
    def _initial_norm(self) -> float:
        return float(self.problem.weights.norm())

    def _growth(self, weights: Weights) -> float:
        return math.log(float(weights.norm()) / self._initial_norm)

    def _instant(self, state: State, steps: int) -> Instant:
        separation = self.problem.loss.log_at_zero() - math.log(self.problem.margins.count)
        here = self._log_loss(state), self._growth(state.weights)
        return Instant(*here, steps, separation, state.evaluation.preactivations)

    def _hopeless(self) -> Status | None:
        """`not_separable` where a goal of loss is proved out of reach."""
        bottomless = isinstance(self.goal, LogLoss) and self.goal.value < -math.log(self.problem.margins.count) - 1
        return Status.not_separable if bottomless and why_not_separable(self.problem) else None

    def _status(self, progress: Progress) -> Status | None:
        if not self._ahead(progress, progress, [self.goal]):
            return Status.precision_floor if progress.state.temperature > 1 else Status.reached
        if progress.step >= self.max_steps:
            return Status.step_limit
        fell = progress.falls
        if len(fell) == _STALL_STEPS and fell[0] - fell[-1] < _STALL_FALL * max(1.0, abs(fell[-1])):
            return Status.stalled
        return None

    # --- looking ---

    def _observed(
        self, progress: Progress, step: Step | None = None, before: Progress | None = None, status: Status | None = None
    ) -> Progress:
        scene, snapshot = self.scene, self._snapshot(progress, status)
        log_loss = self._log_loss(progress.state)
        moment = (progress.step, snapshot.clock, log_loss, progress.state.log_time)
        memories, records = [], []
        for observer, memory in zip(self.observers, self._foreseen(progress, step, before), strict=True):
            memory, readings = observer.observe(scene, memory, snapshot)
            memories.append(memory)
            records += [Record(*moment, observer.name, *reading) for reading in readings]
        records += [Record(*moment, "flow", "", name, value) for name, value in _told(step, progress.state)]
        progress.records.extend(records)
        if self.watcher is not None:
            self.watcher(progress.step, log_loss, snapshot.clock, self._tail_residual(records))
        return replace(
            progress,
            memories=tuple(memories),
            falls=(*progress.falls, log_loss)[-_STALL_STEPS:],
        )

    def _foreseen(self, progress: Progress, step: Step | None, before: Progress | None) -> tuple[Memory, ...]:
        """The observers' memories, after a look at the gradient of a discrete step, where there was one."""
        if step is None or step.update is None or before is None:
            return progress.memories
        update, views = step.update, self.problem.layout.views
        rate = (update.rate, update.decay / update.rate)
        snapshot = replace(
            self._snapshot(before, None),
            gradients=views(update.gradient),
            rates=dict.fromkeys(self.problem.layout.shapes, rate),
        )
        return tuple(
            observer.before(self.scene, memory, snapshot)[0] if isinstance(observer, Foresight) else memory
            for observer, memory in zip(self.observers, progress.memories, strict=True)
        )

    def _tail_residual(self, records: list[Record]) -> float | None:
        """The largest rank-one residual among the linear layers."""
        tail = {layer.weight for layer in self.problem.chain or () if layer.kind == "linear"}
        seen = [row.value for row in records if row.quantity == "rank_one_residual" and row.place in tail]
        return max(seen, default=None)

    def _snapshot(self, progress: Progress, status: Status | None) -> Snapshot:
        state, here = progress.state, _Here(self.problem, progress.state)
        parameters = self.problem.layout.views(state.weights)
        return Snapshot(
            step=progress.step,
            clock=self._growth(state.weights),
            log_loss=self._log_loss(state),
            parameters=parameters,
            spectra=ExactSpectra(parameters),
            norm=float(state.weights.norm()),
            margins=state.evaluation.margins,
            preactivations=tuple(state.evaluation.preactivations[k] for k in self.problem.rectifiers),
            slopes=tuple(state.slopes[k] for k in self.problem.rectifiers),
            linearisation=here,
            final=(status or self._status(progress)) is not None,
        )

    # --- keeping ---

    def _ahead(self, before: Progress, progress: Progress, goals: Iterable[Goal]) -> list[Goal]:
        """The goals that a step has not reached."""
        start, now = (self._instant(each.state, each.step) for each in (before, progress))
        return [goal for goal in goals if goal.distance(start, now) > 0]

    def _save(self, before: Progress, progress: Progress, pending: list[Goal]) -> list[Goal]:
        """Keep the weights at goals just reached; the goals that remain."""
        ahead = self._ahead(before, progress, pending)
        for goal in pending:
            if goal not in ahead:
                views = self.problem.layout.views(progress.state.weights)
                progress.saved[goal.describe()] = {name: view.clone() for name, view in views.items()}
                if self.store is not None:
                    self.store.save_weights(goal.describe(), views)
        return ahead

    def _commit(self, progress: Progress) -> Progress:
        if self.store is None:
            return progress
        self.store.commit(progress.records[progress.written :], packed(progress))
        return replace(progress, written=len(progress.records))

    def restored(self, saved: Checkpoint) -> Progress:
        """The progress of a checkpoint."""
        assert self.store is not None
        records = [Record(*row) for row in self.store.table().itertuples(index=False)]
        state = state_of(saved, len(self.problem.margins.kinks), self.problem)
        memories = tuple(memory_of(saved, index) for index in range(len(self.observers)))
        told = saved.metadata
        return Progress(
            step=saved.step,
            state=state,
            memories=memories,
            falls=tuple(told["falls"]),
            records=records,
            written=len(records),
            saved=self._kept(),
            seconds=told["seconds"],
        )

    def _kept(self) -> dict[str, dict[str, Tensor]]:
        """The weights saved on the way; those after the checkpoint will be reached, and saved, again."""
        assert self.store is not None
        return {name: self.store.load_weights(name)[0] for name in self.store.between()}

    def _reason(self, state: State, status: Status) -> str | None:
        if status == Status.stalled:
            return why_stalled(self.problem, state.evaluation)
        if status == Status.precision_floor:
            return why_unresolved(self.problem, state.evaluation)
        return why_not_separable(self.problem) if status == Status.not_separable else None

    def _run(self, progress: Progress, status: Status) -> Run:
        state, problem = progress.state, self.problem
        final = {name: view.clone() for name, view in problem.layout.views(state.weights).items()}
        run = Run(
            model=problem.trained(state.weights),
            initial=problem.initial,
            final=final,
            data=problem.data,
            loss=problem.loss,
            chain=problem.chain,
            homogeneity=problem.homogeneity,
            status=status,
            log_loss=self._log_loss(state),
            growth=self._growth(state.weights),
            log_time=state.log_time,
            steps=progress.step,
            gradient_evaluations=state.examples_visited / problem.margins.count,
            seconds=progress.seconds,
            records=progress.records,
            folder=None if self.store is None else Path(self.store.folder),
            saved=progress.saved,
            defects={name: total for memory in progress.memories for name, total in accumulated(memory).items()},
            slid=all_slides(progress.memories, progress.step),
            reason=self._reason(state, status),
        )
        if self.store is not None:
            self._commit(progress)
            self.store.save_weights("final", final)
            self.store.finish(run.summary())
        return run


@dataclass(frozen=True)
class _Here:
    """The Jacobian of some of the margins at a state, flat; formed when an observer asks."""

    problem: Problem
    state: State
    rows: Tensor | None = None  # None: all

    def restricted(self, rows: Tensor) -> "_Here":
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    @cached_property
    def _tangent(self) -> Tangent:
        plain, slopes = Objective(self.problem.margins, Exponential()), self.state.slopes
        if self.rows is None:
            return plain.linearise(self.state.weights, slopes)
        examples = plain.examples(self.rows)
        return plain.restricted(self.rows).linearise(self.state.weights, tuple(slope[examples] for slope in slopes))

    def kernel(self) -> Tensor:
        return self._tangent.kernel()

    def pullback(self, forces: Tensor) -> Tensor:
        return self._tangent.pullback(self._tangent.forces(forces))

    def weights(self) -> Tensor:
        return self.state.weights

    def gradients(self) -> dict[str, Tensor]:
        objective, state = self.problem.objective, self.state
        velocity = objective.linearise(state.weights, state.slopes).pullback(objective.forces(state.evaluation))
        return self.problem.layout.views(-velocity)


def _told(step: Step | None, state: State) -> list[tuple[str, float]]:
    if step is None:
        return []
    told = {"step_size": step.size, "error": step.error, "active": step.active, "rejected": step.rejected}
    return [(name, float(value)) for name, value in (told | {"temperature": state.temperature}).items()]
