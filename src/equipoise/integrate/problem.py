"""What a flow is about: a network read once, its data, its loss, and everything derived from them."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from equipoise.data import Dataset, validate
from equipoise.errors import InputError
from equipoise.graph.capture import Captured
from equipoise.graph.chain import Layer, channel_axis, read_chain
from equipoise.graph.degrees import homogeneity
from equipoise.graph.evaluate import Kink, kinks, recorded, rectified
from equipoise.integrate.admission import outputs_of_two, require_parameters, require_trainable
from equipoise.integrate.entropic import precision_floor, resolved_temperature
from equipoise.integrate.feedforward import FeedforwardMargins
from equipoise.integrate.general import CapturedMargins
from equipoise.integrate.goals import Goal, LogLoss
from equipoise.integrate.margins import Evaluation, Layout, Margins, Slopes, Weights
from equipoise.integrate.objective import Objective, shares
from equipoise.integrate.readout import Contrasts, Readout, Signs
from equipoise.laws import Laws, invariances
from equipoise.losses import Loss, named_loss
from equipoise.observers import Probe

_SHALLOW = -60.0  # log R below which a loss without an exponential tail is zero in float64


@dataclass(frozen=True)
class Problem:
    """A network in float64, captured once, with its laws, its data and its loss."""

    model: nn.Module
    data: Dataset
    loss: Loss
    captured: Captured
    laws: Laws
    chain: tuple[Layer, ...] | None
    layout: Layout
    objective: Objective

    @property
    def margins(self) -> Margins:
        """The margins of all the examples."""
        return self.objective.margins

    @cached_property
    def initial(self) -> dict[str, Tensor]:
        """The weights of the model as it was given."""
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    @property
    def example_weights(self) -> list[float] | None:
        """`w_i` of `R = Σ w_i ℓ_i`, or `None` where all are `1/n`."""
        offsets = self.objective.offsets
        return None if offsets is None else (torch.exp(-offsets.double()) / len(offsets)).tolist()

    @property
    def weights(self) -> Weights:
        """The same as one vector."""
        return self.layout.flatten(self.initial)

    def log_loss(self, at: Evaluation) -> float:
        """`log R`."""
        return self.objective.log_risk(at)

    def growth(self, weights: Weights) -> float:
        """`s = log(‖w‖/‖w₀‖)`."""
        return math.log(float(weights.norm()) / self._initial_norm)

    @cached_property
    def _initial_norm(self) -> float:
        return float(self.weights.norm())

    @property
    def homogeneity(self) -> int | None:
        """`L` with `f(x; aw) = a^L f(x; w)`; None where an operation, a bias or a skip stands in the way."""
        return homogeneity(self.captured).degree

    @cached_property
    def rectifiers(self) -> tuple[int, ...]:
        """The kinks that act on one neuron at a time, by their position: those that are on or off."""
        return tuple(k for k, kink in enumerate(self.margins.kinks) if kink.negative_slope is not None)

    @cached_property
    def _kinks(self) -> tuple[Kink, ...]:
        """The kinks with their places in the graph."""
        return kinks(self.captured)

    @cached_property
    def kink_names(self) -> tuple[str, ...]:
        """The layer whose activation each rectifier is; for other networks the node that computes it."""
        if self.chain is not None:
            return tuple(layer.weight for layer in self.chain if layer.negative_slope is not None)
        return tuple(self._kinks[k].source.name for k in self.rectifiers)

    def bent(self, slopes: Slopes) -> dict[str, Tensor]:
        """Which pairs of an example and a neuron these slopes put inside a kink, by its place."""
        each = zip(self._places, self.margins.kinks, slopes, strict=True)
        return {place: kink.inside(slope).flatten(1) for place, kink, slope in each}

    @cached_property
    def _places(self) -> tuple[str, ...]:
        """Of every kink: the name of a rectifier, the node of a maximum."""
        names = dict(zip(self.rectifiers, self.kink_names, strict=True))
        if len(names) < len(self.margins.kinks):
            names = {k: names.get(k, kink.node.name) for k, kink in enumerate(self._kinks)}
        return tuple(names.values())

    @cached_property
    def _channel_axes(self) -> tuple[int, ...]:
        """The axis of the neurons, or channels, in what each rectifier reads."""
        if self.chain is not None:
            return (-1,) * len(self.rectifiers)
        return tuple(channel_axis(self._kinks[k].source) for k in self.rectifiers)

    def by_neuron(self, preactivations: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Those of the rectifiers, with the neurons or channels along the last axis."""
        pairs = zip(self.rectifiers, self._channel_axes, strict=True)
        return tuple(preactivations[k].movedim(axis, -1) for k, axis in pairs)

    def probe(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Probe:
        """The network at these parameters on other inputs."""
        example = next(iter(parameters.values()))
        output, seen = recorded(self.captured, self._kinks, parameters, inputs.to(example))
        return Probe(output, dict(zip(self.kink_names, self.by_neuron(seen), strict=True)))

    def trained(self, weights: Weights) -> nn.Module:
        """A copy of the model with these weights."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.layout.views(weights)[name])
        return model


def build_problem(
    model: nn.Module,
    data: Any,
    loss: str | Loss,
    example_weights: Any = None,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Read the model, check the data, and plan the computation once. The model and the data are not changed.

    `example_weights` are `w_i` of `R = Σ w_i ℓ_i`, divided by their sum; by default all `1/n`. All is computed in
    `dtype`, float64 or float32, on the model's device. Raises `InputError` for data that cannot be used, for outputs
    that are not one score for each example (or one for each class), and for a model that no gradient flow can train
    as it is; `CaptureError` for one that cannot be read.
    """
    chosen = named_loss(loss)
    checked, own = validate(data, multiclass=chosen.multiclass), _own_copy(model, dtype)
    device = next(own.parameters()).device
    inputs = checked.X.to(device, dtype)
    labels = checked.y.to(device) if chosen.multiclass else checked.y.to(device, dtype)
    readout = _readout(outputs_of_two(own, inputs), labels, chosen)
    laws = invariances(own, inputs[:2], loss=chosen if chosen.multiclass else None)
    assert laws.captured is not None  # these laws were read, not stated
    captured = rectified(laws.captured, own, inputs[:2])
    layout = Layout.of(dict(own.named_parameters()))
    require_trainable(own, captured, inputs[:3])
    objective = Objective(
        build_margins(captured, layout, inputs, readout), chosen, _offsets(example_weights, len(inputs), inputs)
    )
    return Problem(own, checked, chosen, captured, laws, read_chain(captured), layout, objective)


def _own_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in the precision of the flow, once its parameters are numbers that can flow."""
    if dtype not in (torch.float64, torch.float32):
        raise InputError(
            expected="a flow in float64 or float32",
            found=str(dtype),
            remedy="pass dtype=torch.float64, or leave it out",
        )
    require_parameters(model)
    return copy.deepcopy(model).to(dtype)


def build_margins(captured: Captured, layout: Layout, inputs: Tensor, readout: Readout) -> Margins:
    """The fast path where the network is a feedforward chain, the graph everywhere else."""
    chain = read_chain(captured)
    if chain is None:
        return CapturedMargins(captured, layout, inputs, readout)
    return FeedforwardMargins(chain, layout, inputs.flatten(1), readout)


def _readout(output: Tensor, labels: Tensor, loss: Loss) -> Readout:
    """From scores to margins, once the scores are what the loss takes."""
    examples = min(2, len(labels))
    if not loss.multiclass:
        if output.numel() == examples:
            return Signs(labels)
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
    return Contrasts(labels, output.shape[1])


def _offsets(example_weights: Any, examples: int, like: Tensor) -> Tensor | None:
    """`-log(n w_i)`, with `Σ w_i = 1`."""
    if example_weights is None:
        return None
    return -torch.log(examples * shares(example_weights, examples, like)).to(like)


def require_tail(loss: Loss, goal: Goal) -> None:
    """Raises `InputError` for a goal in the limit of a loss that has none: laws and trajectories only."""
    if not loss.exponential_tail and isinstance(goal, LogLoss) and goal.value < _SHALLOW:
        raise InputError(
            expected="a loss with an exponential tail, under which weights grow for ever",
            found=f"the {loss.name} loss, whose gradient vanishes at finite weights, and the goal {goal.describe()}",
            remedy="pass until=eq.Steps(200) or eq.Growth(...) for its laws and trajectories, or another loss",
        )


def why_unresolved(problem: Problem, at: Evaluation) -> str:
    """The floor of the precision of a flow beside its margins, in words."""
    potential, dtype = problem.objective.potential(at), problem.weights.dtype
    name, largest = str(dtype).removeprefix("torch."), float(potential.abs().max())
    return (
        f"{name} resolves margins up to {precision_floor(dtype):.1e}, the largest is {largest:.1e}: "
        f"the temperature is {resolved_temperature(potential):.3g}"
    )


def why_not_separable(problem: Problem) -> str | None:
    """A proof that no weights fit the data, in words, or `None`.

    Two kinds are known: one input with two labels, and a network without activations (linear in its input) of one score
    whose data no hyperplane separates, by a linear programme.
    """
    inputs, labels = problem.data.X.flatten(1).cpu().numpy(), problem.data.y.cpu().numpy()
    _, group = np.unique(inputs, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    same = np.diff(group.ravel()[order]) == 0
    clash = np.flatnonzero(same & (np.diff(labels[order]) != 0))
    if len(clash):
        i, j = sorted(order[clash[0] : clash[0] + 2])
        return f"examples {i} and {j} are the same input with two labels"
    if problem.chain is None or problem.kink_names or problem.loss.multiclass:
        return None
    biased = any(layer.bias for layer in problem.chain)
    rows = np.hstack([inputs, np.ones((len(inputs), 1))]) if biased else inputs
    programme = linprog(
        np.zeros(rows.shape[1]),
        A_ub=-labels[:, None] * rows,
        b_ub=-np.ones(len(rows)),
        bounds=(None, None),
        method="highs",
    )
    return "the network is linear and no hyperplane separates the classes" if programme.status == 2 else None
