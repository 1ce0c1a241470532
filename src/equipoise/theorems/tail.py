"""The linear tail of a network tends to low rank and aligns: the bounds of T3.1 and T3.2, whatever stands below.

Everything follows from the conserved matrices `C_k = W_{k+1}ᵀ W_{k+1} - W_k W_kᵀ - b_k b_kᵀ` (minus the value of the
matrix-wise law between the two layers) at initialisation. What they drifted by since is measured,
`E_k = C_k(now) - C_k(0)`, and enters by its exact effect on the bound: every measure of `C` used here is subadditive.
Rounding enters as a bound too (`_rounding`), so that the bounds hold for the weights as stored, not only for real
numbers. All figures are computed in float64.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.errors import InputError
from equipoise.graph.chain import Layer
from equipoise.laws.commutant import Full
from equipoise.laws.derive import Between
from equipoise.linalg import leading_triplets, principal_angles

Weights = Mapping[str, Tensor]
Measure = Callable[[Tensor, int], float]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Tail:
    """Linear layers `W_{K0}, …, W_L` and the rank `r` that their outputs ask for: 1 for one score, `C - 1` for `C`.

    A layer narrower than `r` allows for less: see `ranks` and `directions`.

    >>> Tail.of((Layer("a", None, None), Layer("b", None, None)), {"a": torch.eye(3), "b": torch.ones(3, 3)}).rank
    2
    """

    layers: tuple[Layer, ...]
    rank: int = 1

    @classmethod
    def of(cls, layers: tuple[Layer, ...], weights: Weights) -> "Tail":
        """The tail with the rank that its number of outputs asks for.

        Raises `InputError` for no layers: T3 then says nothing.
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
        >>> Tail.of(layers, weights).ranks(weights)
        {'a': 2, 'b': 2, 'c': 2}
        """
        found, rank = {}, self.rank
        for layer in reversed(self.layers):
            rank = min(rank, *matrix(weights[layer.weight]).shape)
            found[layer.weight] = rank
        return {layer.weight: found[layer.weight] for layer in self.layers}

    def directions(self, lower: Layer, upper: Layer, weights: Weights) -> int:
        """How many directions T3.2 compares between two layers: `r`, or what fits into either of them."""
        return min(self.rank, *incoming(lower, weights).shape, *matrix(weights[upper.weight]).shape)


def conserved_matrix(lower: Layer, upper: Layer, weights: Weights) -> Float[Tensor, "d d"]:
    """`C_k = W_{k+1}ᵀ W_{k+1} - W_k W_kᵀ - b_k b_kᵀ` in float64: minus the value of the law between the two (T2, T3.1).

    >>> weights = {"a": torch.eye(2), "b": torch.tensor([[3.0, 2.0]])}
    >>> conserved_matrix(Layer("a", None, None), Layer("b", None, None), weights)
    tensor([[8., 6.],
            [6., 3.]], dtype=torch.float64)
    """
    doubles = {name: weights[name].double() for name in (lower.weight, lower.bias, upper.weight) if name}
    producers = (lower.weight,) if lower.bias is None else (lower.weight, lower.bias)
    return -Between(producers, (upper.weight,), Full(len(doubles[lower.weight]))).law(doubles).value(doubles)


def deficit_bounds(tail: Tail, initial: Weights, final: Weights | None = None) -> dict[str, float]:
    """`D_k`, the bound of T3.1 on `Δ_k = Σ_{i>ρ} σ_i(W_k)²` of every tail layer, by its name, `ρ` of `Tail.ranks`.

    `D_k = D_{k+1} + Σ_{i≤ρ} λ_i(C_k) - tr C_k` with `C_k` at initialisation, the rounding of `C_k` added; zero where
    the shape of `W_k` allows for no more than `ρ`; of the last layer zero for one score and `‖1ᵀ W_L‖² / C` for `C`.
    With `final` weights the effect of the drift since is added. In the
    units of `‖W‖²`; divide by `‖W_k‖_F²` at any time of the run for the bound on the residual then. Given one set of
    weights only, the bound holds for these weights, whatever the optimizer. Raises `InputError` when the two sets
    differ in names or shapes.

    >>> tail = Tail((Layer("a", None, None), Layer("b", None, None)))
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


