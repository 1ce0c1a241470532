"""Snapshots around the steps of one optimizer: readings before a step and after it, on their way to the sinks."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from equipoise.errors import one_line
from equipoise.laws import Laws
from equipoise.laws.evaluate import LawReadings
from equipoise.laws.predict import plain_steps
from equipoise.modes import default_modes
from equipoise.monitor.alarms import warn
from equipoise.monitor.context import ModelContext, autocast_dtype, some, untouched_generators
from equipoise.monitor.distributed import PeerFailure, ProcessGroup
from equipoise.monitor.gradients import GradientCheck
from equipoise.monitor.hooks import held_parameters, in_backward
from equipoise.monitor.schedule import Meter, Schedule
from equipoise.monitor.shards import DifferentParameters
from equipoise.monitor.spectra import SpectrumTracker
from equipoise.observers import (
    Observer,
    Reading,
    Requirements,
    Snapshot,
    StateLike,
    TrainingContext,
    Unavailable,
    requirements,
    step_observer,
)
from equipoise.observers.judgement import Judgement, excesses

Weights: TypeAlias = dict[str, Tensor]

SMALL = 1 << 22  # parameters, whose gradients are kept at the first step already


class ReadingSink(Protocol):
    """A receiver of readings, of the laws they are about, and of notes."""

    laws: Laws | None

    def record(self, step: int, norm: float, observer: str, readings: Sequence[Reading]) -> None:
        """Take the readings of one observer."""
        ...

    def note(self, step: int, text: str) -> None:
        """Take a note, which is no alarm; each is kept once."""
        ...

    def end_snapshot(self, step: int) -> None:
        """Pass on all readings since the last snapshot."""
        ...


@dataclass
class ObserverSet:
    """Observers and their states; one that fails or cannot work is off, and `off` says why."""

    observers: Sequence[Observer]
    off: dict[str, str]
    group: ProcessGroup = field(default_factory=ProcessGroup)
    states: dict[int, StateLike] = field(default_factory=dict)  # of those that are on, by their position
    _crashed: set[int] = field(default_factory=set)

    @property
    def on(self) -> list[Observer]:
        """The observers that are not off."""
        return [self.observers[position] for position in self.states]

    @property
    def requires(self) -> Requirements:
        """The requirements of those that are on, together."""
        return Requirements.of(self.on)

    def start(self, context: TrainingContext) -> None:
        """Let each of them begin; those that cannot work are off from here on."""
        for position, observer in enumerate(self.observers):
            if position not in self._crashed:
                with self._guarded(position):
                    context.check(requirements(observer))
                    self.states[position] = observer.init(context)

    def restart(self) -> None:
        """Forget everything, since the model has changed; all but those that crashed begin anew."""
        self.states = {}
        for position, observer in enumerate(self.observers):
            if position not in self._crashed:
                self.off.pop(observer.name, None)

    def tracker(self, context: TrainingContext, model: ModelContext) -> SpectrumTracker:
        """A tracker of the matrices that they ask for."""
        requires = self.requires
        asked = list(context.matrices) if requires.triplets else []
        if requires.consecutive:
            asked += [each for pair in context.require("consecutive") for each in pair]
        weights = model.weights()
        unfoldings = dict.fromkeys(unfolding.canonical(weights) for unfolding in asked)
        return SpectrumTracker(tuple(unfoldings), max(1, requires.triplets), model.group)

    def before(self, context: TrainingContext, snapshot: Snapshot) -> Iterator[tuple[str, Sequence[Reading]]]:
        """Name and readings of each observer that reads a snapshot before the step."""
        for position, state in list(self.states.items()):
            observer = step_observer(self.observers[position])
            if observer is not None:
                yield from self._read(position, partial(observer.before, context, state, snapshot))

    def observe(self, context: TrainingContext, snapshot: Snapshot) -> Iterator[tuple[str, Sequence[Reading]]]:
        """Name and readings of each observer."""
        for position, state in list(self.states.items()):
            yield from self._read(position, partial(self.observers[position].observe, context, state, snapshot))

    def _read(
        self, position: int, read: Callable[[], tuple[StateLike, Sequence[Reading]]]
    ) -> Iterator[tuple[str, Sequence[Reading]]]:
        readings = None
        with self._guarded(position):
            self.states[position], readings = read()
        if readings is not None:
            yield self.observers[position].name, readings

    @contextmanager
    def _guarded(self, position: int) -> Iterator[None]:
        """A block in which a mistake of an observer turns it off, and does not stop the training.

        Raises:
            PeerFailure: where it makes it on some of the processes only.
        """
        try:
            with self.group.together():
                yield
        except PeerFailure:
            raise
        except Exception as error:
            self.turn_off(position, error)

    def turn_off(self, position: int, error: Exception) -> None:
        """Drop an observer; one whose needs are not met may begin again where the model changes."""
        name = self.observers[position].name
        self.states.pop(position, None)
        self.off[name] = error.found if isinstance(error, Unavailable) else one_line(error)
        if not isinstance(error, Unavailable):
            self._crashed.add(position)
            warn(f"{name} is off: {self.off[name]}")

    def turn_all_off(self, error: Exception) -> None:
        """Drop those that are not off yet."""
        for position, observer in enumerate(self.observers):
            if observer.name not in self.off:
                self.turn_off(position, error)


@dataclass
class SnapshotTaker:
    """The snapshots of the parameters that one optimizer holds; it is called by the hooks on that optimizer.

    A snapshot goes one way: `before_step` reads laws and gradients while they belong together; `after_step` reads the
    laws and spectra again, asks the observers, and passes their readings to the sink.
    """

    optimizer: object
    model: ModelContext
    observers: ObserverSet
    schedule: Schedule
    meter: Meter
    sink: ReadingSink
    earlier: Sequence["SnapshotTaker"] = ()  # whose laws it does not read again
    due: int = 1  # the step of the next snapshot
    taken: int = 0
    stopped: bool = False  # something shared by all observers has failed, and there will be no other snapshot
    check: GradientCheck = field(default_factory=GradientCheck)
    context: TrainingContext | None = None
    tracker: SpectrumTracker | None = None
    before: LawReadings | None = None  # just before the step that is being taken
    judged: frozenset[str] = frozenset()  # the laws that this optimizer holds all of
    within_autocast: bool = False  # whether the optimizer steps within autocast that caches its casts
    _revision: int = 0

    @property
    def held(self) -> frozenset[str]:
        """The names of the parameters that the optimizer holds."""
        own = held_parameters(self.optimizer)
        return frozenset(name for name, parameter in self.model.parameters.items() if id(parameter) in own)

    @property
    def watched(self) -> frozenset[str]:
        """Those of them that are to be watched."""
        return self.held & self.model.watched()

    # --- called by the hooks ---

    def begin(self) -> None:
        """Keep the gradients of the first backward pass, where that is cheap."""
        parameters = self.model.parameters.values()
        if not any(map(is_lazy, parameters)) and sum(parameter.numel() for parameter in parameters) <= SMALL:
            self._safely(self._arm)

    def refuse(self, reason: str) -> None:
        """Turn all observers off before the training begins."""
        self.stopped = True
        self.observers.off.update({observer.name: reason for observer in self.observers.observers})

    def wants(self, step: int) -> bool:
        """Whether a snapshot is due at this step."""
        return not self.stopped and step >= self.due and (self.context is None or bool(self.observers.states))

    def skip(self, step: int) -> None:
        """Put the snapshot off by a step."""
        self.due = step + 1

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        """Read the laws and gradients, which are judged and recorded after the step."""
        self.within_autocast = torch.is_autocast_cache_enabled() and autocast_dtype() is not None
        self._safely(partial(self._read_before, step, optimizer))

    def after_step(self, step: int, optimizer: Optimizer) -> None:
        """Take the snapshot, and decide when the next one comes."""
        if not self.stopped and step >= self.due:
            if self.observers.states:
                self._safely(partial(self._read_after, step, optimizer))
            if not self.stopped:
                self._safely(partial(self._decide, step))
        if not self.stopped and self.check.pending and step + 1 == self.due:
            self._safely(self._arm)

    def finish(self, step: int) -> None:
        """Take a last snapshot, where the training ended."""
        with suppress(Exception):
            self.check.record.disarm()
        if not self.model.membership.end():
            self.sink.note(step, _LEFT)
        elif self.observers.states and not self.stopped:
            if self.check.suspicious:
                self.sink.note(step, _UNCONFIRMED)
            self._safely(partial(self._read_after, step, None))

    def stop(self, error: Exception) -> None:
        """Turn all observers off, here and in the other processes: the training must go on."""
        self.stopped, failure = True, self.model.membership.share_failure(error)
        with suppress(Exception):
            self.check.record.disarm()
        self.observers.turn_all_off(failure)

    def _safely(self, act: Callable[[], None]) -> None:
        try:
            with untouched_generators(), default_modes(), self.model.group.together():
                act()
        except Exception as error:
            self.stop(error)

    def _arm(self) -> None:
        own = self.held
        self.check.record.arm({name: each for name, each in self.model.parameters.items() if name in own})

    def _decide(self, step: int) -> None:
        following = step + 1 if self.check.suspicious else self.schedule.following(step, self.meter)
        self.due = self.model.group.broadcast(following)

    # --- one snapshot ---

    @torch.no_grad()
    def _read_before(self, step: int, optimizer: Optimizer) -> None:
        self._refresh(step)
        with self.meter.timed(setup=self.context is None):
            context = self._prepared()
            self.before = None
            self.check.forget()
            gradients = self._gradients(step, optimizer)
            if gradients is None:
                self.check.record.disarm()
                return
            weights, requires = self.model.weights(), self.observers.requires
            if context.plan is not None and (requires.gradients or requires.step_changes):
                self.before = context.plan(weights, gradients)
                if self._drop_unfit(step, self.before):
                    context = self._prepared()
                    self.before = None if context.plan is None else context.plan(weights, gradients)
            if self.before is not None and context.plan is not None:
                self.check.read(context.plan, weights, gradients, self.held)
            if requires.before_step:
                whole, rates = self.model.group.gathered(gradients), self._rates(optimizer)
                snapshot = self._snapshot(step, weights, self.before, gradients=whole, rates=rates)
                self._pass_on(step, snapshot, self.observers.before(context, snapshot))

    @torch.no_grad()
    def _read_after(self, step: int, optimizer: Optimizer | None) -> None:
        """`optimizer` is None at the end of the training, where the last step may have failed."""
        final = optimizer is None
        setup = self.taken == 0 or final
        if final:
            self._refresh(step, ended=True)
        with self.meter.timed(setup):
            context = self._prepared()
            self.taken += 1
            weights, before, self.before = self.model.weights(), None if final else self.before, None
            requires, laws = self.observers.requires, None
            if context.plan is not None and (requires.laws or requires.whole_laws):
                laws = context.plan(weights, before=before)
            snapshot = self._snapshot(
                step,
                weights,
                laws,
                judgement=self._judge(step, laws),
                rates={} if optimizer is None or before is None else self._rates(optimizer),
                full=self.schedule.is_full(self.taken, final),
                final=final,
            )
            self._pass_on(step, snapshot, self.observers.observe(context, snapshot))
            self.sink.end_snapshot(step)
        if not setup:
            self.meter.end_snapshot()

    def _drop_unfit(self, step: int, before: LawReadings) -> bool:
        """Begin again without the laws that may have been read wrongly, and do not hold from the first step on."""
        if self.taken:
            return False
        precision = None if self.model.example is None else self.model.example.precision
        found = excesses(before, precision)
        suspects = {law.name for law in before.laws if found.get(law.name, 0.0) > 1 and self.model.rests_on_sizes(law)}
        if not suspects:
            return False
        self.sink.note(step, f"{some(sorted(suspects))}: {_UNFIT}")
        self.model.unfit |= suspects
        self.context, self.tracker = None, None
        self.observers.restart()
        return True

    def _refresh(self, step: int, *, ended: bool = False) -> None:
        """Begin anew where parts of the model have changed."""
        changes = self.model.refresh(ended=ended)
        if changes:
            self.sink.note(step, f"{changes}: what can be is read again, and drift counts from here")
        if self.model.group.any(bool(changes)):
            self.model.membership.again(self.model.parameters)
        if self._revision != self.model.revision:
            self._revision = self.model.revision
            if self.context is not None:
                self.context, self.tracker, self.before = None, None, None
                self.check.forget()
                self.observers.restart()
            if not self.held:
                self.sink.note(step, f"{type(self.optimizer).__name__} holds no parameter of the model any more")

    def _prepared(self) -> TrainingContext:
        """The context, read once: the observers begin where the training is."""
        if self.context is None:
            self.model.membership.agree(self.model.parameters)
            self._squares(self.model.weights())  # refused before anything else is read
            earlier: frozenset[str] = frozenset().union(*(taker.watched for taker in self.earlier))
            sketch, own = not Requirements.of(self.observers.observers).whole_laws, self.held
            context = self.model.training_context(self.watched, self.schedule.every, earlier, sketch)
            self.judged = frozenset(law.name for law in context.laws or () if own.issuperset(law.parameters))
            self.sink.laws, self.context = self.model.laws, context
            self.observers.group = self.check.group = self.model.group
            self.observers.start(context)
            self.tracker = self.observers.tracker(context, self.model)
        return self.context

    def _gradients(self, step: int, optimizer: Optimizer) -> Weights | None:
        """The gradients that belong to the weights as they are; None if there are none."""
        inside, group = in_backward(), self.model.group
        found = None if inside else self.model.gradients(getattr(optimizer, "grad_scale", None))
        if inside:
            self.sink.note(step, _IN_BACKWARD)
        if group.any(found is None) or found is None:
            return None
        gradients = group.like_weights(self.model.parameters, found)
        if group.size > 1 and (apart := group.census(gradients).different):
            raise DifferentParameters(f"the gradients of {some(apart)}")
        return gradients

    def _judge(self, step: int, laws: LawReadings | None) -> Judgement | None:
        """By law, whether the gradient of the step is right; None if it was not read."""
        if laws is None or laws.before is None or self.model.example is None:
            return None
        found = self.check.judge(laws.before, self.model.example.precision, self.judged)
        if self.check.were_changed(found):
            self.sink.note(step, _CHANGED)
        if self.within_autocast and any(excess > 1 for excess in found.excess.values()):
            self.sink.note(step, _CACHED)
        return found

    def _snapshot(
        self,
        step: int,
        weights: Weights,
        laws: LawReadings | None,
        *,
        rates: dict[str, tuple[float, float]],
        gradients: Mapping[str, Tensor] | None = None,
        judgement: Judgement | None = None,
        full: bool = True,
        final: bool = False,
    ) -> Snapshot:
        assert self.tracker is not None
        example = self.model.example
        squares = self._squares(weights)
        return Snapshot(
            step=step,
            clock=float(step),
            parameters=self.model.group.gathered(weights),
            norm=math.fsum(squares.values()) ** 0.5,
            spectra=self.tracker.at(weights, squares),
            full=full,
            final=final,
            gradients=gradients,
            laws=laws,
            precision=None if example is None else example.precision,
            judgement=judgement,
            rates=rates,
        )

    def _squares(self, weights: Weights) -> Mapping[str, float]:
        """`Σ w²` of each weight, once it is known that all processes hold the same model."""
        census = self.model.group.census(weights)
        if census.different:
            raise DifferentParameters(some(census.different))
        return census.squares

    def _rates(self, optimizer: Optimizer) -> dict[str, tuple[float, float]]:
        """Learning rate and decay of each parameter that a plain step moves; a weight of no optimizer stays."""
        plain = plain_steps(optimizer)
        rates = {name: plain.get(id(parameter), (0.0, 0.0)) for name, parameter in self.model.parameters.items()}
        return {name: rate for name, rate in rates.items() if rate is not None}

    def _pass_on(self, step: int, snapshot: Snapshot, readings: Iterator[tuple[str, Sequence[Reading]]]) -> None:
        for observer, its in readings:
            self.sink.record(step, snapshot.norm, observer, its)


_UNCONFIRMED = (
    "the gradient of the last snapshot broke a law beyond rounding, and the training ended before a second one could "
    "show whether backward() left it so"
)
_UNFIT = (
    "not held by the gradients of the first step, and not watched: each process computes with shards of the weights, "
    "and the model may split them by the sizes of its own shard, or a parallel layer has a wrong backward pass; "
    "eq.testing.assert_laws says which, on one process"
)
_LEFT = "a process left the block before its end, or did not come to it: no last snapshot"
_IN_BACKWARD = "the optimizer steps inside backward(): no law ever has all its gradients, none is judged"
_CACHED = (
    "the optimizer steps inside torch.autocast, which caches its casts of the weights until the outermost block ends: "
    "later forward passes in the same block compute with the weights from before the step; call step() outside it"
)
_CHANGED = (
    "gradients were changed between backward and step (clipping by value, noise, another point, by hand): "
    "laws are judged by what backward() left"
)
