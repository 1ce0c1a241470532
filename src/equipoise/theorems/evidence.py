"""Evidence for a certificate: a network, its weights on the way and at the end, the data, and figures from these."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from equipoise.graph.capture import Captured
from equipoise.graph.chain import Layer
from equipoise.graph.degrees import Homogeneity, QuasiHomogeneity, homogeneity, quasi_homogeneity
from equipoise.graph.evaluate import Kink, kinks, recorded
from equipoise.laws import Law, Laws
from equipoise.losses import Loss, adjustment_of, log_risk
from equipoise.measure.margins import binary_margins, class_margins
from equipoise.theorems.direction import LimitDirection, extrapolate
from equipoise.theorems.linear_tail import LinearTail
from equipoise.theorems.rounding import score_rounding
from equipoise.theorems.spectral_bounds import ratio
from equipoise.theorems.weights import Point, Weights, weight_norm

Recorded: TypeAlias = Callable[[str, str, str], float | None]  # the last value of (observer, quantity, place)

LAW_TOLERANCE = 1e-12
"""Relative drift of a law that rounding alone explains in float64: ten thousand steps, each kept to 1e-16, at worst.

The drift of gradient descent and of Adam, `η² ‖G‖²` a step (T2.2), lies orders above it unless nothing is learnt.
"""


def _no_records(observer: str, quantity: str, place: str) -> None:
    """The records of a model without a run."""


@dataclass(frozen=True)
class Evidence:
    """A network read once, its weights in float64, the data and the loss.

    Attributes:
        captured: the graph of the network.
        laws: its conservation laws, or those given in their place.
        chain: its layers, if it is feedforward and piecewise linear.
        tail: the linear layers it ends in.
        points: the weights saved along a run in order of growth, the initial and the final ones among them; a single
            one where only the final weights are known.
        initial: the weights at initialisation, where known.
        X: inputs, float64 of shape (n, ...), of the examples that weigh anything.
        y: labels of shape (n,): ±1, or class indices.
        loss: the loss.
        example_weights: `w_i` of `R = Σ w_i ℓ_i`, which add up to 1; None where all are `1/n`.
        dtype: the arithmetic of training.
        predicted: the change of each law since the start by T2.2, where gradient descent kept count.
        saved: the weights on the way, under their names.
        missed: the sum of `‖r‖` by which the steps of a flow missed their midpoints: see `slack`.
        recorded: the records of a run: quoted beside a claim, never believed.
        recorded_log_risk: `log R` as the run recorded it; compared with the recomputed one.
    """

    captured: Captured
    laws: Laws
    chain: tuple[Layer, ...] | None
    tail: LinearTail
    points: tuple[Point, ...]
    initial: Weights | None
    X: Tensor
    y: Tensor
    loss: Loss
    example_weights: Tensor | None = None
    dtype: torch.dtype = torch.float64
    predicted: Mapping[str, Tensor] = field(default_factory=dict)
    saved: Mapping[str, Weights] = field(default_factory=dict)
    missed: float = 0.0
    recorded: Recorded = _no_records
    recorded_log_risk: float | None = None

    @property
    def final(self) -> Weights:
        """The weights that the certificate is about."""
        return self.points[-1].weights

    @cached_property
    def scores(self) -> Tensor:
        """`f(x_i)`, one row an example, at the final weights."""
        return self.scores_at(self.final)

    def scores_at(self, weights: Weights) -> Tensor:
        """`f(x_i)`, one row an example."""
        with torch.no_grad():
            return self.captured.run(weights, self.X).reshape(len(self.y), -1)

    @cached_property
    def margins(self) -> Tensor:
        """`y_i f(x_i)`, or `f_{y_i} - f_c` for every other class, at the final weights, recomputed."""
        return self.margins_of(self.scores)

    def margins_of(self, scores: Tensor) -> Tensor:
        """Margins of given scores, adjusted where the loss adjusts them."""
        if (adjustment := adjustment_of(self.loss)) is not None:
            scores = adjustment.adjusted(scores, self.y)
        return class_margins(scores, self.y) if self.loss.multiclass else binary_margins(scores, self.y)

    @cached_property
    def log_risk(self) -> float:
        """`log R = log Σ w_i ℓ_i` at the final weights, recomputed."""
        potential = self.loss.potential(self.margins)
        if self.example_weights is not None:
            counted = len(self.y) * self.example_weights
            potential = potential - torch.log(counted).view(-1, *[1] * (potential.ndim - 1))
        return log_risk(potential)

    @property
    def log_separation(self) -> float:
        """`log(min_i w_i ℓ(0))`: below it no example can be on the wrong side."""
        least = 1 / len(self.y) if self.example_weights is None else float(self.example_weights.min())
        return self.loss.log_at_zero() + math.log(least)

    @property
    def eps(self) -> float:
        """The relative rounding of the arithmetic of training."""
        return torch.finfo(self.dtype).eps

    @property
    def coarseness(self) -> float:
        """`eps` in units of that of float64."""
        return self.eps / torch.finfo(torch.float64).eps

    @cached_property
    def rounding(self) -> float | None:
        """A bound on the rounding of any margin, hence of `log R`, which is 1-Lipschitz in them; None where unknown."""
        one = score_rounding(self.captured, self.final, self.X)
        if one is None or not self.loss.multiclass:
            return one
        adjustment = adjustment_of(self.loss)
        return 2 * one * (1.0 if adjustment is None else float(adjustment.scale.max()))

    @property
    def certain_margin(self) -> float:
        """The smallest margin, rounding taken off where it is known."""
        return float(self.margins.min()) - (self.rounding or 0.0)

    @property
    def radius(self) -> float:
        """The largest `‖x_i‖`."""
        return float(self.X.flatten(1).norm(dim=1).max())

    @property
    def law_tolerance(self) -> float:
        """`LAW_TOLERANCE` in the arithmetic of training."""
        return LAW_TOLERANCE * self.coarseness

    def preactivations(self, bent: tuple[Kink, ...], weights: Weights) -> tuple[Tensor, ...]:
        """The inputs of these activations on all examples."""
        with torch.no_grad():
            return recorded(self.captured, bent, weights, self.X)[1]

    def preactivations_by_layer(self, weights: Weights) -> dict[str, Tensor]:
        """The input of every piecewise-linear activation of one kink, a row an example, by the layer that writes it."""
        bent = kinks(self.captured)
        single = [k for k, kink in enumerate(bent) if kink.negative_slope is not None]  # a maximum is not on or off
        layers = [layer.weight for layer in self.chain or () if layer.negative_slope is not None]
        places = layers if self.chain is not None else [bent[k].source.name for k in single]
        seen = self.preactivations(bent, weights)
        return {place: seen[k].flatten(1) for place, k in zip(places, single, strict=True)}

    @cached_property
    def direction(self) -> LimitDirection | None:
        """The extrapolated limit of `w/‖w‖`; None from fewer than three points."""
        return extrapolate(self.points)

    @cached_property
    def homogeneity(self) -> Homogeneity:
        """The degree in all weights, or the obstacle to one."""
        return homogeneity(self.captured)

    @cached_property
    def quasi_homogeneity(self) -> QuasiHomogeneity:
        """Exponents of the weights under which the scores have degree 1, or the obstacle to any."""
        return quasi_homogeneity(self.captured)

    @property
    def has_biases(self) -> bool:
        """Whether any parameter of a chain is a bias."""
        return any(layer.bias for layer in self.chain or ())

    @property
    def exact_laws(self) -> tuple[Law, ...]:
        """The laws that conserve something, exactly."""
        return tuple(law for law in self.laws if law.exact and law.count > 0)

    @cached_property
    def drifts(self) -> dict[str, float]:
        """`‖C - C₀ - predicted‖/‖w‖²` of every exact law by name (`/‖w‖` where linear in `w`); none without `C₀`."""
        if self.initial is None:
            return {}
        return {law.name: self._drift(law, self.initial) for law in self.exact_laws}

    @cached_property
    def square(self) -> float:
        """`‖w‖²` at the final weights."""
        return sum(float(tensor.square().sum()) for tensor in self.final.values())

    def slack(self, name: str) -> float:
        """The drift of a law that inexact steps explain, in its own units; none for steps that met their midpoints.

        A remainder `r` of a step changes a quadratic law by at most `2 ‖w‖ ‖r‖`, one that is linear in `w` by `‖r‖` for
        each row summed. A run records `Σ ‖r‖`, as far as its iterations saw it; twice that is granted.
        """
        norm, largest = math.sqrt(self.square), max(map(weight_norm, (point.weights for point in self.points)))
        if next(law for law in self.exact_laws if law.name == name).kind == "shift":
            return ratio(2 * self.missed * math.sqrt(max(map(len, self.final.values()))), norm)
        return ratio(4 * self.missed * largest, self.square)

    def _drift(self, law: Law, initial: Weights) -> float:
        change = law.value(self.final) - law.value(initial)
        change = change - self.predicted.get(law.name, torch.zeros_like(change)).to(change)
        return ratio(float(change.norm()), math.sqrt(self.square) if law.kind == "shift" else self.square)
