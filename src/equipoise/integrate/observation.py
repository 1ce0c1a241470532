"""The observers of a flow: their scene, a snapshot of every step, and the records that they make."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, takewhile
from typing import NamedTuple

from torch import Tensor

from equipoise.graph.chain import Layer
from equipoise.graph.evaluate import recorded
from equipoise.integrate.objective import Objective, PotentialLinearization
from equipoise.integrate.problem import Problem
from equipoise.integrate.state import Progress, State, Step, velocity
from equipoise.laws.gauge import Gauge
from equipoise.losses import Exponential
from equipoise.measure.spectra import ExactSpectra
from equipoise.measure.unfolding import Unfolding
from equipoise.observers import Foresight, Memory, Observer, Probe, Scene, Snapshot
from equipoise.observers.activity import remembered_slides
from equipoise.observers.defect import accumulated as accumulated_defects
from equipoise.store import Record, ResumePoint


@dataclass(frozen=True)
class Observation:
    """The observers of a flow on its problem."""

    problem: Problem
    observers: tuple[Observer, ...]

    @cached_property
    def scene(self) -> Scene:
        """The parts of the training that stay the same."""
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
            probe=self.probe,
            kinks=problem.kinks.names,
            examples=problem.margins.count,
            homogeneity=problem.homogeneity,
            loss=problem.loss.name,
        )

    def probe(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Probe:
        """The network at these parameters on other inputs."""
        kinks, example = self.problem.kinks, next(iter(parameters.values()))
        output, seen = recorded(self.problem.captured, kinks.nodes, parameters, inputs.to(example))
        return Probe(output, dict(zip(kinks.names, kinks.by_neuron(seen), strict=True)))

    def memories(self) -> tuple[Memory, ...]:
        """The memories before the first snapshot. Raises `Unavailable` for an observer that cannot work here."""
        return tuple(observer.init(self.scene) for observer in self.observers)

    def observe(self, progress: Progress, step: Step | None = None, *, final: bool = False) -> Progress:
        """The progress with the records and memories of this point, and the diagnostics of the step that led to it."""
        snapshot = self._snapshot(progress, final)
        log_loss = self.problem.log_loss(progress.state.evaluation)
        moment = (progress.step, snapshot.clock, log_loss, progress.state.log_time)
        memories, records = [], []
        for observer, memory in zip(self.observers, progress.memories, strict=True):
            memory, readings = observer.observe(self.scene, memory, snapshot)
            memories.append(memory)
            records += [Record(*moment, observer.name, *reading) for reading in readings]
        records += [Record(*moment, "flow", "", name, value) for name, value in _diagnostics(step, progress.state)]
        progress.records.extend(records)
        return replace(progress, memories=tuple(memories))

    def before_step(self, progress: Progress, step: Step) -> tuple[Memory, ...]:
        """The memories after a snapshot with the gradient of a discrete step, before it is taken."""
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
            preactivations=problem.kinks.by_neuron(state.evaluation.preactivations),
            slopes=tuple(state.slopes[k] for k in problem.kinks.rectifiers),
            bent=problem.kinks.inside(state.slopes),
            linearisation=MarginJacobian(problem, state),
            final=final,
        )


def _diagnostics(step: Step | None, state: State) -> list[tuple[str, float]]:
    """Diagnostics of a step."""
    if step is None:
        return []
    found = {"step_size": step.size, "error": step.error, "active": step.active, "rejected": step.rejected}
    found |= {"temperature": state.temperature, "mismatch": step.mismatch}
    found |= {} if math.isnan(step.decrease) else {"decrease": step.decrease}
    return [(name, float(value)) for name, value in found.items()]


@dataclass(frozen=True)
class MarginJacobian:
    """The Jacobian of some of the margins at a state, flat; formed when it is first needed."""

    problem: Problem
    state: State
    rows: Tensor | None = None  # None: all

    def restricted(self, rows: Tensor) -> "MarginJacobian":
        """The Jacobian of some of these margins."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    @cached_property
    def _linearization(self) -> PotentialLinearization:
        plain, slopes = Objective(self.problem.margins, Exponential()), self.state.slopes
        if self.rows is None:
            return plain.linearize(self.state.weights, slopes)
        examples = plain.examples(self.rows)
        return plain.restricted(self.rows).linearize(self.state.weights, tuple(slope[examples] for slope in slopes))

    def kernel(self) -> Tensor:
        """`J Jᵀ`."""
        return self._linearization.kernel()

    def vjp(self, cotangents: Tensor) -> Tensor:
        """`Jᵀ p`."""
        return self._linearization.vjp(self._linearization.cotangents(cotangents))

    def weights(self) -> Tensor:
        """`w`, flat."""
        return self.state.weights

    def gradients(self) -> dict[str, Tensor]:
        """`∇ log R`, by parameter."""
        return self.problem.layout.views(-velocity(self.problem.objective, self.state))


