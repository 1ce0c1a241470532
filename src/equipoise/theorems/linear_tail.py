"""The linear tail of a network tends to low rank, aligns and grows: the bounds of T3.1, T3.2 and T3.3.

They hold for any network below the tail, and follow from the conserved matrices
`C_k = W_{k+1}ᵀ W_{k+1} - W_k W_kᵀ - b_k b_kᵀ` at initialisation (minus the value of the matrix-wise law between the two
layers), drift and rounding added as in `spectral_bounds`.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from equipoise.errors import InputError
from equipoise.graph.chain import Layer
from equipoise.theorems.spectral_bounds import (
    bounded,
    certainly,
    conserved_matrix,
    excess,
    gram_rounding,
    incoming,
    law_rounding,
    matrix,
    ratio,
    sine_bound,
    spread,
)
from equipoise.theorems.weights import Weights, require_same_shapes

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class LinearTail:
    """Linear layers `W_{K0}, …, W_L` and the rank `r` that their outputs ask for: 1 for one score, `C - 1` for `C`.

    A layer narrower than `r` allows for less: see `ranks` and `directions`.

    >>> LinearTail.of((Layer("a", None, None), Layer("b", None, None)), {"a": torch.eye(3), "b": torch.ones(3, 3)}).rank
    2
    """

    layers: tuple[Layer, ...]
    rank: int = 1

    @classmethod
    def of(cls, layers: tuple[Layer, ...], weights: Weights) -> "LinearTail":
        """The tail with the rank that its number of outputs asks for.

        Raises:
            InputError: for no layers, which leaves T3 without a statement.
        """
        if not layers:
            raise InputError(
                expected="a network that ends in a linear layer",
                found="an activation, or another operation, after the last layer",
                remedy="certify a network that ends in nn.Linear, as of mlp([..., 1], linear_tail=3)",
            )
        return cls(layers, max(1, len(weights[layers[-1].weight]) - 1))

    def ranks(self, weights: Weights) -> dict[str, int]:
        """`ρ_k`, the rank that each layer tends to, by its name: no more than that of what reads it, and of its shape.

        >>> layers = tuple(Layer(name, None, None) for name in "abc")
        >>> weights = {"a": torch.ones(3, 5), "b": torch.ones(2, 3), "c": torch.ones(4, 2)}
        >>> LinearTail.of(layers, weights).ranks(weights)
        {'a': 2, 'b': 2, 'c': 2}
        """
        found, rank = {}, self.rank
        for layer in reversed(self.layers):
            rank = min(rank, *matrix(weights[layer.weight]).shape)
            found[layer.weight] = rank
        return {layer.weight: found[layer.weight] for layer in self.layers}

    def directions(self, lower: Layer, upper: Layer, weights: Weights) -> int:
        """The number of directions that T3.2 compares between two layers: `r`, or as many as either of them has."""
        return min(self.rank, *incoming(lower, weights).shape, *matrix(weights[upper.weight]).shape)


def deficit_bounds(tail: LinearTail, initial: Weights, final: Weights | None = None) -> dict[str, float]:
    """`D_k`, the bound of T3.1 on `Δ_k = Σ_{i>ρ} σ_i(W_k)²` of every tail layer, by its name.

    `D_k = D_{k+1} + Σ_{i≤ρ} λ_i(C_k) - tr C_k` with `C_k` at initialisation, the rounding of `C_k` added, `ρ` of
    `LinearTail.ranks`; zero where the shape of `W_k` allows for no more than `ρ`; of the last layer zero for one score
    and `‖1ᵀ W_L‖² / C` for `C`.

    Args:
        tail: the linear layers that the network ends in.
        initial: the weights that the laws are taken from. Given alone, the bound holds for these weights, trained by
            any optimizer.
        final: later weights; the effect of the drift since is then added.

    Returns:
        Bounds in the units of `‖W‖²`: divided by `‖W_k‖_F²` at any time of a run they bound the residual then.

    Raises:
        InputError: when the two sets differ in names or shapes.

    >>> tail = LinearTail((Layer("a", None, None), Layer("b", None, None)))
    >>> found = deficit_bounds(tail, {"a": torch.eye(2), "b": torch.tensor([[3.0, 0.0]])})
    >>> round(found["a"], 9), found["b"]
    (1.0, 0.0)
    """
    if final is not None:
        require_same_shapes(initial, final)
    bounds = {tail.layers[-1].weight: _last_deficit(tail, initial, final)}
    ranks = tail.ranks(initial)
    for lower, upper in reversed(list(pairwise(tail.layers))):
        rank, exact = ranks[lower.weight], min(matrix(initial[lower.weight]).shape)
        spilt = 0.0 if rank == exact else bounds[upper.weight] + bounded(excess, rank, lower, upper, initial, final)
        bounds[lower.weight] = spilt
    return {layer.weight: bounds[layer.weight] for layer in tail.layers}


def certified_bounds(tail: LinearTail, initial: Weights, final: Weights) -> dict[str, float]:
    """`D_k / ‖W_k‖_F²`, the certified bound on `1 - Σ_{i≤ρ} σ_i²/‖W_k‖_F²` of every tail layer at the final weights.

    1 where `D_k` exceeds the square norm (T3.1).

    Raises:
        InputError: when the two sets differ in names or shapes.

    >>> tail = LinearTail((Layer("a", None, None), Layer("b", None, None)))
    >>> weights = {"a": torch.eye(2), "b": torch.tensor([[3.0, 0.0]])}
    >>> {name: round(bound, 9) for name, bound in certified_bounds(tail, weights, weights).items()}
    {'a': 0.5, 'b': 0.0}
    """
    deficits = deficit_bounds(tail, initial, final)
    squares = {name: float(final[name].double().square().sum()) for name in deficits}
    return {name: min(1.0, ratio(deficits[name], squares[name])) for name in deficits}


def misalignment_bounds(tail: LinearTail, initial: Weights, final: Weights) -> dict[str, float]:
    """The bound of T3.2 on `‖sin Θ‖_F²` for every tail layer but the last, by the lower layer's name.

    `Θ` are the principal angles between the top-`ρ` left space of `[W_k b_k]` and the top-`ρ` right space of `W_{k+1}`,
    `ρ` as many directions as both have (`LinearTail.directions`): see `sine_bound`.

    Raises:
        InputError: when the two sets differ in names or shapes.

    >>> tail = LinearTail((Layer("a", None, None), Layer("b", None, None)))
    >>> weights = {"a": torch.diag(torch.tensor([3.0, 1.0])), "b": torch.tensor([[4.0, 0.0]])}
    >>> {name: round(bound, 9) for name, bound in misalignment_bounds(tail, weights, weights).items()}
    {'a': 0.25}
    """
    require_same_shapes(initial, final)
    bounds = {}
    for lower, upper in pairwise(tail.layers):
        rank, before = tail.directions(lower, upper, final), conserved_matrix(lower, upper, initial)
        change, rounding = conserved_matrix(lower, upper, final) - before, law_rounding(lower, upper, final)
        writes, reads = incoming(lower, final), matrix(final[upper.weight])
        bounds[lower.weight] = sine_bound(certainly(spread, rank, before, change, rounding), writes, reads, rank)
    return bounds


def norm_bounds(
    chain: tuple[Layer, ...], initial: Weights, final: Weights, margin: float, radius: float
) -> dict[str, float]:
    """A lower bound on `‖W_k‖_F` of every layer, from the smallest margin alone; for chains without biases (T3.3).

    With `c = mean_j ‖W_j‖_F² - ‖W_k‖_F²`, constant, `margin ≤ radius · Π_j ‖W_j‖_F ≤ radius · (‖W_k‖_F² + c)^{L/2}`, so
    that the norm tends to infinity with the margin. `c` is that of initialisation, its drift since taken off the bound.

    Args:
        chain: the layers from the input up, without biases; slopes beyond 1 are taken into the radius.
        initial: weights at initialisation.
        final: the present weights.
        margin: the smallest margin at the present weights.
        radius: the largest `‖x_i‖`; times `√2` here for the difference of two scores.

    Returns:
        The bound by parameter name, 0 where the margin forces nothing.

    Raises:
        InputError: when the two sets differ in names or shapes.

    >>> chain = (Layer("a", None, None), Layer("b", None, None))
    >>> weights = {"a": torch.diag(torch.tensor([2.0, 0.0])), "b": torch.tensor([[2.0, 0.0]])}
    >>> norm_bounds(chain, weights, weights, margin=3.0, radius=1.0)["a"] ** 2
    2.99999...
    """
    require_same_shapes(initial, final)
    contrast = 1.0 if len(final[chain[-1].weight]) == 1 else math.sqrt(2)
    reach = contrast * radius * math.prod(max(1.0, abs(layer.negative_slope or 0.0)) for layer in chain)
    mean_square = (max(margin, 0.0) / reach) ** (2 / len(chain)) if reach > 0 else 0.0
    rounding = 4 * max(tensor.numel() for tensor in final.values()) * _EPS * _mean_square(chain, final)
    bounds = {}
    for layer in chain:
        constants = [_mean_square(chain, w) - _square(layer, w) for w in (initial, final)]
        bounds[layer.weight] = math.sqrt(max(mean_square - max(constants) - rounding, 0.0))
    return bounds


def _mean_square(chain: tuple[Layer, ...], weights: Weights) -> float:
    return sum(_square(layer, weights) for layer in chain) / len(chain)


def _square(layer: Layer, weights: Weights) -> float:
    return float(weights[layer.weight].double().square().sum())


def _last_deficit(tail: LinearTail, initial: Weights, final: Weights | None) -> float:
    """`Δ_L ≤ ‖1ᵀ W_L‖² / C` where the rank is one less than the rows, and nothing beyond the rank elsewhere.

    `1ᵀ W_L` is constant under every loss of differences of scores; what it drifted by is added.
    """
    start = matrix(initial[tail.layers[-1].weight])
    outputs = len(start)
    if outputs <= tail.rank:
        return 0.0
    change = torch.zeros_like(start) if final is None else matrix(final[tail.layers[-1].weight]) - start
    rounding = outputs * _EPS * float(start.norm() + change.norm()) * math.sqrt(outputs)
    sums = float(start.sum(0).norm()) + float(change.sum(0).norm()) + rounding
    return sums**2 / outputs * (1 + 8 * _EPS) + gram_rounding(start + change)
