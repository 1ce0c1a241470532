"""Margins as functions of the weights: values, Jacobian products, tangent kernel (THEORY T6.1).

Two implementations of one protocol. `FeedforwardMargins` is exact for chains and never forms a per-example parameter
gradient: `K = Σ_k (H_{k-1} H_{k-1}ᵀ) ∘ (Δ_k Δ_kᵀ)`. `CapturedMargins` takes any network whose graph was captured,
through `torch.func`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.graph.capture import Captured
from equipoise.graph.chain import Layer, read_chain
from equipoise.graph.evaluate import Kink, activation, frozen, kinks, recorded, secant_slope

Weights = Float[Tensor, " parameters"]
Rows = Int[Tensor, " rows"]  # the examples concerned
Slopes = tuple[Tensor, ...]  # one per kink: (rows, neurons, …)


@dataclass(frozen=True)
class Layout:
    """How named parameters lie in one flat vector of weights."""

    shapes: dict[str, torch.Size]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> "Layout":
        """The layout of these parameters, in their order."""
        return cls({name: tensor.shape for name, tensor in parameters.items()})

    def flatten(self, parameters: Mapping[str, Tensor]) -> Weights:
        """One vector of all parameters (a copy)."""
        return torch.cat([parameters[name].detach().reshape(-1) for name in self.shapes])

    def views(self, weights: Weights) -> dict[str, Tensor]:
        """The parameters as views into the vector."""
        pieces = weights.split([shape.numel() for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


@dataclass(frozen=True)
class Evaluation:
    """The margins of the network and the pre-activation of each of its kinks."""

    margins: Float[Tensor, " rows"]
    preactivations: tuple[Tensor, ...]

    def take(self, rows: Rows) -> "Evaluation":
        """The same for some of the examples."""
        return Evaluation(self.margins[rows], tuple(z[rows] for z in self.preactivations))


@runtime_checkable
class Linearisation(Protocol):
    """The network with frozen slopes, at one point: its margins and their Jacobian `J`, known by its products."""

    @property
    def margins(self) -> Float[Tensor, " rows"]:
        """Margins of the frozen network."""
        ...

    def pullback(self, forces: Float[Tensor, " rows"]) -> Weights:
        """`Jᵀ p`."""
        ...

    def pushforward(self, change: Weights) -> Float[Tensor, " rows"]:
        """`J δw`."""
        ...

    def kernel(self) -> Float[Tensor, "rows rows"]:
        """The tangent kernel `J Jᵀ`."""
        ...


@runtime_checkable
class Margins(Protocol):
    """The margins `m_i = y_i f(x_i; w)` of one data set under one network."""

    @property
    def layout(self) -> Layout:
        """The parameters in the flat vector."""
        ...

    @property
    def count(self) -> int:
        """The number of examples."""
        ...

    @property
    def negative_slopes(self) -> tuple[float, ...]:
        """The slope below zero of every kink, in execution order."""
        ...

    def restricted(self, rows: Rows) -> "Margins":
        """The same for some of the examples."""
        ...

    def evaluate(self, weights: Weights) -> Evaluation:
        """The network itself."""
        ...

    def linearise(self, weights: Weights, slopes: Slopes) -> Linearisation:
        """The network with these slopes, around these weights."""
        ...


def build_margins(
    captured: Captured, layout: Layout, inputs: Float[Tensor, "n ..."], labels: Float[Tensor, " n"]
) -> Margins:
    """The fast path where the network is a feedforward chain, `torch.func` everywhere else."""
    chain = read_chain(captured)
    if chain is None:
        return CapturedMargins(captured, layout, inputs, labels)
    return FeedforwardMargins(chain, layout, inputs.flatten(1), labels)


def secant_slopes(margins: Margins, before: Evaluation, after: Evaluation) -> Slopes:
    """The secant slope of every pair of a neuron and an example between two evaluations (T6.2)."""
    both = zip(before.preactivations, after.preactivations, margins.negative_slopes, strict=True)
    return tuple(secant_slope(z0, z1, negative) for z0, z1, negative in both)


def local_slopes(margins: Margins, at: Evaluation) -> Slopes:
    """`σ'(z)`, the slope at `z = 0` being that of the negative side."""
    return secant_slopes(margins, at, at)


# --- feedforward chains ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeedforwardMargins:
    """Margins of a chain `z_k = W_k h_{k-1} + b_k`, `h_k = σ(z_k)`, by products of whole matrices."""

    chain: tuple[Layer, ...]
    layout: Layout
    inputs: Float[Tensor, "n d"]
    labels: Float[Tensor, " n"]

    @property
    def count(self) -> int:
        """The number of examples."""
        return len(self.labels)

    @property
    def negative_slopes(self) -> tuple[float, ...]:
        """The slope below zero of every kink."""
        return tuple(layer.negative_slope for layer in self.chain if layer.negative_slope is not None)

    @cached_property
    def gram(self) -> Float[Tensor, "n n"]:
        """Inner products of the inputs: the widest part of the kernel, and the one that never changes."""
        return self.inputs @ self.inputs.T

    def restricted(self, rows: Rows) -> "FeedforwardMargins":
        """The same for some of the examples."""
        return replace(self, inputs=self.inputs[rows], labels=self.labels[rows])

    def evaluate(self, weights: Weights) -> Evaluation:
        """The network itself."""
        views, hidden, seen = self.layout.views(weights), self.inputs, []
        for layer in self.chain:
            hidden = _affine(hidden, layer, views)
            if layer.negative_slope is not None:
                seen.append(hidden)
                hidden = activation(hidden, layer.negative_slope)
        return Evaluation(self.labels * hidden.squeeze(1), tuple(seen))

    def linearise(self, weights: Weights, slopes: Slopes) -> "_FeedforwardLinearisation":
        """Forward with `h_k = α_k ∘ z_k`, then backward from the margin."""
        views, hidden, labels = self.layout.views(weights), self.inputs, self.labels
        aligned = self._aligned(slopes)
        entering = []
        for layer, slope in zip(self.chain, aligned, strict=True):
            entering.append(hidden)
            hidden = _affine(hidden, layer, views)
            hidden = hidden if slope is None else slope * hidden
        sensitivity, leaving = labels[:, None], [labels[:, None]]
        for layer, slope in zip(reversed(self.chain[1:]), reversed(aligned[:-1]), strict=True):
            sensitivity = sensitivity @ views[layer.weight]
            sensitivity = sensitivity if slope is None else slope * sensitivity
            leaving.append(sensitivity)
        return _FeedforwardLinearisation(self, labels * hidden.squeeze(1), entering, leaving[::-1])

    def _aligned(self, slopes: Slopes) -> list[Tensor | None]:
        """The slopes with one entry per layer; `None` for linear ones."""
        remaining = iter(slopes)
        return [None if layer.negative_slope is None else next(remaining) for layer in self.chain]


def _affine(hidden: Tensor, layer: Layer, views: Mapping[str, Tensor]) -> Tensor:
    return torch.nn.functional.linear(hidden, views[layer.weight], views[layer.bias] if layer.bias else None)


@dataclass(frozen=True)
class _FeedforwardLinearisation:
    """`entering[k]` is `H_{k-1}`, `leaving[k]` is `Δ_k = ∂m/∂z_k`, both with one row per example."""

    owner: FeedforwardMargins
    margins: Float[Tensor, " rows"]
    entering: list[Tensor]
    leaving: list[Tensor]

    def pullback(self, forces: Float[Tensor, " rows"]) -> Weights:
        """`Jᵀ p`: `W_k` receives `(p ∘ Δ_k)ᵀ H_{k-1}`."""
        gradient = {}
        for layer, hidden, sensitivity in zip(self.owner.chain, self.entering, self.leaving, strict=True):
            weighted = forces[:, None] * sensitivity
            gradient[layer.weight] = weighted.T @ hidden
            if layer.bias:
                gradient[layer.bias] = weighted.sum(0)
        return self.owner.layout.flatten(gradient)

    def pushforward(self, change: Weights) -> Float[Tensor, " rows"]:
        """`J δw = Σ_k ⟨Δ_k, δW_k H_{k-1} + δb_k⟩`, one number per example."""
        views = self.owner.layout.views(change)
        terms = zip(self.owner.chain, self.entering, self.leaving, strict=True)
        return torch.stack([(_affine(h, layer, views) * delta).sum(1) for layer, h, delta in terms]).sum(0)

    def kernel(self) -> Float[Tensor, "rows rows"]:
        """`K = Σ_k (H_{k-1} H_{k-1}ᵀ + 1 if biased) ∘ (Δ_k Δ_kᵀ)`."""
        total = torch.zeros(len(self.margins), len(self.margins)).to(self.margins)
        for layer, hidden, sensitivity in zip(self.owner.chain, self.entering, self.leaving, strict=True):
            gram = self.owner.gram if hidden is self.owner.inputs else hidden @ hidden.T
            total += (gram + 1 if layer.bias else gram) * (sensitivity @ sensitivity.T)
        return total


# --- any captured network --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CapturedMargins:
    """Margins of any captured network whose only kinks are piecewise-linear activations."""

    captured: Captured
    layout: Layout
    inputs: Float[Tensor, "n ..."]
    labels: Float[Tensor, " n"]
    kinks: tuple[Kink, ...] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "kinks", kinks(self.captured))

    @property
    def count(self) -> int:
        """The number of examples."""
        return len(self.labels)

    @property
    def negative_slopes(self) -> tuple[float, ...]:
        """The slope below zero of every kink."""
        return tuple(kink.negative_slope for kink in self.kinks)

    def restricted(self, rows: Rows) -> "CapturedMargins":
        """The same for some of the examples."""
        return CapturedMargins(self.captured, self.layout, self.inputs[rows], self.labels[rows])

    def evaluate(self, weights: Weights) -> Evaluation:
        """The network itself."""
        output, seen = recorded(self.captured, self.kinks, self.layout.views(weights), self.inputs)
        return Evaluation(self.labels * output.reshape(self.count), seen)

    def linearise(self, weights: Weights, slopes: Slopes) -> "_CapturedLinearisation":
        """The frozen network around these weights; its Jacobian is formed when first needed."""
        return _CapturedLinearisation(self, weights, slopes)

    def frozen(self, weights: Weights, inputs: Tensor, labels: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """Margins of the network with frozen slopes."""
        output = frozen(self.captured, self.kinks, self.layout.views(weights), inputs, slopes)
        return labels * output.reshape(len(labels))


@dataclass(frozen=True)
class _CapturedLinearisation:
    owner: CapturedMargins
    weights: Weights
    slopes: Slopes

    def _frozen(self, weights: Weights) -> Tensor:
        return self.owner.frozen(weights, self.owner.inputs, self.owner.labels, self.slopes)

    @cached_property
    def _margins(self) -> Tensor:
        return self._frozen(self.weights)

    @property
    def margins(self) -> Float[Tensor, " rows"]:
        """Margins of the frozen network."""
        return self._margins

    def pullback(self, forces: Float[Tensor, " rows"]) -> Weights:
        """`Jᵀ p`, by one backward pass."""
        return torch.func.grad(lambda weights: forces @ self._frozen(weights))(self.weights)

    def pushforward(self, change: Weights) -> Float[Tensor, " rows"]:
        """`J δw`, by one forward-mode pass."""
        return torch.func.jvp(self._frozen, (self.weights,), (change,))[1]

    def kernel(self) -> Float[Tensor, "rows rows"]:
        """`J Jᵀ` from the per-example gradients."""

        def margin(weights: Tensor, example: Tensor, label: Tensor, slopes: tuple[Tensor, ...]) -> Tensor:
            return self.owner.frozen(weights, example[None], label[None], [slope[None] for slope in slopes])[0]

        per_example = torch.func.vmap(torch.func.grad(margin), in_dims=(None, 0, 0, 0))
        jacobian = per_example(self.weights, self.owner.inputs, self.owner.labels, self.slopes)
        return jacobian @ jacobian.T
