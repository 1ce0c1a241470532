"""Margins of feedforward chains by products of whole matrices: `K = Σ_k (H_{k-1} H_{k-1}ᵀ) ∘ (Δ_k Δ_kᵀ)` (T6.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.graph.chain import Layer
from equipoise.graph.piecewise import Rectifier, activation
from equipoise.integrate.margins.protocol import MarginEvaluation, ParameterLayout, Slopes, Weights
from equipoise.integrate.margins.readout import Readout, Rows

_BLOCK = 1 << 22  # entries of a kernel that are formed at one time


@dataclass(frozen=True)
class ChainMargins:
    """Margins of a chain `z_k = W_k h_{k-1} + b_k`, `h_k = σ(z_k)`; per-example gradients are never formed."""

    chain: tuple[Layer, ...]
    layout: ParameterLayout
    inputs: Float[Tensor, "n d"]
    readout: Readout

    @property
    def count(self) -> int:
        """The number of examples."""
        return self.readout.count

    @property
    def kinks(self) -> tuple[Rectifier, ...]:
        """The activations."""
        return tuple(Rectifier(layer.negative_slope) for layer in self.chain if layer.negative_slope is not None)

    def restricted(self, examples: Rows) -> "ChainMargins":
        """The margins of some of the examples."""
        return replace(self, inputs=self.inputs[examples], readout=self.readout.take(examples))

    def evaluate(self, weights: Weights) -> MarginEvaluation:
        """Margins and pre-activations of the network itself."""
        views, hidden, seen = self.layout.views(weights), self.inputs, []
        for layer in self.chain:
            hidden = _affine(hidden, layer, views)
            if layer.negative_slope is not None:
                seen.append(hidden)
                hidden = activation(hidden, layer.negative_slope)
        return MarginEvaluation(self.readout.margins(hidden), tuple(seen))

    def linearize(self, weights: Weights, slopes: Slopes) -> "_ChainLinearization":
        """The frozen network `h_k = α_k ∘ z_k` around these weights."""
        views, hidden, aligned = self.layout.views(weights), self.inputs, self._aligned(slopes)
        entering = []
        for layer, slope in zip(self.chain, aligned, strict=True):
            entering.append(hidden)
            hidden = _sloped(_affine(hidden, layer, views), slope)
        return _ChainLinearization(self, views, aligned, entering, self.readout.margins(hidden))

    def tangent(self, weights: Weights) -> tuple[Float[Tensor, " examples *others"], "_ChainLinearization"]:
        """The margins at these weights and the chain with its slopes there, in one pass forward."""
        views, hidden = self.layout.views(weights), self.inputs
        slopes: list[Tensor | None] = []
        entering = []
        for layer in self.chain:
            entering.append(hidden)
            hidden = _affine(hidden, layer, views)
            slopes.append(None if layer.negative_slope is None else _local_slope(hidden, layer.negative_slope))
            hidden = _sloped(hidden, slopes[-1])
        margins = self.readout.margins(hidden)
        return margins, _ChainLinearization(self, views, slopes, entering, margins)

    def in_single(self) -> "ChainMargins":
        """The margins computed in float32."""
        return replace(self, inputs=self.inputs.float(), readout=self.readout.in_single())

    def _aligned(self, slopes: Slopes) -> list[Tensor | None]:
        """The slopes with one entry per layer; `None` for linear ones."""
        remaining = iter(slopes)
        return [None if layer.negative_slope is None else next(remaining) for layer in self.chain]


def _affine(hidden: Tensor, layer: Layer, views: Mapping[str, Tensor]) -> Tensor:
    return torch.nn.functional.linear(hidden, views[layer.weight], views[layer.bias] if layer.bias else None)


def _local_slope(preactivation: Tensor, negative_slope: float) -> Tensor:
    on = (preactivation > 0).to(preactivation.dtype)
    return on if negative_slope == 0 else negative_slope + (1 - negative_slope) * on


def _sloped(tensor: Tensor, slope: Tensor | None) -> Tensor:
    return tensor if slope is None else slope * tensor


@dataclass(frozen=True)
class _ChainLinearization:
    """The frozen chain at one point; `entering[k]` is `H_{k-1}`, one row for each example."""

    owner: ChainMargins
    views: Mapping[str, Tensor]
    slopes: list[Tensor | None]
    entering: list[Tensor]
    margins: Float[Tensor, " examples *others"]

    def vjp(self, cotangents: Float[Tensor, " examples *others"]) -> Weights:
        """`Jᵀ p`: `W_k` receives `Δ_kᵀ H_{k-1}`."""
        gradient = {}
        for layer, hidden, leaving in zip(
            self.owner.chain, self.entering, self._leaving(cotangents, None), strict=True
        ):
            gradient[layer.weight] = leaving.T @ hidden
            if layer.bias:
                gradient[layer.bias] = leaving.sum(0)
        return self.owner.layout.flatten(gradient)

    def jvp(self, change: Weights) -> MarginEvaluation:
        """`J δw`, by carrying the change forward: `δz_k = δW_k h_{k-1} + δb_k + W_k δh_{k-1}`."""
        changes, moved, seen = self.owner.layout.views(change), torch.zeros_like(self.entering[0]), []
        for layer, hidden, slope in zip(self.owner.chain, self.entering, self.slopes, strict=True):
            carried = 0.0 if hidden is self.entering[0] else moved @ self.views[layer.weight].T
            moved = _affine(hidden, layer, changes) + carried
            if slope is not None:
                seen.append(moved)
                moved = slope * moved
        return MarginEvaluation(self.owner.readout.jvp(moved), tuple(seen))

    def kernel(
        self, examples: Rows, cotangents: Float[Tensor, " pairs *others"], columns: Rows | None = None
    ) -> Float[Tensor, "pairs columns"]:
        """`K = Σ_k (H_{k-1} H_{k-1}ᵀ + 1 if biased) ∘ (Δ_k Δ_kᵀ)`, rows of `H` and `Δ` for the pairs."""
        each, place = examples.unique(return_inverse=True)
        other, across = (each, place) if columns is None else examples[columns].unique(return_inverse=True)
        total = cotangents.new_zeros(len(place), len(across))
        for layer, hidden, leaving in zip(
            self.owner.chain, self.entering, self._leaving(cotangents, examples), strict=True
        ):
            gram = hidden[each] @ hidden[other].T + (1.0 if layer.bias else 0.0)
            others = leaving if columns is None else leaving[columns]
            for rows in torch.arange(len(place), device=place.device).split(_BLOCK // len(across) + 1):
                total[rows] += gram[place[rows, None], across] * (leaving[rows] @ others.T)
        return total

    def sensitivity(self, cotangents: Float[Tensor, " examples *others"]) -> Slopes:
        """`∂⟨cotangents, m⟩/∂h_k` with respect to the output of every kink."""
        chain, leaving = self.owner.chain, self._leaving(cotangents, None)
        onto = [delta @ self.views[layer.weight] for delta, layer in zip(leaving[1:], chain[1:], strict=True)]
        onto.append(self.owner.readout.adjoint(cotangents))
        return tuple(each for kinked, each in zip(self._ends_in_kink, onto, strict=True) if kinked)

    def squared_gradients(self) -> Slopes:
        """The share of its own layer in `‖∂z_k/∂w‖²` at every kink: `‖h_{k-1}‖² + 1 if biased`."""
        squares = zip(self._ends_in_kink, self.entering, self.owner.chain, strict=True)
        return tuple(
            hidden.square().sum(1, keepdim=True) + (1.0 if layer.bias else 0.0)
            for kinked, hidden, layer in squares
            if kinked
        )

    @property
    def _ends_in_kink(self) -> list[bool]:
        """Which layers end in a kink."""
        return [layer.negative_slope is not None for layer in self.owner.chain]

    def _leaving(self, cotangents: Tensor, examples: Rows | None) -> list[Tensor]:
        """`Δ_k = ∂⟨cotangents, m⟩/∂z_k` of every layer, one row for each row of cotangents."""
        if self.owner.readout.scores == 1:
            rows = self._unit if examples is None else [delta[examples] for delta in self._unit]
            return [cotangents[:, None] * delta for delta in rows]
        readout = self.owner.readout if examples is None else self.owner.readout.take(examples)
        return self._backward(readout.adjoint(cotangents), examples)

    @cached_property
    def _unit(self) -> list[Tensor]:
        """`∂m/∂z_k`, where there is one margin an example."""
        return self._backward(self.owner.readout.adjoint(torch.ones_like(self.margins)), None)

    def _backward(self, sensitivity: Tensor, examples: Rows | None) -> list[Tensor]:
        leaving = []
        for layer, slope in zip(reversed(self.owner.chain), reversed(self.slopes), strict=True):
            leaving.append(_sloped(sensitivity, slope if slope is None or examples is None else slope[examples]))
            if layer is not self.owner.chain[0]:
                sensitivity = leaving[-1] @ self.views[layer.weight]
        return leaving[::-1]
