"""A finished flow: where it ended, why, and everything recorded on the way."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from equipoise.data import Dataset, Provenance, rebuild
from equipoise.errors import EquipoiseError, InputError, StoreError, one_line
from equipoise.graph.chain import Layer
from equipoise.integrate.checkpoints import memories_of
from equipoise.integrate.goals import Goal
from equipoise.integrate.margins import Weights
from equipoise.integrate.problem import Problem, build_problem
from equipoise.losses import Loss
from equipoise.networks import mlp
from equipoise.observers import Memory
from equipoise.observers.activity import remembered_slides
from equipoise.observers.defect import accumulated
from equipoise.store import Record, Store

KIND = "flow"  # of a run folder, in its manifest


class Status(StrEnum):
    """How a flow ended. As text, it says what to do.

    >>> Status.stalled == "stalled"
    True
    >>> print(Status.step_limit)
    step_limit: the goal lies further; raise max_steps, or resume the run
    """

    reached = "reached"
    precision_floor = "precision_floor"
    stalled = "stalled"
    not_separable = "not_separable"
    step_limit = "step_limit"

    @property
    def remedy(self) -> str:
        """What it means, and what to do."""
        return _REMEDIES[self]

    def __str__(self) -> str:
        return f"{self.value}: {self.remedy}"


_REMEDIES = {
    Status.reached: "the goal was reached",
    Status.precision_floor: "the goal was reached, but the last margins differ by less than the precision resolves: "
    "trust weights, laws and spectra, but not which examples weigh; stop before the floor to see those",
    Status.stalled: "the loss stopped falling short of the goal; widen the network, remove contradictory examples, "
    "or try another seed",
    Status.not_separable: "no weights can fit these data; remove contradictory examples, or add an activation",
    Status.step_limit: "the goal lies further; raise max_steps, or resume the run",
}


@dataclass(frozen=True)
class Run:
    """The result of `eq.flow`. `model` is the trained copy; weights by parameter name, in the precision of the flow."""

    model: nn.Module
    initial: dict[str, Tensor]
    final: dict[str, Tensor]
    data: Dataset
    loss: Loss
    chain: tuple[Layer, ...] | None
    homogeneity: int | None
    status: Status
    log_loss: float
    growth: float
    log_time: float
    steps: int
    gradient_evaluations: float
    seconds: float
    records: list[Record]
    folder: Path | None = None
    saved: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)  # on the way, by the goal reached
    defects: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of each law, as T2.2 adds them up
    slid: dict[str, Tensor] = field(default_factory=dict, repr=False)  # by layer: example, neuron, first, last step
    example_weights: Tensor | None = field(default=None, repr=False)  # `w_i` of `R = Σ w_i ℓ_i`; all 1/n without
    reason: str | None = None  # what was found where a run stalled, or why no weights can fit
    missed: float = 0.0  # Σ ‖w₁ - w₀ - h J(w_mid)ᵀ f‖ over the steps: all that laws may drift by, twice, times ‖w‖

    def __repr__(self) -> str:
        where = "" if self.folder is None else f", folder={str(self.folder)!r}"
        ended = (
            f"log_loss={self.log_loss:.6g}, growth={self.growth:.4g}, steps={self.steps}, seconds={self.seconds:.3g}"
        )
        return f"Run(status={self.status.value!r}, {ended}, records={len(self.records)}{where})"

    def table(self) -> pd.DataFrame:
        """One tidy table: step, growth, log_loss, log_time, observer, place, quantity, value."""
        return pd.DataFrame(self.records, columns=list(Record._fields))

    def slides(self) -> pd.DataFrame:
        """Every pair of a neuron and an example that slid along its kink for three steps or more (T4.5).

        Columns: `layer`, `example`, `neuron` (of an image: channel and position, flat), `from_step` and `to_step` (the
        points between which it slid), `steps`, `from_growth`, `to_growth`, `growth` between them, and `ended`, whether
        it has left its kink since. Empty where `Activity` was not observed. A maximum slides where two entries of a
        window stay tied: `layer` is then its node, `neuron` the window.
        """
        at = {record.step: record.growth for record in self.records}
        rows = [
            (layer, example, neuron, first - 1, last, last - first + 1, at[first - 1], at[last], last < self.steps)
            for layer, spans in self.slid.items()
            for example, neuron, first, last in spans.tolist()
        ]
        names = ["layer", "example", "neuron", "from_step", "to_step", "steps", "from_growth", "to_growth", "ended"]
        table = pd.DataFrame(rows, columns=names)
        table.insert(8, "growth", table.to_growth - table.from_growth)
        return table

    def at(self, point: str | Goal) -> nn.Module:
        """A copy of the network where the run passed a saved point: to start another flow from, with any stepper.

        `point` is a goal of `save_at`, or its text; `"initial"` and `"final"` are there in every run. Raises
        `InputError` for a point that was not saved.
        """
        name = point if isinstance(point, str) else point.describe()
        found = {"initial": self.initial, "final": self.final, **self.saved}.get(name)
        if found is None:
            raise InputError(
                expected=f"a saved point among {', '.join(('initial', *self.saved, 'final'))}",
                found=repr(name),
                remedy="list the points you need in save_at= when the run is started",
            )
        model = copy.deepcopy(self.model)
        model.load_state_dict(found, strict=False)
        return model

    def last(self, observer: str, quantity: str, place: str = "") -> float | None:
        """The latest value of a quantity, or `None` if it was never recorded."""
        for record in reversed(self.records):
            if (record.observer, record.quantity, record.place) == (observer, quantity, place):
                return record.value
        return None

    def summary(self) -> dict[str, Any]:
        """What the command line prints as JSON, but for the certificate.

        `growth` is `log(‖w‖/‖w₀‖)`; drifts are `‖C - C₀‖_F/‖w‖²`; gradient evaluations count full passes over the data.
        """
        slides = self.slides()
        return {
            "status": self.status.value,
            "reason": self.reason,
            "log_loss": self.log_loss,
            "growth": self.growth,
            "log_time": self.log_time,
            "steps": self.steps,
            "gradient_evaluations": self.gradient_evaluations,
            "seconds": self.seconds,
            "missed": self.missed,
            "precision": str(next(iter(self.final.values())).dtype).removeprefix("torch."),
            "layers": [self._layer(layer) for layer in self.chain or ()],
            "laws": {
                f"worst_{kind}_relative_drift": self.last("drift", "relative_drift", f"worst {kind}")
                for kind in ("linear", "vertex")
            },
            "activity": {"layers": [self._activity(layer) for layer in self.chain or () if layer.kind == "relu"]},
            "slides": {"pairs": len(slides), "longest_growth": float(slides.growth.max()) if len(slides) else None},
            "margin": {
                name: self.last("margin", name)
                for name in ("minimum", "normalised", "support", "kkt_epsilon", "kkt_delta")
            },
        }

    def _layer(self, layer: Layer) -> dict[str, Any]:
        return {
            "name": layer.weight,
            "kind": layer.kind,
            "rank_one_residual": self.last("spectrum", "rank_one_residual", layer.weight),
            "alignment_next": self.last("alignment", "alignment_next", layer.weight),
        }

    def _activity(self, layer: Layer) -> dict[str, Any]:
        names = ("neurons", "stably_active", "stably_inactive", "sliding_pairs", "pattern_classes")
        counts = {name: self.last("activity", name, layer.weight) for name in names}
        return {"name": layer.weight} | {name: None if count is None else int(count) for name, count in counts.items()}

    @classmethod
    def of(cls, problem: Problem, weights: Weights, memories: Iterable[Memory], *, steps: int, **told: Any) -> "Run":
        """The run that brought a problem to these weights, and its observers to these memories."""
        memories = tuple(memories)
        slid = {place: spans for memory in memories for place, spans in remembered_slides(memory, steps).items()}
        defects = {name: total for memory in memories for name, total in accumulated(memory).items()}
        known = {name: getattr(problem, name) for name in ("initial", "data", "loss", "chain", "homogeneity")}
        known |= {"final": problem.layout.copies(weights), "steps": steps, "defects": defects, "slid": slid}
        if problem.example_weights is not None:
            known["example_weights"] = torch.tensor(problem.example_weights, dtype=torch.float64)
        return cls(model=problem.trained(weights), **known | told)

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module | None = None, data: Any = None) -> "Run":
        """A finished run from its folder.

        A model or data of one's own are not in the folder: pass them again. Raises `InputError` without them, or for a
        run that has not finished, and `StoreError` for a folder that is no run of `flow`, or damaged.
        """
        with Store.open(folder) as store:
            with manifest_of_flow(store):
                problem = stored_problem(store, model, data)
            result, last = _result(store), store.checkpoint()
            shares = store.manifest["arguments"].get("example_weights")  # as they were: a logarithm costs a digit
            known = {name: store.load_weights(name)[0] for name in ("final", *store.between())}
            records = [Record(*row) for row in store.table().itertuples(index=False)]
        final = known.pop("final")
        weights = problem.layout.flatten({name: final[name] for name in problem.layout.shapes})
        names = ("log_loss", "growth", "log_time", "steps", "gradient_evaluations", "seconds")
        return cls.of(
            problem,
            weights,
            () if last is None else memories_of(last),
            initial=problem.initial,
            status=Status(result["status"]),
            records=records,
            folder=Path(folder),
            reason=result.get("reason"),
            saved=known,
            example_weights=None if shares is None else torch.tensor(shares, dtype=torch.float64),
            missed=result.get("missed", 0.0),
            **{name: result[name] for name in names},
        )


def _result(store: Store) -> dict[str, Any]:
    result = store.result()
    if result is None:
        raise InputError(
            expected="a finished run",
            found=f"{store.folder} without result.json",
            remedy=f"type equipoise flow --resume {store.folder}",
        )
    return result


@contextmanager
def manifest_of_flow(store: Store) -> Iterator[None]:
    """Raises `StoreError` for the folder of anything but a flow, and where the manifest lacks what the block reads."""
    kind = store.manifest.get("kind")
    if kind != KIND:
        raise StoreError(
            expected=f"a run of eq.flow in {store.folder}",
            found="a watched training" if kind == "watch" else f"kind {kind!r}",
            remedy="pass the folder of a flow; equipoise.store.Store.open(folder).table() reads any",
        )
    try:
        yield
    except EquipoiseError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise StoreError(
            expected=f"the manifest of a flow in {store.folder}",
            found=one_line(error),
            remedy="restore manifest.json, or run again in another folder",
        ) from None


def stored_problem(store: Store, model: nn.Module | None, data: Any) -> Problem:
    """The problem of a run folder, from its initial weights; what is not in the folder must be passed."""
    manifest = store.manifest
    model = _recorded_network(manifest.get("network")) if model is None else copy.deepcopy(model)
    _set_weights(model, _initial_weights(store, model))
    given = data if data is not None else rebuild(Provenance.from_json(manifest["data"]))
    asked = manifest["arguments"]
    dtype = {"float32": torch.float32}.get(asked.get("dtype", ""), torch.float64)
    problem = build_problem(model, given, manifest["loss"], asked.get("example_weights"), dtype)
    if problem.data.provenance.sha256 != manifest["data"]["sha256"]:
        raise InputError(
            expected=f"the data of the run, SHA-256 {manifest['data']['sha256'][:12]}…",
            found=f"{problem.data.provenance.sha256[:12]}…",
            remedy="pass the data that the run was trained on",
        )
    return problem


def _initial_weights(store: Store, model: nn.Module) -> dict[str, Tensor]:
    """Those of the folder; where they are lost, those of the model if the manifest's hash says they are the same."""
    if not isinstance(model, nn.Module):
        raise InputError(expected="a model", found=type(model).__name__, remedy="pass model= as a torch.nn.Module")
    try:
        return store.load_weights("initial")[0]
    except StoreError:
        dtype = getattr(torch, store.manifest["arguments"]["dtype"])
        own = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
        if not store.wrote("initial", own):
            raise
        return own


def _set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a model the weights of the run, in their precision."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    stored = {name: tuple(weight.shape) for name, weight in weights.items()}
    if shapes != stored:
        differs = next(name for name in [*stored, *shapes] if shapes.get(name) != stored.get(name))
        raise InputError(
            expected=f"the model of the run, with {differs} of shape {stored.get(differs, 'none')}",
            found=f"{differs} of shape {shapes.get(differs, 'none')}",
            remedy="pass model= with the architecture that was trained",
        )
    model.to(next(iter(weights.values())).dtype)
    model.load_state_dict(weights, strict=False)


def _recorded_network(recipe: dict[str, Any] | None) -> nn.Module:
    if recipe is None:
        raise InputError(
            expected="the model of this run, which is not in its folder",
            found="none",
            remedy="pass model= with the architecture that was trained",
        )
    return mlp(**recipe)
