"""The result of a flow: weights, status, and all that was recorded on the way."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from equipoise.data import Dataset
from equipoise.errors import InputError
from equipoise.graph.capture import Captured, capture
from equipoise.graph.chain import Layer, read_chain
from equipoise.graph.degrees import homogeneity
from equipoise.graph.evaluate import rectified
from equipoise.integrate.goals import Goal
from equipoise.integrate.manifest import StoredInputs, flow_manifest
from equipoise.integrate.objective import positions_in_data
from equipoise.integrate.observation import observed_figures, result_in
from equipoise.losses import Loss
from equipoise.notebook import notebook
from equipoise.observers import ObserverResult
from equipoise.sinks.curves import OF_RUN, curves_figure
from equipoise.store import Json, Record, Store, latest, require_latest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Status(StrEnum):
    """The status of a finished flow; as text, with its remedy.

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
    overflow = "overflow"

    @property
    def remedy(self) -> str:
        """Its meaning and its remedy."""
        return _REMEDIES[self]

    @property
    def ending(self) -> str:
        """The end of the flow as a clause.

        >>> Status.step_limit.ending
        'the flow came to its limit of steps'
        """
        return _ENDINGS[self]

    def __str__(self) -> str:
        return f"{self.value}: {self.remedy}"


_ENDINGS = {
    Status.reached: "the flow reached its goal",
    Status.precision_floor: "the flow reached its goal, at the limit of what the precision resolves",
    Status.stalled: "the flow stalled",
    Status.not_separable: "no weights can fit the data",
    Status.step_limit: "the flow came to its limit of steps",
    Status.overflow: "the flow left the range of its precision",
}

_REMEDIES = {
    Status.reached: "the goal was reached",
    Status.precision_floor: "the goal was reached, but the last margins differ by less than the precision resolves: "
    "trust weights, laws and spectra, but not which examples weigh; stop before the floor to see those",
    Status.stalled: "the loss stopped falling short of the goal; widen the network, remove contradictory examples, "
    "or try another seed",
    Status.not_separable: "no weights can fit these data; remove contradictory examples, or add an activation",
    Status.step_limit: "the goal lies further; raise max_steps, or resume the run",
    Status.overflow: "squares of the gradients would overflow; all before is right: choose a goal that lies nearer",
}