def certified_bounds(tail: Tail, initial: Weights, final: Weights) -> dict[str, float]:
    """`D_k / ‖W_k‖_F²`, the certified bound on `1 - Σ_{i≤ρ} σ_i²/‖W_k‖_F²` of every tail layer at the final weights.

    1 where the bound says nothing (T3.1). Raises as `deficit_bounds`.

    >>> tail = Tail((Layer("a", None, None), Layer("b", None, None)))
    >>> weights = {"a": torch.eye(2), "b": torch.tensor([[3.0, 0.0]])}
    >>> {name: round(bound, 9) for name, bound in certified_bounds(tail, weights, weights).items()}
    {'a': 0.5, 'b': 0.0}
    """
    deficits = deficit_bounds(tail, initial, final)
    squares = {name: float(final[name].double().square().sum()) for name in deficits}
    return {name: min(1.0, ratio(deficits[name], squares[name])) for name in deficits}


def misalignment_bounds(tail: Tail, initial: Weights, final: Weights) -> dict[str, float]:
    """The bound of T3.2 on `‖sin Θ‖_F²` for every tail layer but the last, by the lower layer's name.

    `Θ` are the principal angles between the top-`ρ` left space of `[W_k b_k]` and the top-`ρ` right space of `W_{k+1}`,
    `ρ` as many directions as both have (`Tail.directions`): see `sine_bound`. Raises as `deficit_bounds`.

    >>> tail = Tail((Layer("a", None, None), Layer("b", None, None)))
    >>> weights = {"a": torch.diag(torch.tensor([3.0, 1.0])), "b": torch.tensor([[4.0, 0.0]])}
    >>> {name: round(bound, 9) for name, bound in misalignment_bounds(tail, weights, weights).items()}
    {'a': 0.25}
    """
    require_same_shapes(initial, final)
    bounds = {}
    for lower, upper in pairwise(tail.layers):
        rank, before = tail.directions(lower, upper, final), conserved_matrix(lower, upper, initial)
        change, rounding = conserved_matrix(lower, upper, final) - before, _rounding(lower, upper, final)
        writes, reads = incoming(lower, final), matrix(final[upper.weight])
        bounds[lower.weight] = sine_bound(certainly(spread, rank, before, change, rounding), writes, reads, rank)
    return bounds


def sine_bound(spread: float, writes: Float[Tensor, "d inputs"], reads: Float[Tensor, "outputs d"], rank: int) -> float:
    """The bound on `‖sin Θ‖_F²`, `Θ` between what `W` writes and what `V` reads, from the spread of `C = VᵀV - WWᵀ`.

    With `A = VᵀV`, `B = WWᵀ = A - C`, the top-`ρ` left space `P` of `W` and right space `Q` of `V`: Ky Fan gives
    `tr B P ≥ tr B Q`, so `(σ_ρ(V)² - σ_{ρ+1}(V)²) Σ sin² ≤ tr A (Q - P) ≤ ⟨C, Q - P⟩ ≤ Σ_i sin θ_i (λ_i - λ_{d+1-i})`,
    and by Cauchy-Schwarz

        `‖sin Θ‖_F ≤ (Σ_{i≤ρ} (λ_i(C) - λ_{d+1-i}(C))²)^{1/2} / (σ_ρ(V)² - σ_{ρ+1}(V)²)`,

    the square of what T3.2 states for `ρ = 1`. Rounding is added; `min(ρ, d - ρ)`, the most there can be, where it says
    nothing. `ρ` must fit into both matrices.

    >>> V = torch.tensor([[4.0, 0.0]], dtype=torch.float64)
    >>> round(sine_bound(4.0, torch.eye(2).double(), V, 1), 9), sine_bound(64.0, torch.eye(2).double(), V, 1)
    (0.0625, 1.0...)
    """
    gap, most = _gap(reads, rank), angles(len(writes), rank)
    directed = gap > 0 and bool(writes.any())  # a zero matrix has no direction to align
    largest = min(most, (spread / gap) ** 2) if directed else most
    orthonormal = 2 * math.sqrt(rank) * _EPS * max(*writes.shape, *reads.shape)  # two computed bases, `p eps` each
    return (math.sqrt(largest) + orthonormal) ** 2


def sines(writes: Float[Tensor, "d inputs"], reads: Float[Tensor, "outputs d"], rank: int) -> float:
    """`‖sin Θ‖_F²` of `sine_bound`, of all `ρ` directions, however small their singular values.

    >>> round(sines(torch.eye(2).double()[:, :1], torch.tensor([[0.6, 0.8]]).double(), 1), 6)
    0.64
    """
    left, right = leading_triplets(writes, rank).left, leading_triplets(reads, rank).right
    return float(principal_angles(left, right).sin().square().sum())


# --- measures of a symmetric matrix: subadditive, so that the effect of a drift can be added ---