# ---- what observers leave to a run ----


class Accumulated(NamedTuple):
    """Results that observers accumulate over a run."""

    defects: dict[str, Tensor]  # of each law, as T2.2 adds them up
    slid: dict[str, Tensor]  # by layer: example, neuron, first, last step


def accumulated(memories: Iterable[Memory], steps: int) -> Accumulated:
    """The accumulated results in these memories, at the end of a run of `steps` steps."""
    memories = tuple(memories)
    return Accumulated(
        defects={name: total for memory in memories for name, total in accumulated_defects(memory).items()},
        slid={place: spans for memory in memories for place, spans in remembered_slides(memory, steps).items()},
    )


def observed_figures(last: Callable[[str, str, str], float | None], chain: Sequence[Layer]) -> dict[str, object]:
    """The latest figures of the observers, for the summary of a run.

    Args:
        last: the latest value of an observer's quantity at a place.
        chain: the layers of the network; empty where it is no chain.
    """
    margin = ("minimum", "normalised", "support", "kkt_epsilon", "kkt_delta")
    laws = ("linear", "vertex")
    return {
        "layers": [_layer(last, layer) for layer in chain],
        "laws": {f"worst_{kind}_relative_drift": last("drift", "relative_drift", f"worst {kind}") for kind in laws},
        "activity": {"layers": [_activity(last, layer) for layer in chain if layer.kind == "relu"]},
        "margin": {name: last("margin", name, "") for name in margin},
    }


def _layer(last: Callable[[str, str, str], float | None], layer: Layer) -> dict[str, object]:
    return {
        "name": layer.weight,
        "kind": layer.kind,
        "rank_one_residual": last("spectrum", "rank_one_residual", layer.weight),
        "alignment_next": last("alignment", "alignment_next", layer.weight),
    }


def _activity(last: Callable[[str, str, str], float | None], layer: Layer) -> dict[str, object]:
    names = ("neurons", "stably_active", "stably_inactive", "sliding_pairs", "pattern_classes")
    counts = {name: last("activity", name, layer.weight) for name in names}
    return {"name": layer.weight, **{name: None if count is None else int(count) for name, count in counts.items()}}


def tail_residual(chain: Sequence[Layer] | None, progress: Progress) -> float | None:
    """The largest rank-one residual on record among the linear layers at this step."""
    tail = {layer.weight for layer in chain or () if layer.kind == "linear"}
    now = takewhile(lambda record: record.step == progress.step, reversed(progress.records))
    seen = [record.value for record in now if record.quantity == "rank_one_residual" and record.place in tail]
    return max(seen, default=None)


def memory_of(saved: ResumePoint, index: int) -> Memory:
    """The memory of the observer of that index."""
    prefix = f"memory/{index}/"
    return {name.removeprefix(prefix): tensor for name, tensor in saved.tensors.items() if name.startswith(prefix)}


def memories_of(saved: ResumePoint) -> tuple[Memory, ...]:
    """The memories of the observers that have any."""
    indices = {int(name.split("/")[1]) for name in saved.tensors if name.startswith("memory/")}
    return tuple(memory_of(saved, index) for index in sorted(indices))
