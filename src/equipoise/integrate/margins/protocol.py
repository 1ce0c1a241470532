"""Margins as functions of the weights: what a stepper needs to know of a network and its data (T6.1).

Two forms of one protocol. `ChainMargins` reads a feedforward chain layer by layer and never forms a per-example
parameter gradient; `GraphMargins` takes any network whose graph was captured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.graph.piecewise import Piecewise
from equipoise.integrate.margins.readout import Readout, Rows

Weights = Float[Tensor, " parameters"]
Slopes = tuple[Tensor, ...]  # one per kink: (examples, neurons, …); of a maximum, convex weights along a last axis


@dataclass(frozen=True)
class ParameterLayout:
    """The layout of named parameters in one flat vector of weights."""

    shapes: dict[str, torch.Size]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> "ParameterLayout":
        """The layout of these parameters, in their order."""
        return cls({name: tensor.shape for name, tensor in parameters.items()})

    @property
    def size(self) -> int:
        """The length of the vector."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def widths(self) -> int:
        """The sum over the matrices of inputs and outputs."""
        matrices = [shape for shape in self.shapes.values() if len(shape) > 1]
        return sum(shape[0] + shape[1:].numel() for shape in matrices)

    def flatten(self, parameters: Mapping[str, Tensor]) -> Weights:
        """One vector of all parameters (a copy)."""
        return torch.cat([parameters[name].detach().reshape(-1) for name in self.shapes])

    def views(self, weights: Weights) -> dict[str, Tensor]:
        """The parameters as views into the vector."""
        pieces = weights.split([shape.numel() for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def copies(self, weights: Weights) -> dict[str, Tensor]:
        """Copies of the parameters, which share no memory with the vector."""
        return {name: view.clone() for name, view in self.views(weights).items()}


@dataclass(frozen=True)
class MarginEvaluation:
    """The margins of the network and the pre-activation of each of its kinks."""

    margins: Float[Tensor, " examples *others"]
    preactivations: tuple[Tensor, ...]

    def take(self, examples: Rows) -> "MarginEvaluation":
        """The evaluation of some of the examples."""
        return MarginEvaluation(self.margins[examples], tuple(z[examples] for z in self.preactivations))


@runtime_checkable
class Linearization(Protocol):
    """The network with frozen slopes, linearized at one point: its margins and the products of their Jacobian `J`."""

    @property
    def margins(self) -> Float[Tensor, " examples *others"]:
        """Margins of the frozen network."""
        ...

    def vjp(self, cotangents: Float[Tensor, " examples *others"]) -> Weights:
        """`Jᵀ p`."""
        ...

    def jvp(self, change: Weights) -> MarginEvaluation:
        """`J δw`, the first-order change of margins and pre-activations."""
        ...

    def kernel(
        self, examples: Rows, cotangents: Float[Tensor, " pairs *others"], columns: Rows | None = None
    ) -> Float[Tensor, "pairs columns"]:
        """`G Gᵀ` with `G_p = Σ_c cotangents[p, c] ∂m_{examples[p], c}`: the tangent kernel of combinations of margins.

        All columns, or those of some of the pairs.
        """
        ...

    def sensitivity(self, cotangents: Float[Tensor, " examples *others"]) -> Slopes:
        """`∂⟨cotangents, m⟩/∂h` with respect to the output of every kink."""
        ...

    def squared_gradients(self) -> Slopes:
        """`‖∂z/∂w‖²` at every kink, or an estimate of it.

        Times the sensitivity it is the rate at which a pre-activation answers a change of its own slope (T4.5).
        """
        ...


@runtime_checkable
class Margins(Protocol):
    """The margins of one data set under one network: `y_i f(x_i; w)`, or `f_{y_i} - f_c` for every other class."""

    @property
    def layout(self) -> ParameterLayout:
        """The parameters in the flat vector."""
        ...

    @property
    def inputs(self) -> Tensor:
        """The inputs, examples first."""
        ...

    @property
    def readout(self) -> Readout:
        """The map from scores to margins."""
        ...

    @property
    def count(self) -> int:
        """The number of examples."""
        ...

    @property
    def kinks(self) -> tuple[Piecewise, ...]:
        """The piecewise-linear operations, in execution order."""
        ...

    def restricted(self, examples: Rows) -> "Margins":
        """The margins of some of the examples."""
        ...

    def evaluate(self, weights: Weights) -> MarginEvaluation:
        """Margins and pre-activations of the network itself."""
        ...

    def linearize(self, weights: Weights, slopes: Slopes) -> Linearization:
        """The network with these slopes, around these weights."""
        ...

    def tangent(self, weights: Weights) -> tuple[Float[Tensor, " examples *others"], Linearization]:
        """The margins at these weights and the network with its slopes there, in one pass forward."""
        ...

    def in_single(self) -> "Margins":
        """The margins computed in float32, where this form can; else as they are."""
        ...


def secant_slopes(margins: Margins, before: MarginEvaluation, after: MarginEvaluation) -> Slopes:
    """The secant slope of every pair of a neuron and an example between two evaluations (T6.2)."""
    both = zip(margins.kinks, before.preactivations, after.preactivations, strict=True)
    return tuple(kink.secant(z0, z1) for kink, z0, z1 in both)


def local_slopes(margins: Margins, at: MarginEvaluation) -> Slopes:
    """`σ'(z)`, the slope at `z = 0` being that of the negative side."""
    return secant_slopes(margins, at, at)