def excess(symmetric: Float[Tensor, "d d"], rank: int) -> float:
    """`Σ_{i≤r} λ_i(C) - tr C = -Σ_{i>r} λ_i(C)`, without the subtraction; changes by at most `√(d - r) ‖F‖_F`."""
    return -float(torch.linalg.eigvalsh(symmetric)[: max(0, len(symmetric) - rank)].sum())


def spread(symmetric: Float[Tensor, "d d"], rank: int) -> float:
    """`(Σ_i (λ_i - λ_{d+1-i})²)^{1/2}` over the `min(r, d - r)` outermost pairs; changes by at most `√2 ‖F‖_F`."""
    values, pairs = torch.linalg.eigvalsh(symmetric), angles(len(symmetric), rank)
    return float((values.flip(0) - values)[:pairs].norm())


def bounded(
    measure: Measure, rank: int, lower: Layer, upper: Layer, initial: Weights, final: Weights | None = None
) -> float:
    """`measure(C(0)) + measure(E) + rounding ≥ measure(C(now))`."""
    before = conserved_matrix(lower, upper, initial)
    change = torch.zeros_like(before) if final is None else conserved_matrix(lower, upper, final) - before
    return certainly(measure, rank, before, change, _rounding(lower, upper, initial if final is None else final))


def certainly(measure: Measure, rank: int, before: Tensor, change: Tensor, rounding: float) -> float:
    """`measure(C) + measure(E)` and what rounding may add: that of `C`, `‖F‖_F ≤ rounding`, and of its eigenvalues.

    LAPACK's eigenvalues are those of a matrix within `p(d) eps ‖C‖` of the given one; `p(d) = d` is taken.
    """
    size = len(before)
    rounding += size * _EPS * float(before.norm() + change.norm())
    return measure(before, rank) + measure(change, rank) + math.sqrt(max(2, size - rank)) * rounding


def _rounding(lower: Layer, upper: Layer, weights: Weights) -> float:
    """A bound on `‖fl(C_k) - C_k‖_F`, and on what the decomposition of the two matrices may add to it.

    `|fl(AB) - AB| ≤ γ_q |A||B|` with `γ_q ≤ q eps` in any order of summation, `q` the inner dimension (Higham,
    *Accuracy and Stability*, §3.5). Computed singular vectors are exact for matrices within `p eps ‖W‖` of the given
    ones, which moves each square by `2 p eps ‖W‖²`; `p` the larger dimension.
    """
    return sum(gram_rounding(side) for side in (matrix(weights[upper.weight]), incoming(lower, weights)))


def gram_rounding(side: Float[Tensor, "rows columns"]) -> float:
    """The share of one matrix in `_rounding`: `(3 p + 2) eps ‖W‖_F²`."""
    return (3 * max(side.shape) + 2) * _EPS * float(side.square().sum())


def matrix(weight: Float[Tensor, "out in *taps"]) -> Float[Tensor, "out rest"]:
    """A weight as a matrix in float64: of a 1×1 convolution, the taps dropped."""
    return weight.double().flatten(1)


def incoming(layer: Layer, weights: Weights) -> Float[Tensor, "out rest"]:
    """`[W_k b_k]`, or `W_k` where there is no bias."""
    plain = matrix(weights[layer.weight])
    return plain if layer.bias is None else torch.cat([plain, weights[layer.bias].double()[:, None]], 1)


def ratio(part: float, whole: float) -> float:
    """`part / whole`, with `0/0 = 0`."""
    return part / whole if whole > 0 else (0.0 if part == 0 else math.inf)


def _last_deficit(tail: Tail, initial: Weights, final: Weights | None) -> float:
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


def _gap(above: Tensor, rank: int) -> float:
    """`σ_r² - σ_{r+1}²`, the rounding of the singular values (LAPACK's `p(d) eps σ_1` each, `p(d) = d`) taken off."""
    values = [*leading_triplets(above, rank + 1).values.tolist(), 0.0, 0.0]
    if rank > min(above.shape):
        return 0.0
    upper, lower = values[rank - 1 : rank + 1]
    return (upper - lower) * (upper + lower) - 4 * max(above.shape) * _EPS * values[0] ** 2


def angles(size: int, rank: int) -> int:
    """How many principal angles two spaces of that rank can have between them."""
    return max(0, min(rank, size - rank))


def require_same_shapes(initial: Weights, final: Weights) -> None:
    """Raises `InputError`, naming the first difference, unless both have the same names and shapes."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (initial, final)]
    differing = sorted(
        name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
    )
    if differing:
        first = differing[0]
        raise InputError(
            expected="initial weights with the names and shapes of the final ones",
            found=f"{first}: {shapes[0].get(first)} initially, {shapes[1].get(first)} now",
            remedy="pass initial=dict(model.named_parameters()), copied before training",
        )
