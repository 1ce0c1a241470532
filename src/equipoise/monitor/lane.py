"""One optimizer under watch: its hooks, its steps, and the looks around some of them."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from equipoise.errors import one_line
from equipoise.laws import Laws
from equipoise.laws.evaluate import LawReadings
from equipoise.laws.predict import plain_steps
from equipoise.monitor.alarms import warn
from equipoise.monitor.crew import Abandoned, whole
from equipoise.monitor.gradients import BackwardRecord
from equipoise.monitor.meter import Cadence, Meter
from equipoise.monitor.optimizers import held, hooked, in_backward
from equipoise.monitor.scenery import Scenery, untouched_generators
from equipoise.monitor.spectra import Follower
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
from equipoise.observers.judgement import Judgement, judge


class Desk(Protocol):
    """Where readings go."""

    laws: Laws | None

    def tell(self, step: int, norm: float, observer: str, readings: Sequence[Reading]) -> None:
        """Take what one observer read."""
        ...

    def note(self, step: int, text: str) -> None:
        """Take what is no alarm, and worth knowing; once."""
        ...

    def close_look(self, step: int) -> None:
        """Pass on everything told since the last look."""
        ...


SMALL = 1 << 22  # parameters, whose gradients are kept at the first step already


@dataclass
class Lane:
    """The looks at the parameters that one optimizer holds. `off` says which observers are off, and why.

    `optimizer` is what the user trains with; its step hooks, or those of the optimizers that it wraps, are used.
    """

    optimizer: Any
    scenery: Scenery
    observers: Sequence[Observer]
    cadence: Cadence
    full_every: int
    meter: Meter
    desk: Desk
    off: dict[str, str]
    before_it: Sequence["Lane"] = ()  # whose laws it does not read again
    full: bool = False  # whether the first snapshot and the last one are full
    step: int = 0
    due: int = 1
    looks: int = 0
    abandoned: bool = False  # a look has failed, and there will be no others
    context: TrainingContext | None = None
    before: LawReadings | None = None  # just before the step that is being taken
    left: LawReadings | None = None  # with what `backward()` left before that step
    follower: Follower | None = None
    states: dict[int, StateLike] = field(default_factory=dict)  # of the observers that are on, by their position
    record: BackwardRecord = field(default_factory=BackwardRecord)
    suspicious: bool = False  # the last look found a law broken, and cannot say by whom
    compared: bool = False  # it was looked at what `backward()` left
    comparing: bool = False  # and will be at every look: a law was broken once
    stepping: Optimizer | None = None  # whose step is under way
    judged: frozenset[str] = frozenset()  # the laws that this optimizer holds all of
    _frame: FrameType | None = None  # of that step
    _inner: int = 0  # steps of the same optimizer that are under way within it
    _revision: int = 0
    _crashed: set[int] = field(default_factory=set)

    def hook(self) -> Iterator[Any]:
        """Register with the optimizer; the handles take the hooks away again."""
        optimizers = hooked(self.optimizer)
        if not optimizers:
            kind = type(self.optimizer).__name__
            self.abandoned = True
            for observer in self.observers:
                self.off[observer.name] = (
                    f"{kind} runs no step hooks, nor wraps a torch.optim.Optimizer that does; pass the one that steps"
                )
        for optimizer in optimizers:
            yield optimizer.register_step_pre_hook(self._before)
            yield optimizer.register_step_post_hook(self._after)
        if optimizers and self._may_confirm and self._size <= SMALL:
            self._safely(self._arm)

    @property
    def held(self) -> frozenset[str]:
        """The names of the parameters that the optimizer holds."""
        own = held(self.optimizer)
        return frozenset(name for name, parameter in self.scenery.parameters.items() if id(parameter) in own)

    @property
    def on(self) -> list[Observer]:
        """The observers that are not off."""
        return [self.observers[position] for position in self.states]

    @property
    def requires(self) -> Requirements:
        """What the observers that are on need together."""
        return Requirements.of(self.on)

    @property
    def _may_confirm(self) -> bool:
        """Where processes train together, each would have to know what the others' backward passes left."""
        return self.scenery.crew.size == 1

    @property
    def _size(self) -> int:
        return sum(parameter.numel() for parameter in self.scenery.parameters.values())

    # --- hooks ---

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self._begin(optimizer, args, kwargs)
        except Exception as error:  # nothing that happens here may end a training
            self._abandon(error)
            return None

    def _begin(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.stepping is not None and self.stepping is not optimizer and self._is_inside(optimizer):
            return None
        if self.stepping is optimizer and _is_running(self._frame):  # `super().step()` of a subclass runs hooks as well
            self._inner += 1
            return None
        self.stepping, self._frame, self._inner = optimizer, _frame_of_step(), 0
        self.step += 1
        if self.abandoned or self.step < self.due or (self.context is not None and not self.states):
            return None
        if _skipped(optimizer):  # the gradient has overflowed, and this step will not be taken
            self.due = self.step + 1
            return None
        itself, *rest = args  # torch passes the optimizer among the arguments
        closure = kwargs.get("closure", rest[0] if rest else None)
        if not callable(closure):
            self._safely(self._look_before)
            return None
        looking = _once_after(closure, lambda: self._safely(self._look_before))  # gradients come with the closure
        return ((itself, looking, *rest[1:]), kwargs) if rest else (args, kwargs | {"closure": looking})

    def _is_inside(self, optimizer: Optimizer) -> bool:
        """Whether it is wrapped by the one whose step is under way."""
        return any(each is optimizer for each in hooked(self.stepping)[1:])

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.stepping is not optimizer:
            return
        if self._inner:
            self._inner -= 1
            return
        if not self.abandoned and self.step >= self.due:
            if self.states:
                self._safely(self._look_after)
            if not self.abandoned:
                self._safely(self._decide)
        self.stepping = self._frame = None
        if (
            not self.abandoned
            and self._may_confirm
            and (self.suspicious or self.comparing)
            and self.step + 1 == self.due
        ):
            self._safely(self._arm)

    def _decide(self) -> None:
        following = self.step + 1 if self.suspicious else self.cadence.following(self.step, self.meter)
        self.due = self.scenery.crew.decided(following)

    def _arm(self) -> None:
        own = self.held
        self.record.arm({name: each for name, each in self.scenery.parameters.items() if name in own})

    # --- looks ---

    def _safely(self, look: Callable[[], None]) -> None:
        """Whatever fails in a look must not stop the training: all observers are off then, and `off` says why."""
        try:
            with untouched_generators():
                look()
        except Exception as failure:
            self._abandon(failure)

    def _abandon(self, failure: Exception) -> None:
        self.abandoned, error = True, self.scenery.crew.abandon(failure)
        with suppress(Exception):
            self.record.disarm()
        for position, observer in enumerate(self.observers):
            if observer.name not in self.off:
                self._turn_off(position, error)

    @torch.no_grad()
    def _look_before(self) -> None:
        """What weights and gradients say together is taken while they do; it is told with the look after the step."""
        self._notice()
        with self.meter.timed(setup=self.context is None):
            if self.context is None:
                self.prepare()
            self.before = self.left = None
            gradients = self._gradients()
            if gradients is None:
                self.record.disarm()
                return
            weights = self.scenery.weights()
            requires = self.requires
            if requires.gradients or requires.step_changes:
                self.before = self._readings(weights, gradients)
                self.left = self._left(weights, gradients)
            if requires.before_step:
                snapshot = self._snapshot(weights, self.before, gradients=whole(gradients), rates=self._rates())
                self._ask_each(snapshot, before=True)

    @torch.no_grad()
    def _look_after(self, final: bool = False) -> None:
        setup = self.looks == 0 or final
        if final:
            self._notice()
        with self.meter.timed(setup):
            if self.context is None:
                self.prepare()
            self.looks += 1
            weights, before = self.scenery.weights(), None if final else self.before  # a last step may have failed
            self.before, requires = None, self.requires
            laws = self._readings(weights, before=before) if requires.laws or requires.whole_laws else None
            rates = {} if before is None else self._rates()
            full = (self.full and (final or self.looks == 1)) or self.looks % self.full_every == 0
            judgement = None if laws is None else self._judge(laws)
            snapshot = self._snapshot(weights, laws, rates=rates, full=full, final=final, judgement=judgement)
            self._ask_each(snapshot)
            self.desk.close_look(self.step)
        if not setup:
            self.meter.close_look()

    @torch.no_grad()
    def prepare(self) -> None:
        """Read the model, and let every observer see where it starts; those that cannot work are off from here on."""
        scenery, own = self.scenery, self.held
        earlier: frozenset[str] = frozenset().union(*(lane.held for lane in self.before_it))
        sketch = not Requirements.of(self.observers).whole_laws
        self.context = context = scenery.scene(own, self.cadence.every, earlier, sketch)
        self.judged = frozenset(law.name for law in context.laws or () if own.issuperset(law.parameters))
        self.desk.laws = scenery.laws
        for position, observer in enumerate(self.observers):
            if position in self._crashed:
                continue
            try:
                context.check(requirements(observer))
                self.states[position] = observer.init(context)
            except Abandoned:
                raise
            except Exception as error:  # a mistake in an observer must not stop the training
                self._turn_off(position, error)
        requires = self.requires
        asked = list(context.matrices) if requires.triplets else []
        if requires.consecutive:
            asked += [each for pair in context.require("consecutive") for each in pair]
        weights = scenery.weights()
        unfoldings = dict.fromkeys(unfolding.canonical(weights) for unfolding in asked)
        self.follower = Follower(tuple(unfoldings), max(1, requires.triplets), scenery.crew)

    def _notice(self) -> None:
        """Parts of the model that are others now: it is read again, and observers begin anew."""
        said = self.scenery.refresh()
        if said:
            self.desk.note(self.step, f"{said}: what can be is read again, and drift counts from here")
        if self._revision != self.scenery.revision:
            self._revision = self.scenery.revision
            if self.context is not None:
                self.context = self.follower = self.before = self.left = None
                self.states = {}
                for position, observer in enumerate(self.observers):
                    if position not in self._crashed:
                        self.off.pop(observer.name, None)
            if not self.held:
                self.desk.note(self.step, f"{type(self.optimizer).__name__} holds no parameter of the model any more")

    def _gradients(self) -> dict[str, Tensor] | None:
        """Those that belong to the weights as they are; None where that cannot be said of them."""
        if in_backward():
            self.desk.note(
                self.step, "the optimizer steps inside backward(): no law ever has all its gradients, none is judged"
            )
            return None
        return self.scenery.gradients(getattr(self.stepping, "grad_scale", None))

    def _left(self, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> LawReadings | None:
        """Readings of the laws at weights and gradients as `backward()` left them, if it was armed."""
        self.compared = self.record.armed
        if not self.compared:
            return None
        own = self.held
        kept = self.record.take(weights, {name: each for name, each in gradients.items() if name in own})
        return None if kept is None else self._readings(kept[0], gradients | kept[1])

    def _judge(self, laws: LawReadings) -> Judgement | None:
        """By law, whether the gradient of the step before is right; None where that is not known."""
        if laws.before is None or self.scenery.example is None:
            return None
        precision = self.scenery.example.precision
        found = judge(laws.before, self.left, precision, self.judged, confirm=self._may_confirm)
        self.suspicious, self.left = bool(found.unconfirmed) and not self.compared, None
        self.comparing |= self.compared and not all(value <= 1 for value in found.excess.values())
        if found.changed or (found.unconfirmed and self.compared):  # or they are none of a backward pass at all
            self.comparing = True
            self.desk.note(
                self.step,
                "gradients were changed between backward and step (clipping by value, noise, another point, by hand): "
                "laws are judged by what backward() left",
            )
        return found

    def finish(self) -> None:
        """A last look at where the training ended, and the hooks off."""
        with suppress(Exception):
            self.record.disarm()
        if self.states and not self.abandoned:
            if self.suspicious:
                self.desk.note(
                    self.step,
                    "the gradient of the last look broke a law beyond rounding, and the training ended before a second "
                    "one could tell whether backward() left it so",
                )
            self._safely(partial(self._look_after, final=True))

    def _readings(
        self,
        weights: dict[str, Tensor],
        gradients: dict[str, Tensor] | None = None,
        before: LawReadings | None = None,
    ) -> LawReadings | None:
        """Readings of the laws; None where the model has none that are known."""
        plan = None if self.context is None else self.context.plan
        return None if plan is None else plan(weights, gradients, before=before)

    def _snapshot(self, weights: dict[str, Tensor], laws: LawReadings | None, **more: Any) -> Snapshot:
        assert self.follower is not None
        scenery = self.scenery
        squares = scenery.crew.squares(weights)
        return Snapshot(
            step=self.step,
            clock=float(self.step),
            parameters=whole(weights),
            norm=math.fsum(squares.values()) ** 0.5,
            spectra=self.follower.look(weights, squares),
            laws=laws,
            precision=None if scenery.example is None else scenery.example.precision,
            **more,
        )

    def _rates(self) -> dict[str, tuple[float, float]]:
        """Of a step that is a plain one; a weight of no optimizer stays."""
        plain = {} if self.stepping is None else plain_steps(self.stepping)
        rates = {name: plain.get(id(parameter), (0.0, 0.0)) for name, parameter in self.scenery.parameters.items()}
        return {name: rate for name, rate in rates.items() if rate is not None}

    def _ask_each(self, snapshot: Snapshot, before: bool = False) -> None:
        """Pass the snapshot to every observer; one `before` a step to those that require it."""
        assert self.context is not None
        for position, state in list(self.states.items()):
            observer, stepping = self.observers[position], step_observer(self.observers[position])
            if before and stepping is None:
                continue
            read = stepping.before if before and stepping is not None else observer.observe
            try:
                after, readings = read(self.context, state, snapshot)
            except Abandoned:
                raise
            except Exception as error:  # a mistake in an observer must not stop the training
                self._turn_off(position, error)
                continue
            self.states[position] = after
            self.desk.tell(self.step, snapshot.norm, observer.name, readings)

    def _turn_off(self, position: int, error: Exception) -> None:
        name = self.observers[position].name
        self.states.pop(position, None)
        self.off[name] = error.found if isinstance(error, Unavailable) else one_line(error)
        if not isinstance(error, Unavailable):
            self._crashed.add(position)
            warn(f"{name} is off: {self.off[name]}")


def _frame_of_step() -> FrameType | None:
    """The frame that runs the hooks of a step, and then the step."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return frame


def _is_running(frame: FrameType | None) -> bool:
    """Whether a frame is among those that led here; a step that raised is not."""
    above = inspect.currentframe()
    while above is not None and above is not frame:
        above = above.f_back
    return above is not None


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler has told a fused optimizer that it must not step."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _once_after(closure: Callable[..., Any], look: Callable[[], None]) -> Callable[..., Any]:
    """The closure, with a look after its first evaluation: there weights and gradients belong together."""
    pending = [look]

    @wraps(closure)
    def looking(*args: Any, **kwargs: Any) -> Any:
        loss = closure(*args, **kwargs)
        while pending:
            pending.pop()()
        return loss

    return looking
