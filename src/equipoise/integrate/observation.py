"""The observers of a flow: their context, a snapshot of every step, and the records that they make."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, takewhile

from torch import Tensor

from equipoise.errors import StoreError
from equipoise.graph.chain import Layer
from equipoise.graph.evaluate import activations
from equipoise.integrate.objective import Objective, PotentialLinearization
from equipoise.integrate.problem import Problem
from equipoise.integrate.state import Progress, State, Step, Update, velocity
from equipoise.losses import Exponential
from equipoise.measure.spectrum import ExactSpectra
from equipoise.measure.unfolding import Unfolding
from equipoise.observers import (
    Observer,
    ObserverResult,
    Probe,
    Requirements,
    Snapshot,
    StateLike,
    TrainingContext,
    requirements,
    step_observer,
)
from equipoise.observers.state import from_tensors
from equipoise.store import Record, ResumePoint


@dataclass(frozen=True)
class Observation:
    """The observers of a flow on its problem."""

    problem: Problem
    observers: tuple[Observer, ...]

    @cached_property
    def context(self) -> TrainingContext:
        """The parts of the training that stay the same."""
        problem = self.problem
        return TrainingContext(
            initial=problem.initial,
            matrices=tuple(Unfolding(name) for name, weight in problem.initial.items() if weight.ndim > 1),
            consecutive=tuple(
                (Unfolding(below.weight, below.bias), Unfolding(above.weight, reads=True))
                for below, above in pairwise(problem.chain or ())
            ),
            laws=problem.laws,
            plan=problem.laws.plan,
            probe=self.probe,
            kinks=problem.kinks.names,
            examples=problem.margins.count,
            homogeneity=problem.homogeneity,
            loss=problem.loss.name,
        )

    @cached_property
    def requires(self) -> Requirements:
        """The union of the observers' requirements."""
        return Requirements.of(self.observers)

    def probe(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Probe:
        """The network at these parameters on other inputs."""
        kinks, example = self.problem.kinks, next(iter(parameters.values()))
        nodes = [kink.node for kink in kinks.nodes]
        seen = activations(self.problem.captured, nodes, parameters, inputs.to(example))
        assert isinstance(seen.output, Tensor)
        by_neuron = kinks.by_neuron([seen.entering[node] for node in nodes])
        return Probe(seen.output, dict(zip(kinks.names, by_neuron, strict=True)), seen.features)

    def start(self) -> tuple[StateLike, ...]:
        """The states before the first snapshot. Raises `Unavailable` for an observer that cannot work here."""
        for observer in self.observers:
            self.context.check(requirements(observer))
        return tuple(observer.init(self.context) for observer in self.observers)

    def observe(self, progress: Progress, step: Step | None = None, *, final: bool = False) -> Progress:
        """The progress with the records and states of this point, and the diagnostics of the step that led to it."""
        snapshot = self._snapshot(progress, None if step is None else step.update, final=final)
        log_loss = self.problem.log_loss(progress.state.evaluation)
        moment = (progress.step, snapshot.clock, log_loss, progress.state.time.log)
        observed, records = [], []
        for observer, before in zip(self.observers, progress.observed, strict=True):
            after, readings = observer.observe(self.context, before, snapshot)
            observed.append(after)
            records += [Record(*moment, observer.name, *reading) for reading in readings]
        records += [Record(*moment, "flow", "", name, value) for name, value in _diagnostics(step, progress.state)]
        progress.records.extend(records)
        return replace(progress, observed=tuple(observed), before=None)

    def before_step(self, progress: Progress, step: Step) -> Progress:
        """The progress with what the observers need of the gradient of a discrete step, before it is taken."""
        if step.update is None:
            return progress
        views, requires = self.problem.layout.views, self.requires
        parameters, gradients = views(progress.state.weights), views(step.update.gradient)
        readings = self.context.require("plan")(parameters, gradients) if requires.step_changes else None
        observed = progress.observed
        if requires.before_step:
            snapshot = replace(self._snapshot(progress, step.update), gradients=gradients)
            observed = tuple(
                before if stepping is None else stepping.before(self.context, before, snapshot)[0]
                for before, stepping in zip(observed, map(step_observer, self.observers), strict=True)
            )
        return replace(progress, observed=observed, before=readings)

    def _snapshot(self, progress: Progress, update: Update | None, *, final: bool = False) -> Snapshot:
        state, problem, requires = progress.state, self.problem, self.requires
        parameters, jacobian = problem.layout.views(state.weights), MarginJacobian(problem, state)
        gradients = jacobian.gradients() if requires.gradients else None
        laws = None
        if requires.laws or requires.whole_laws:
            laws = self.context.require("plan")(parameters, gradients, before=progress.before)
        rate = None if update is None else (update.rate, update.decay / update.rate)
        return Snapshot(
            step=progress.step,
            clock=problem.growth(state.weights),
            log_loss=problem.log_loss(state.evaluation),
            parameters=parameters,
            spectra=ExactSpectra(parameters),
            norm=float(state.weights.norm()),
            gradients=gradients,
            laws=laws,
            rates={} if rate is None else dict.fromkeys(problem.layout.shapes, rate),
            margins=state.evaluation.margins,
            preactivations=problem.kinks.by_neuron(state.evaluation.preactivations),
            slopes=tuple(state.slopes[k] for k in problem.kinks.rectifiers),
            bent=problem.kinks.inside(state.slopes),
            linearization=jacobian,
            final=final,
        )


def _diagnostics(step: Step | None, state: State) -> list[tuple[str, float]]:
    """Diagnostics of a step."""
    if step is None:
        return []
    found = {"step_size": step.size, "error": step.error, "active": step.active, "rejected": step.rejected}
    found |= {"temperature": state.temperature, "mismatch": step.mismatch, "time_error": state.time.relative_error}
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


def observed_in(saved: ResumePoint, started: Sequence[StateLike]) -> tuple[StateLike, ...]:
    """The states of the observers in a checkpoint, of the kinds with which they started.

    Raises:
        StoreError: where a tensor of a state is missing.
    """
    try:
        return tuple(
            from_tensors(type(state), _below(saved, f"observers/{index}")) for index, state in enumerate(started)
        )
    except KeyError as error:
        raise StoreError(
            expected=f"the state of every observer in the checkpoint of step {saved.step}",
            found=f"none of {error}",
            remedy="start the run again, in another folder",
        ) from None


def result_in(saved: ResumePoint) -> ObserverResult:
    """The published results of the observers of a run that has ended."""
    return from_tensors(ObserverResult, _below(saved, "result"))


def _below(saved: ResumePoint, prefix: str) -> dict[str, Tensor]:
    whole = f"{prefix}/"
    return {name.removeprefix(whole): tensor for name, tensor in saved.tensors.items() if name.startswith(whole)}