@dataclass(frozen=True)
class Run:
    """The result of `eq.flow`. `model` is the trained copy; weights by parameter name, in the precision of the flow."""

    model: nn.Module
    initial: dict[str, Tensor]
    final: dict[str, Tensor]
    data: Dataset
    loss: Loss
    status: Status
    log_loss: float
    growth: float
    log_time: float  # log t of dw/dt = -∇R
    steps: int
    gradient_evaluations: float
    seconds: float
    records: list[Record]
    folder: Path | None = None
    saved: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)  # on the way, by the goal reached
    defects: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of each law, as T2.2 adds them up
    slid: dict[str, Tensor] = field(default_factory=dict, repr=False)  # by layer: example, neuron, first, last step
    example_weights: Tensor | None = field(default=None, repr=False)  # `w_i` of `R = Σ w_i ℓ_i`; all 1/n without
    time_error: float = math.nan  # estimated error of t, relative to it; 0 for gradient descent, whose t is Σ η
    reason: str | None = None  # what was found where a run stalled, or why no weights can fit
    missed: float = 0.0  # Σ ‖w₁ - w₀ - h J(w_mid)ᵀ f‖ over the steps: laws drift by at most twice that, times ‖w‖
    captured: Captured | None = field(default=None, repr=False, compare=False)  # the graph, where it was read already

    def __repr__(self) -> str:
        where = "" if self.folder is None else f", folder={str(self.folder)!r}"
        ended = (
            f"log_loss={self.log_loss:.6g}, growth={self.growth:.4g}, steps={self.steps}, seconds={self.seconds:.3g}"
        )
        return f"Run(status={self.status.value!r}, {ended}, records={len(self.records)}{where})"

    def _repr_html_(self) -> str:
        """The figures, and the curves as a small picture, for a notebook."""
        return notebook(repr(self), None if self.table().empty or not find_spec("matplotlib") else self.plot())

    def plot(self, *quantities: str) -> "Figure":
        """A figure of matplotlib with one panel for each quantity against growth, a curve a place.

        Args:
            quantities: by default log-loss, distance to rank one, misalignment and drift, as far as recorded.

        Returns:
            The figure.

        Raises:
            InputError: for a quantity that was not recorded, naming those that were; and without matplotlib.
        """
        return curves_figure(self.table(), quantities, OF_RUN)

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

        `point` is a goal of `save_at`, or its text; `"initial"` and `"final"` are there in every run.

        Raises:
            InputError: for a point that was not saved.
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
        """The latest value of a quantity.

        Args:
            observer: its name, as in the table.
            quantity: that it records.
            place: a parameter, a layer or a law; empty for the whole network.

        Returns:
            The value; None in a run without records.

        Raises:
            InputError: for a name that was not recorded, with those that were.
        """
        return require_latest(self.records, observer, quantity, place)

    @cached_property
    def _graph(self) -> Captured:
        """The graph of the network: exported when it is first needed, for a run that was loaded."""
        if self.captured is not None:
            return self.captured
        example = self.data.X[:2].to(next(self.model.parameters()))
        return rectified(capture(self.model, example), self.model, example)

    @property
    def chain(self) -> tuple[Layer, ...] | None:
        """The layers of a feedforward chain; None for any other network."""
        return read_chain(self._graph)

    @property
    def homogeneity(self) -> int | None:
        """`L` with `f(x; aw) = a^L f(x; w)`, or None for an operation, a bias or a skip without a degree."""
        return homogeneity(self._graph).degree

    def summary(self) -> Json:
        """The figures of the run that the command line prints as JSON, without the certificate.

        `growth` is `log(‖w‖/‖w₀‖)`; `time_error` is the estimated error of `t = exp(log_time)` over `t`; drifts are
        `‖C - C₀‖_F/‖w‖²`; gradient evaluations count full passes over the data.
        """
        slides = self.slides()
        return {
            "status": self.status.value,
            "reason": self.reason,
            "log_loss": self.log_loss,
            "growth": self.growth,
            "log_time": self.log_time,
            "time_error": None if math.isnan(self.time_error) else self.time_error,
            "steps": self.steps,
            "gradient_evaluations": self.gradient_evaluations,
            "seconds": self.seconds,
            "missed": self.missed,
            "precision": str(next(iter(self.final.values())).dtype).removeprefix("torch."),
            "slides": {"pairs": len(slides), "longest_growth": float(slides.growth.max()) if len(slides) else None},
            **observed_figures(partial(latest, self.records), self.chain or ()),
        }

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module | None = None, data: object = None) -> "Run":
        """Read a finished run from its folder; the network is not exported before its graph is needed.

        Args:
            folder: of a run that `flow(out=...)` finished.
            model: for a run on a model of your own, its architecture; the weights are those of the run.
            data: for a run on data of your own, the same examples.

        Returns:
            The run, as `flow` returned it.

        Raises:
            InputError: without a model or data that are not in the folder, for others, and for an unfinished run.
            StoreError: for a folder that is no run of `flow`, or damaged.
        """
        with Store.open(folder) as store:
            with flow_manifest(store):
                given = StoredInputs.read(store, model, data)
            result, last = _result(store), store.checkpoint()
            known = {name: store.load_weights(name)[0] for name in ("final", *store.between())}
            records = [Record(*row) for row in store.table().itertuples(index=False)]
        trained = given.trained(known.pop("final"))
        published = ObserverResult() if last is None else result_in(last)
        shares = None if given.example_weights is None else torch.tensor(given.example_weights, dtype=torch.float64)
        names = ("log_loss", "growth", "log_time", "steps", "gradient_evaluations", "seconds")
        return cls(
            model=trained,
            initial=_weights(given.model),
            final=_weights(trained),
            data=given.data,
            loss=given.loss,
            status=Status(result["status"]),
            records=records,
            folder=Path(folder),
            reason=result.get("reason"),
            saved=known,
            defects=dict(published.predicted_changes),
            slid=slides_in_data(published.spans(result["steps"]), shares),
            example_weights=shares,
            missed=result.get("missed", 0.0),
            time_error=math.nan if (error := result.get("time_error")) is None else error,
            **{name: result[name] for name in names},
        )


def slides_in_data(spans: Mapping[str, Tensor], shares: Tensor | None) -> dict[str, Tensor]:
    """Slides by layer whose examples are counted in the data set, from those of the examples that weigh anything."""
    return {
        layer: torch.cat([positions_in_data(slides[:, :1], shares), slides[:, 1:]], 1)
        for layer, slides in spans.items()
    }


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _result(store: Store) -> Json:
    result = store.result()
    if result is None:
        raise InputError(
            expected="a finished run",
            found=f"{store.folder} without result.json",
            remedy=f"type equipoise flow --resume {store.folder}",
        )
    return result
