"""What a certificate is made from: a network, its weights on the way and at the end, the data, and what follows."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from equipoise.graph.capture import Captured
from equipoise.graph.chain import Layer
from equipoise.graph.degrees import Homogeneity, homogeneity
from equipoise.laws import Law, Laws
from equipoise.losses import Loss, log_risk
from equipoise.measure.margins import binary_margins, class_margins
from equipoise.theorems.rounding import score_rounding
from equipoise.theorems.tail import Tail, ratio

Named = dict[str, Tensor]
Recorded = Callable[[str, str, str], float | None]  # the last value of (observer, quantity, place)


def _norm(weights: Named) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in weights.values()))


@dataclass(frozen=True)
class Point:
    """The weights at one instant of a run, and its growth `s = log(‖w‖/‖w₀‖)`."""

    growth: float
    weights: Named


def _nothing(observer: str, quantity: str, place: str) -> None:
    """What a model alone has on record."""


@dataclass(frozen=True)
class Evidence:
    """A network read once, its weights in float64, the data and the loss.

    `points` are the weights saved along a run in order of growth, the initial and the final ones among them; a single
    one where only the final weights are known. `saved` are those on the way under their names. `example_weights` are
    `w_i` of `R = Σ w_i ℓ_i`, which add up to 1; None where all are `1/n`. `dtype` is what training computed in.
    `predicted` is what the laws should have changed by since the start (T2.2), where the optimizer was gradient descent
    and kept count. `recorded` reads what a run wrote down: told beside a claim, never believed.
    """

    captured: Captured
    laws: Laws
    chain: tuple[Layer, ...] | None
    tail: Tail
    points: tuple[Point, ...]
    initial: Named | None
    X: Tensor
    y: Tensor
    loss: Loss
    example_weights: Tensor | None = None
    dtype: torch.dtype = torch.float64
    predicted: Mapping[str, Tensor] = field(default_factory=dict)
    saved: Mapping[str, Named] = field(default_factory=dict)
    missed: float = 0.0  # by how much the steps of a flow missed their midpoints, all together: see `slack`
    recorded: Recorded = _nothing

    @property
    def final(self) -> Named:
        """The weights that the certificate is about."""
        return self.points[-1].weights

    @cached_property
    def scores(self) -> Tensor:
        """`f(x_i)`, one row an example, at the final weights."""
        return self.scores_at(self.final)

    def scores_at(self, weights: Named) -> Tensor:
        """`f(x_i)`, one row an example."""
        with torch.no_grad():
            return self.captured.run(weights, self.X).reshape(len(self.y), -1)

    @cached_property
    def margins(self) -> Tensor:
        """`y_i f(x_i)`, or `f_{y_i} - f_c` for every other class, at the final weights, recomputed."""
        return self.margins_of(self.scores)

    def margins_of(self, scores: Tensor) -> Tensor:
        """Margins of given scores."""
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
        """The relative rounding of the arithmetic that training computed in."""
        return torch.finfo(self.dtype).eps

    @property
    def coarseness(self) -> float:
        """`eps` in units of that of float64."""
        return self.eps / torch.finfo(torch.float64).eps

    @cached_property
    def rounding(self) -> float | None:
        """A bound on the rounding of any margin, hence of `log R`, which is 1-Lipschitz in them; None where unknown."""
        one = score_rounding(self.captured, self.final, self.X)
        return 2 * one if one is not None and self.loss.multiclass else one

    @property
    def certain_margin(self) -> float:
        """The smallest margin, rounding taken off where it is known."""
        return float(self.margins.min()) - (self.rounding or 0.0)

    @property
    def radius(self) -> float:
        """The largest `‖x_i‖`."""
        return float(self.X.flatten(1).norm(dim=1).max())

    @cached_property
    def homogeneity(self) -> Homogeneity:
        """The degree in all weights, or what stands in the way."""
        return homogeneity(self.captured)

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
        """What the drift of a law may be, in its own units, because steps missed their midpoints: exact ones have none.

        A remainder `r` of a step changes a quadratic law by at most `2 ‖w‖ ‖r‖`, one that is linear in `w` by `‖r‖` for
        each row summed. A run records `Σ ‖r‖`, as far as its iterations saw it; twice that is granted.
        """
        norm, largest = math.sqrt(self.square), max(map(_norm, (point.weights for point in self.points)))
        if next(law for law in self.exact_laws if law.name == name).kind == "shift":
            return ratio(2 * self.missed * math.sqrt(max(map(len, self.final.values()))), norm)
        return ratio(4 * self.missed * largest, self.square)

    def _drift(self, law: Law, initial: Named) -> float:
        change = law.value(self.final) - law.value(initial)
        change = change - self.predicted.get(law.name, torch.zeros_like(change)).to(change)
        return ratio(float(change.norm()), math.sqrt(self.square) if law.kind == "shift" else self.square)
