"""One optimizer under watch: its hooks, its steps, and the looks around some of them."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from equipoise.laws import Laws
from equipoise.laws.gauge import Dials, Taken
from equipoise.laws.predict import plain_steps
from equipoise.monitor.alarms import TrainingAlarm
from equipoise.monitor.crew import Abandoned, whole
from equipoise.monitor.meter import Cadence, Meter
from equipoise.monitor.scenery import Scenery
from equipoise.monitor.spectra import Follower, canonical
from equipoise.observers import Alignment, Memory, Observer, Reading, Scene, Snapshot, Unavailable


class Desk(Protocol):
    """Where readings go."""

    laws: Laws | None

    def tell(self, step: int, norm: float, observer: str, readings: list[Reading]) -> None:
        """Take what one observer read."""
        ...

    def close_look(self, step: int) -> None:
        """Pass on everything told since the last look."""
        ...


@dataclass
class Lane:
    """The looks at the parameters that one optimizer holds. `off` says which observers are off, and why."""

    optimizer: Optimizer
    scenery: Scenery
    observers: Sequence[Observer]
    cadence: Cadence
    full_every: int
    meter: Meter
    desk: Desk
    off: dict[str, str]
    earlier: frozenset[str] = frozenset()
    step: int = 0
    due: int = 1
    looks: int = 0
    abandoned: bool = False  # a look has failed, and there will be no others
    scene: Scene | None = None
    taken: Taken | None = None  # of the laws, just before the step that is being taken
    follower: Follower | None = None
    memories: dict[int, Memory] = field(default_factory=dict)  # of the observers that are on, by their position

    def hook(self) -> list[Any]:
        """Register with the optimizer; the handles take the hooks away again."""
        return [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]

    @property
    def held(self) -> frozenset[str]:
        """The names of the parameters that the optimizer holds."""
        own = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        return frozenset(name for name, parameter in self.scenery.parameters.items() if id(parameter) in own)

    @property
    def on(self) -> list[Observer]:
        """The observers that are not off."""
        return [self.observers[position] for position in self.memories]

    @property
    def _read_laws(self) -> bool:
        """Whether some observer will, so that what they have seen of the weights is not read again."""
        return any(getattr(observer, "reads_laws", False) for observer in self.on)

    # --- hooks ---

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.step += 1
        if self.abandoned or self.step < self.due or (self.scene is not None and not self.memories):
            return None
        if _skipped(optimizer):  # the gradient has overflowed, and this step will not be taken
            self.due = self.step + 1
            return None
        itself, *rest = args  # torch passes the optimizer among the arguments
        closure = kwargs.get("closure", rest[0] if rest else None)
        if closure is None:
            self._safely(self._look_before)
            return None
        looking = _once_after(closure, lambda: self._safely(self._look_before))  # gradients come with the closure
        return ((itself, looking), {}) if rest else (args, kwargs | {"closure": looking})

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.abandoned or self.step < self.due:
            return
        if self.memories:
            self._safely(self._look_after)
        if not self.abandoned:
            self._safely(self._decide)

    def _decide(self) -> None:
        self.due = self.scenery.crew.decided(self.cadence.following(self.step, self.meter))

    # --- looks ---

    def _safely(self, look: Callable[[], None]) -> None:
        """Whatever fails in a look must not stop the training: all observers are off then, and `off` says why."""
        try:
            look()
        except Exception as failure:
            self.abandoned, error = True, self.scenery.crew.abandon(failure)
            for position, observer in enumerate(self.observers):
                if observer.name not in self.off:
                    self._turn_off(position, error)

    @torch.no_grad()
    def _look_before(self) -> None:
        """What weights and gradients say together is taken while they do; it is told with the look after the step."""
        with self.meter.timed(setup=self.scene is None):
            if self.scene is None:
                self.prepare()
            self.taken = None
            gradients = self.scenery.gradients(getattr(self.optimizer, "grad_scale", None))
            if gradients is None:
                return
            weights = self.scenery.weights()
            dials = self._dials(weights, gradients)
            if dials is not None and self._read_laws:
                self.taken = dials.taken
            if any(hasattr(observer, "before") for observer in self.on):
                self._ask("before", self._snapshot(weights, dials, gradients=whole(gradients), rates=self._rates()))

    @torch.no_grad()
    def _look_after(self, final: bool = False) -> None:
        setup = self.looks == 0 or final
        with self.meter.timed(setup):
            self.looks += 1
            weights, before = self.scenery.weights(), None if final else self.taken  # a last step may have failed
            self.taken = None
            dials = self._dials(weights, before=before)
            rates = {} if before is None else self._rates()
            thorough = final or self.looks == 1 or self.looks % self.full_every == 0
            self._ask("observe", self._snapshot(weights, dials, rates=rates, thorough=thorough, final=final))
            self.desk.close_look(self.step)
        if not setup:
            self.meter.close_look()

    @torch.no_grad()
    def prepare(self) -> None:
        """Read the model, and let every observer see where it starts; those that cannot work are off from here on."""
        scenery = self.scenery
        self.scene = scene = scenery.scene(self.held, self.cadence.every, self.earlier)
        self.desk.laws = scenery.laws
        for position, observer in enumerate(self.observers):
            try:
                self.memories[position] = observer.init(scene)
            except Abandoned:
                raise
            except Exception as error:  # a mistake in an observer must not stop the training
                self._turn_off(position, error)
        on = self.on
        asked = [unfolding for unfolding in scene.matrices if any(not isinstance(each, Alignment) for each in on)]
        if any(isinstance(observer, Alignment) for observer in on):
            asked += [each for pair in scene.consecutive for each in pair]
        weights = scenery.weights()
        unfoldings = dict.fromkeys(canonical(unfolding, weights) for unfolding in asked)
        r = max((getattr(observer, "r", 1) for observer in on), default=1)
        self.follower = Follower(tuple(unfoldings), r, scenery.crew)

    def finish(self) -> None:
        """A last, thorough look at where the training ended."""
        if self.memories:
            self._safely(partial(self._look_after, final=True))

    def _dials(
        self, weights: dict[str, Tensor], gradients: dict[str, Tensor] | None = None, before: Taken | None = None
    ) -> Dials | None:
        gauge = self.scene.gauge if self.scene else None
        return None if gauge is None else gauge.at(weights, gradients, before)

    def _snapshot(self, weights: dict[str, Tensor], dials: Dials | None, **more: Any) -> Snapshot:
        assert self.follower is not None
        scenery = self.scenery
        squares = scenery.crew.squares(weights, dials.squares if dials and self._read_laws else {})
        return Snapshot(
            step=self.step,
            clock=float(self.step),
            parameters=whole(weights),
            norm=math.fsum(squares.values()) ** 0.5,
            spectra=self.follower.look(weights, squares),
            dials=dials,
            precision=None if scenery.example is None else scenery.example.precision,
            **more,
        )

    def _rates(self) -> dict[str, tuple[float, float]]:
        """Of a step that is a plain one; a weight of no optimizer stays."""
        plain = plain_steps(self.optimizer)
        rates = {name: plain.get(id(parameter), (0.0, 0.0)) for name, parameter in self.scenery.parameters.items()}
        return {name: rate for name, rate in rates.items() if rate is not None}

    def _ask(self, method: str, snapshot: Snapshot) -> None:
        assert self.scene is not None
        for position, memory in list(self.memories.items()):
            observer = self.observers[position]
            if not hasattr(observer, method):
                continue
            try:
                after, readings = getattr(observer, method)(self.scene, memory, snapshot)
            except Abandoned:
                raise
            except Exception as error:  # a mistake in an observer must not stop the training
                self._turn_off(position, error)
                continue
            self.memories[position] = after
            self.desk.tell(self.step, snapshot.norm, observer.name, readings)

    def _turn_off(self, position: int, error: Exception) -> None:
        name = self.observers[position].name
        self.memories.pop(position, None)
        self.off[name] = error.found if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
        if not isinstance(error, Unavailable):
            warnings.warn(f"{name} is off: {self.off[name]}", TrainingAlarm, stacklevel=2)


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler has told a fused optimizer that it must not step."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _once_after(closure: Callable[..., Any], look: Callable[[], None]) -> Callable[..., Any]:
    """The closure, with a look after its first evaluation: there weights and gradients belong together."""
    pending = [look]

    def looking(*args: Any, **kwargs: Any) -> Any:
        loss = closure(*args, **kwargs)
        while pending:
            pending.pop()()
        return loss

    return looking
