"""`eq.compress`: fewer weights with the same answers on the data, and the proof (docs/theory.md, T10)."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from equipoise.arguments import checked, checked_except
from equipoise.compression import exporting
from equipoise.compression.costs import CostKind, seconds
from equipoise.compression.data import DataBatches, Inputs
from equipoise.compression.layers import parameter_count
from equipoise.compression.planning import Move, Plan, PlanSettings, checked_tolerance, labelled, require_floating
from equipoise.compression.verification import (
    Agreement,
    agreement,
    exactness_radius,
    path_metric_bound,
    widened,
)
from equipoise.errors import InputError, StoreError
from equipoise.graph.capture import capture
from equipoise.modes import default_modes

Data = tuple[Inputs, Tensor | None]


@checked_except("data", "tolerance")
@default_modes()
def plan(
    model: nn.Module,
    data: Data,
    tolerance: float = 0.0,
    *,
    keep_predictions: bool = True,
    cost: CostKind = "parameters",
    batch_size: int = 1024,
) -> Plan:
    """Find the moves that `compress` would make, without making them.

    Args:
        model: as for `compress`.
        data: likewise.
        tolerance: likewise.
        keep_predictions: likewise.
        cost: likewise.
        batch_size: likewise.

    Returns:
        A plan: `plan.moves` lists it, `plan.without(2, 3)` makes it again with moves vetoed, and
        `apply(plan, model)` gives what `compress` gives.

    Raises:
        InputError: as `compress`.

    >>> model = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 1))
    >>> [move.kind for move in plan(model, (torch.randn(16, 2), None)).moves]
    ['collapse']
    """
    require_floating(model)
    inputs, labels = labelled(data)
    settings = PlanSettings(checked_tolerance(tolerance), keep_predictions, cost)
    return Plan.of(model, DataBatches.of(inputs, batch_size), labels, settings)


@checked
@default_modes()
def apply(plan: Plan, model: nn.Module, holdout: Data | None = None) -> "Compressed":
    """Make the moves of a plan on a copy of the model that it was made for.

    Args:
        plan: from `plan`.
        model: the model that it was made for.
        holdout: examples on which the two models are compared besides.

    Returns:
        As `compress`.

    Raises:
        InputError: for another model.
    """
    smaller = plan.smaller(model)
    before, after = exporting.evaluating(model), exporting.evaluating(smaller)
    kept = agreement(before, after, plan.examples, plan.labels)
    held = None
    if holdout is not None:
        inputs, labels = labelled(holdout)
        held = agreement(before, after, DataBatches.of(inputs, plan.examples.batch_size), labels)
    return Compressed(smaller, model, plan, kept, held)


@checked_except("data", "tolerance")
@default_modes()
def compress(
    model: nn.Module,
    data: Data,
    tolerance: float = 0.0,
    *,
    holdout: Data | None = None,
    keep_predictions: bool = True,
    cost: CostKind = "parameters",
    batch_size: int = 1024,
) -> "Compressed":
    """Fewer weights with the same answers on the data (T10).

    With `tolerance=0` the outputs on the data stay as they are, to rounding: batch normalisations in evaluation mode
    are folded, linear layers that follow each other become their product, channels that are constant on the data go,
    and neurons that are active on the same examples become `r` or `r + 1`, where `r` is the rank of what reads them.
    With more, neurons, channels and heads are selected by a lasso, and layers factorised for their inputs, at sizes
    that are chosen together for the least cost within the tolerance.

    Args:
        model: any module; a copy in evaluation mode is made smaller, the model is left as it is. Layers that
            `torch.export` cannot show, or that others than layers read, keep their width.
        data: `(X, y)`: inputs with the examples along their first axis (a tensor, a tuple of arguments, or a dict of
            keywords), and class indices, or signs for one score; `(X, None)` for outputs that are no scores.
        tolerance: largest relative change `‖f' - f‖ / ‖f‖` of the outputs on the data.
        holdout: further `(X, y)` on which the two models are compared.
        keep_predictions: accept only what leaves the predicted class of every example of the data as it is, its
            mistakes included.
        cost: what is made small within the tolerance: "parameters", "flops", or "latency", which is measured for each
            layer at several sizes on a batch, with the threads that torch has. Exact moves are made in any case.
        batch_size: examples that are evaluated at once.

    Returns:
        The smaller model, its moves, and what it keeps, as `Compressed`.

    Raises:
        InputError: for a tolerance that is negative or no number, for data or labels of another form, and for weights
            that are not finite.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 1))
    >>> X = torch.randn(6, 2)
    >>> small = compress(model, (X, torch.tensor([0, 1, 0, 1, 0, 1])))
    >>> small.parameters_before, small.parameters_after < 80, small.kept.changed
    (369, True, 0)
    """
    if holdout is not None:  # before the work, and not after it
        DataBatches.of(labelled(holdout)[0], batch_size)
    found = plan(model, data, tolerance, keep_predictions=keep_predictions, cost=cost, batch_size=batch_size)
    return apply(found, model, holdout)


@dataclass(frozen=True, eq=False)
class Compressed:
    """A smaller model, the moves that made it, and what it keeps.

    `model` is an `nn.Module` of the layers of PyTorch alone. `kept` compares the two on the data, `held_out` on the
    holdout.
    """

    model: nn.Module
    original: nn.Module
    plan: Plan
    kept: Agreement
    held_out: Agreement | None = None

    @property
    def moves(self) -> tuple[Move, ...]:
        """The moves in order."""
        return self.plan.moves

    @property
    def notes(self) -> tuple[str, ...]:
        """Moves that were not made, with reasons."""
        return self.plan.notes

    @cached_property
    def parameters_before(self) -> int:
        """The number of parameters of the original."""
        return parameter_count(self.original)

    @cached_property
    def parameters_after(self) -> int:
        """The number of parameters of the smaller model."""
        return parameter_count(self.model)

    @property
    def exact(self) -> bool:
        """Whether all moves keep the outputs on the data, to rounding."""
        return all(move.exact for move in self.plan.moves)

    @property
    def ok(self) -> bool:
        """Whether the smaller model keeps what was promised."""
        rounding = 1e3 * torch.finfo(next(self.model.parameters()).dtype).eps
        within = self.kept.output_change <= self.plan.settings.tolerance + rounding
        return within and (not self.plan.settings.keep_predictions or not self.kept.changed)

    def table(self) -> pd.DataFrame:
        """One row a move: kind, layers, widths or ranks before and after, parameters left, change of the outputs."""
        rows = [asdict(move) | {"layers": ", ".join(move.layers)} for move in self.plan.moves]
        columns = ["number", "kind", "layers", "before", "after", "exact", "parameters", "output_change", "detail"]
        return pd.DataFrame(rows, columns=columns).set_index("number")

    def recheck(self, data: Data) -> Agreement:
        """Compare the two models on any data, from nothing but their weights."""
        inputs, labels = labelled(data)
        examples = DataBatches.of(inputs, self.plan.examples.batch_size)
        return agreement(exporting.evaluating(self.original), exporting.evaluating(self.model), examples, labels)

    @checked
    @default_modes()
    def radius(self, X: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The distance from each example of the data within which the smaller model is the original, exactly.

        Up to there no neuron of the original crosses its kink.

        Raises:
            InputError: where moves were not exact, the network is not piecewise linear, or the inputs are of another
                shape.
        """
        if not self.exact:
            raise InputError(
                expected="exact moves alone", found="moves within a tolerance", remedy="compress with tolerance=0"
            )
        double = exporting.evaluating(self.original).double()
        inputs = X.double()
        captured = capture(double, inputs[:2] if len(inputs) > 1 else inputs)
        weights = {name: parameter.detach() for name, parameter in double.named_parameters()}
        found = exactness_radius(captured, weights, inputs)
        if found is None:
            raise InputError(
                expected="a network of linear layers and ReLU", found="other operations", remedy="recheck on more data"
            )
        return found

    @checked
    @default_modes()
    def bound(self, X: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """A bound of `‖f'(x) - f(x)‖₁` at any inputs, from the weights alone (T10; Gonon et al. 2024).

        `max(‖x‖_∞, 1)` times the path metric of the two models, where neurons that were left out have weights of zero:
        it holds off the data, and grows with the depth.

        Raises:
            InputError: where neurons were merged or heads left out, a weight changes its sign, the network is not
                piecewise linear, or it does not take the inputs.

        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> with torch.no_grad():
        ...     model[0].bias[8:] = -10.0
        >>> import equipoise as eq
        >>> plan = eq.compression.plan(model, (torch.rand(9, 2), None))
        >>> [move.kind for move in plan.moves]
        ['remove']
        >>> small, far = eq.compression.apply(plan, model), 50 * torch.rand(9, 2)
        >>> bool(((small.model(far) - model(far)).abs().sum(1) <= small.bound(far)).all())
        True
        """
        other = sorted({move.kind for move in self.moves} - {"fold", "collapse", "remove", "select", "factorise"})
        if other:
            raise InputError(
                expected="moves that leave weights in their places",
                found=f"moves of kind {', '.join(other)}",
                remedy="make the plan without them: plan.without(…)",
            )
        base, planned = exporting.evaluating(self.plan.base).double(), exporting.evaluating(self.plan.planned).double()
        inputs = X.double()
        captured = capture(base, inputs[:2] if len(inputs) > 1 else inputs)
        weights = {name: parameter.detach() for name, parameter in base.named_parameters()}
        metric = path_metric_bound(captured, weights, widened(base, planned, self.plan.kept))
        return inputs.flatten(1).abs().amax(1).clamp_min(1.0) * metric

    def latency(self, repeats: float = 0.5) -> tuple[float, float]:
        """Median seconds of a forward pass on one batch, of the original and of the smaller model.

        Args:
            repeats: least seconds to measure each for.

        Returns:
            Both, measured by `torch.utils.benchmark` with the threads that torch has.
        """
        found = []
        for model in (exporting.evaluating(self.original), exporting.evaluating(self.model)):
            batch = next(self.plan.examples.batches(next(model.parameters())))
            found.append(seconds(model, batch, repeats))
        return found[0], found[1]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `model.safetensors` and `compression.json`, from which `equipoise.compression.load` builds the model.

        Args:
            folder: made if it is not there.

        Returns:
            The folder.

        Raises:
            StoreError: if it cannot be written.
        """
        path = Path(folder)
        config = {
            "format": exporting.FORMAT,
            "modules": exporting.differences(self.original, self.model),
            "counted": exporting.counted(self.original, self.model),
            "moves": [asdict(move) for move in self.plan.moves],
            "kept": asdict(self.kept),
            "held_out": self.held_out and asdict(self.held_out),
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            save_file(exporting.tensors(self.model), path / "model.safetensors")
            (path / "compression.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        except OSError as error:
            raise StoreError(
                expected=f"to write {path}", found=error.strerror or str(error), remedy="choose another folder"
            ) from None
        return path

    def to_onnx(self, path: str | os.PathLike[str]) -> float:
        """Export the smaller model to ONNX, and run it with onnxruntime on the first examples.

        Args:
            path: the file to write.

        Returns:
            The largest relative difference of its outputs from those of PyTorch.

        Raises:
            InputError: without onnx, onnxscript and onnxruntime (`pip install 'equipoise[onnx]'`), and where outputs
                differ by more than rounding.
        """
        return exporting.to_onnx(exporting.evaluating(self.model), self.plan.examples, Path(path))

    def summary(self) -> Mapping[str, object]:
        """The figures as plain values."""
        return {
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "exact": self.exact,
            "ok": self.ok,
            "kept": asdict(self.kept),
            "held_out": self.held_out and {**asdict(self.held_out), "interval": self.held_out.interval()},
            "moves": [asdict(move) for move in self.plan.moves],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        share = self.parameters_after / self.parameters_before
        lines = [f"{self.parameters_before:,} → {self.parameters_after:,} parameters ({share:.1%})"]
        lines += [
            f"{move.number}. {move.kind} {', '.join(move.layers)}: {move.before} → {move.after} ({move.detail})"
            for move in self.plan.moves
        ]
        lines.append(f"on the data: {_described(self.kept)}")
        if self.held_out is not None:
            lines.append(f"on the holdout: {_described(self.held_out, independent=True)}")
        return "\n".join([*lines, *self.notes])

    def __repr__(self) -> str:
        moves = len(self.plan.moves)
        return f"Compressed({self.parameters_before:,} → {self.parameters_after:,} parameters, {moves} moves)"

    def _repr_html_(self) -> str:
        table = self.table().to_html(float_format=lambda value: f"{value:.1e}")
        return f"<p>{self!r}; on the data: {_described(self.kept)}</p>{table}"


def _described(kept: Agreement, independent: bool = False) -> str:
    said = f"outputs change by {kept.output_change:.1e}"
    if kept.changed is None or kept.margin_change is None:
        return said
    low, high = kept.margin_change
    said += f", {kept.changed} of {kept.examples} predictions change, margins by {low:+.1e} … {high:+.1e}"
    if independent and (interval := kept.interval()) is not None:
        said += f"; same prediction with probability {interval[0]:.4f} … {interval[1]:.4f} (95%)"
    if kept.accuracy_before is not None and kept.accuracy_after is not None:
        said += f"; accuracy {kept.accuracy_before:.2%} → {kept.accuracy_after:.2%}"
    return said
