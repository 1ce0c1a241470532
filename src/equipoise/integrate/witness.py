"""What the observers of a flow are told, once and at every step, and what they say of it."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from torch import Tensor

from equipoise.integrate.checkpoints import Progress
from equipoise.integrate.objective import Objective, Tangent
from equipoise.integrate.problem import Problem
from equipoise.integrate.steppers import State, Step
from equipoise.integrate.steppers.state import velocity
from equipoise.laws.gauge import Gauge
from equipoise.losses import Exponential
from equipoise.measure.spectra import ExactSpectra
from equipoise.measure.unfolding import Unfolding
from equipoise.observers import Foresight, Memory, Observer, Scene, Snapshot
from equipoise.store import Record


@dataclass(frozen=True)
class Witness:
    """The observers of a flow, and the scene that they are shown."""

    problem: Problem
    observers: tuple[Observer, ...]

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
            examples=problem.margins.count,
            homogeneity=problem.homogeneity,
            loss=problem.loss.name,
        )

    def memories(self) -> tuple[Memory, ...]:
        """Before the first look. Raises `Unavailable` for an observer that cannot work here."""
        return tuple(observer.init(self.scene) for observer in self.observers)

    def look(self, progress: Progress, step: Step | None = None, *, final: bool = False) -> Progress:
        """With what the observers, and the step that led here, say of this point, and remember."""
        snapshot = self._snapshot(progress, final)
        log_loss = self.problem.log_loss(progress.state.evaluation)
        moment = (progress.step, snapshot.clock, log_loss, progress.state.log_time)
        memories, records = [], []
        for observer, memory in zip(self.observers, progress.memories, strict=True):
            memory, readings = observer.observe(self.scene, memory, snapshot)
            memories.append(memory)
            records += [Record(*moment, observer.name, *reading) for reading in readings]
        records += [Record(*moment, "flow", "", name, value) for name, value in _told(step, progress.state)]
        progress.records.extend(records)
        return replace(progress, memories=tuple(memories))

    def foresee(self, progress: Progress, step: Step) -> tuple[Memory, ...]:
        """The observers' memories after a look at the gradient of the discrete step to come, where it is one."""
        if step.update is None:
            return progress.memories
        update, views = step.update, self.problem.layout.views
        rate = (update.rate, update.decay / update.rate)
        snapshot = replace(
            self._snapshot(progress, final=False),
            gradients=views(update.gradient),
            rates=dict.fromkeys(self.problem.layout.shapes, rate),
        )
        return tuple(
            observer.before(self.scene, memory, snapshot)[0] if isinstance(observer, Foresight) else memory
            for observer, memory in zip(self.observers, progress.memories, strict=True)
        )

    def _snapshot(self, progress: Progress, final: bool) -> Snapshot:
        state, problem = progress.state, self.problem
        parameters = problem.layout.views(state.weights)
        return Snapshot(
            step=progress.step,
            clock=problem.growth(state.weights),
            log_loss=problem.log_loss(state.evaluation),
            parameters=parameters,
            spectra=ExactSpectra(parameters),
            norm=float(state.weights.norm()),
            margins=state.evaluation.margins,
            preactivations=problem.by_neuron(state.evaluation.preactivations),
            slopes=tuple(state.slopes[k] for k in problem.rectifiers),
            bent=problem.bent(state.slopes),
            linearisation=JacobianHere(problem, state),
            final=final,
        )


def _told(step: Step | None, state: State) -> list[tuple[str, float]]:
    """What a step says of itself."""
    if step is None:
        return []
    told = {"step_size": step.size, "error": step.error, "active": step.active, "rejected": step.rejected}
    told |= {"temperature": state.temperature, "mismatch": step.mismatch}
    told |= {} if math.isnan(step.decrease) else {"decrease": step.decrease}
    return [(name, float(value)) for name, value in told.items()]


@dataclass(frozen=True)
class JacobianHere:
    """The Jacobian of some of the margins at a state, flat; formed when an observer asks."""

    problem: Problem
    state: State
    rows: Tensor | None = None  # None: all

    def restricted(self, rows: Tensor) -> "JacobianHere":
        """The same of some of these margins."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    @cached_property
    def _tangent(self) -> Tangent:
        plain, slopes = Objective(self.problem.margins, Exponential()), self.state.slopes
        if self.rows is None:
            return plain.linearise(self.state.weights, slopes)
        examples = plain.examples(self.rows)
        return plain.restricted(self.rows).linearise(self.state.weights, tuple(slope[examples] for slope in slopes))

    def kernel(self) -> Tensor:
        """`J Jᵀ`."""
        return self._tangent.kernel()

    def pullback(self, forces: Tensor) -> Tensor:
        """`Jᵀ p`."""
        return self._tangent.pullback(self._tangent.forces(forces))

    def weights(self) -> Tensor:
        """`w`, flat."""
        return self.state.weights

    def gradients(self) -> dict[str, Tensor]:
        """`∇ log R`, by parameter."""
        return self.problem.layout.views(-velocity(self.problem.objective, self.state))
