"""The problem of a flow: a network read once, its data, its loss, and the objective made of them."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from equipoise.data import Dataset, validate
from equipoise.errors import InputError
from equipoise.graph.capture import Captured
from equipoise.graph.chain import Layer, read_chain
from equipoise.graph.degrees import homogeneity
from equipoise.graph.evaluate import rectified
from equipoise.integrate.margins.chain_margins import ChainMargins
from equipoise.integrate.margins.graph_margins import GraphMargins
from equipoise.integrate.margins.kink_places import KinkPlaces
from equipoise.integrate.margins.protocol import MarginEvaluation, Margins, ParameterLayout, Weights
from equipoise.integrate.margins.readout import AdjustedReadout, BinaryReadout, MulticlassReadout, Readout
from equipoise.integrate.objective import ExampleWeights, Objective, positions_in_data, shares, weighted_examples
from equipoise.integrate.validation import outputs_of_two, require_parameters, require_trainable
from equipoise.laws import Laws, invariances
from equipoise.losses import Loss, adjustment_of, named_loss
from equipoise.transform.restoring import LawValues


@dataclass(frozen=True)
class Problem:
    """A network in the precision of the flow, captured once, with its laws, data, loss and objective."""

    model: nn.Module
    data: Dataset
    loss: Loss
    captured: Captured
    laws: Laws
    chain: tuple[Layer, ...] | None
    kinks: KinkPlaces
    objective: Objective
    example_weights: Tensor | None = None  # `w_i` of `R = Σ w_i ℓ_i`, 0 for examples that take no part; None for 1/n

    @property
    def margins(self) -> Margins:
        """The margins of all the examples that weigh anything."""
        return self.objective.margins

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the parameters in the flat vector."""
        return self.margins.layout

    @cached_property
    def initial(self) -> dict[str, Tensor]:
        """The weights of the model as it was given, by parameter."""
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    @property
    def weights(self) -> Weights:
        """The weights of the model as it was given, as one vector."""
        return self.layout.flatten(self.initial)

    @property
    def weighted_data(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels of the examples that weigh anything."""
        if self.example_weights is None:
            return self.data.X, self.data.y
        return weighted_examples(*self.data, self.example_weights)[:2]

    @cached_property
    def log_separation(self) -> float:
        """`log(min_i w_i ℓ(0))`: below it every example is classified correctly (docs/theory.md §0)."""
        shares = self.example_weights
        least = 1 / self.margins.count if shares is None else float(shares[shares > 0].min())
        return self.loss.log_at_zero() + math.log(least)

    def positions(self, examples: Tensor) -> Tensor:
        """The positions in the data set of examples that are counted among those that weigh anything."""
        return positions_in_data(examples, self.example_weights)

    @cached_property
    def homogeneity(self) -> int | None:
        """`L` with `f(x; aw) = a^L f(x; w)`, or `None` for an operation, a bias or a skip without a degree."""
        return homogeneity(self.captured).degree

    def log_loss(self, at: MarginEvaluation) -> float:
        """`log R`."""
        return self.objective.log_risk(at)

    def growth(self, weights: Weights) -> float:
        """`s = log(‖w‖/‖w₀‖)`."""
        return math.log(float(weights.norm()) / self._initial_norm)

    @cached_property
    def _initial_norm(self) -> float:
        return float(self.weights.norm())


def trained_copy(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model with these weights."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            parameter.copy_(weights[name])
    return copied


def build_problem(
    model: nn.Module,
    data: object,
    loss: str | Loss,
    example_weights: ExampleWeights | None = None,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Read the model, check the data, and plan the computation once. The model and the data are not changed.

    Args:
        model: the network, with its initial weights.
        data: `(X, y)` or a `Dataset`.
        loss: a name of `eq.losses.LOSSES`, or a loss.
        example_weights: `w_i` of `R = Σ w_i ℓ_i`, divided by their sum; by default all `1/n`. But for `data`, the
            problem has no example of weight zero.
        dtype: float64 or float32, in which all is computed, on the model's device.

    Returns:
        The problem.

    Raises:
        InputError: for data that cannot be used, for outputs that are not one score for each example (or one for each
            class), and for a model that no gradient flow can train as it is.
        CaptureError: for a model that cannot be read.
    """
    chosen = named_loss(loss)
    checked, own = validate(data, multiclass=chosen.multiclass), _own_copy(model, dtype)
    device = next(own.parameters()).device
    weights = None if example_weights is None else shares(example_weights, len(checked.y), checked.y)
    X, y, counted = (*checked, None) if weights is None else weighted_examples(*checked, weights)
    inputs, labels = X.to(device, dtype), y.to(device) if chosen.multiclass else y.to(device, dtype)
    readout = _readout(outputs_of_two(own, inputs), labels, chosen)
    laws = invariances(own, inputs[:2], loss=chosen if chosen.multiclass else None)
    assert laws.captured is not None  # these laws were read, not stated
    captured = rectified(laws.captured, own, inputs[:2])
    layout = ParameterLayout.of(dict(own.named_parameters()))
    require_trainable(own, captured, inputs[:3])
    margins, chain = build_margins(captured, layout, inputs, readout), read_chain(captured)
    objective = Objective(
        margins,
        chosen,
        None if counted is None else -torch.log(len(y) * counted).to(inputs),
        conserved=LawValues.at(laws, {name: each.detach() for name, each in own.named_parameters()}),
    )
    kinks = KinkPlaces(captured, chain, margins.kinks)
    return Problem(own, checked, chosen, captured, laws, chain, kinks, objective, weights)


def _own_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the model in the precision of the flow, its parameters checked."""
    if dtype not in (torch.float64, torch.float32):
        raise InputError(
            expected="a flow in float64 or float32",
            found=str(dtype),
            remedy="pass dtype=torch.float64, or leave it out",
        )
    require_parameters(model)
    return copy.deepcopy(model).to(dtype)


def build_margins(captured: Captured, layout: ParameterLayout, inputs: Tensor, readout: Readout) -> Margins:
    """The chain form where the network is a feedforward chain, the graph form everywhere else."""
    chain = read_chain(captured)
    if chain is None:
        return GraphMargins(captured, layout, inputs, readout)
    return ChainMargins(chain, layout, inputs.flatten(1), readout)


def _readout(output: Tensor, labels: Tensor, loss: Loss) -> Readout:
    """The map from scores to margins, the scores checked against the loss."""
    examples = min(2, len(labels))
    if not loss.multiclass:
        if output.numel() == examples:
            return BinaryReadout(labels)
        raise InputError(
            expected=f"one score for each example, of shape (n,) or (n, 1), for the {loss.name} loss",
            found=f"output {tuple(output.shape)} for {examples} examples",
            remedy='end the network with a layer of width 1, or pass loss="cross_entropy"',
        )
    classes = int(labels.max()) + 1
    if output.ndim != 2 or len(output) != examples or output.shape[1] < max(classes, 2):
        raise InputError(
            expected=f"a score for each of {classes} classes, of shape (n, {classes}), for the {loss.name} loss",
            found=f"output {tuple(output.shape)} for {examples} examples",
            remedy=f"end the network with a layer of width {classes}, or number the classes from 0",
        )
    plain, adjustment = MulticlassReadout(labels, output.shape[1]), adjustment_of(loss)
    if adjustment is None:
        return plain
    adjustment.require_classes(output.shape[1])
    return AdjustedReadout(plain, adjustment.scale.to(output)[labels], adjustment.shift.to(output))
