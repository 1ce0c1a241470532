"""Bounds from a conserved matrix `C = VᵀV - WWᵀ`, what `W` writes and `V` reads (docs/theory.md, T3.1, T3.2).

Every measure of `C` used here is subadditive, so that a drift `E = C(now) - C(0)`, measured, enters by its exact effect
on the bound. Rounding enters as a bound too (`law_rounding`): the bounds hold for the weights as stored, not only for
real numbers. All figures are computed in float64.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.graph.chain import Layer
from equipoise.laws.commutant import Full
from equipoise.laws.derive import Between
from equipoise.linalg import leading_triplets, principal_angles
from equipoise.theorems.weights import Weights

Measure: TypeAlias = Callable[[Tensor, int], float]

_EPS = torch.finfo(torch.float64).eps


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


def sine_bound(spread: float, writes: Float[Tensor, "d inputs"], reads: Float[Tensor, "outputs d"], rank: int) -> float:
    """The bound on `‖sin Θ‖_F²`, `Θ` between what `W` writes and what `V` reads, from the spread of `C = VᵀV - WWᵀ`.

    With `A = VᵀV`, `B = WWᵀ = A - C`, the top-`ρ` left space `P` of `W` and right space `Q` of `V`: Ky Fan gives
    `tr B P ≥ tr B Q`, so `(σ_ρ(V)² - σ_{ρ+1}(V)²) Σ sin² ≤ tr A (Q - P) ≤ ⟨C, Q - P⟩ ≤ Σ_i sin θ_i (λ_i - λ_{d+1-i})`,
    and by Cauchy-Schwarz

        `‖sin Θ‖_F ≤ (Σ_{i≤ρ} (λ_i(C) - λ_{d+1-i}(C))²)^{1/2} / (σ_ρ(V)² - σ_{ρ+1}(V)²)`,

    the square of what T3.2 states for `ρ = 1`. Rounding is added; where the bound exceeds it, the most there can
    be, `min(ρ, d - ρ)`, takes its place. `ρ` must fit into both matrices.

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
    """An upper bound on `measure(C(now))`: `measure(C(0)) + measure(E)` with rounding added."""
    before = conserved_matrix(lower, upper, initial)
    change = torch.zeros_like(before) if final is None else conserved_matrix(lower, upper, final) - before
    return certainly(measure, rank, before, change, law_rounding(lower, upper, initial if final is None else final))


def certainly(measure: Measure, rank: int, before: Tensor, change: Tensor, rounding: float) -> float:
    """`measure(C) + measure(E)` with rounding added, that of `C` (`‖F‖_F ≤ rounding`) and of its eigenvalues.

    LAPACK's eigenvalues are those of a matrix within `p(d) eps ‖C‖` of the given one; `p(d) = d` is taken.
    """
    size = len(before)
    rounding += size * _EPS * float(before.norm() + change.norm())
    return measure(before, rank) + measure(change, rank) + math.sqrt(max(2, size - rank)) * rounding


def law_rounding(lower: Layer, upper: Layer, weights: Weights) -> float:
    """A bound on `‖fl(C_k) - C_k‖_F` plus the backward errors of the decompositions of both matrices.

    `|fl(AB) - AB| ≤ γ_q |A||B|` with `γ_q ≤ q eps` in any order of summation, `q` the inner dimension (Higham,
    *Accuracy and Stability*, §3.5). Computed singular vectors are exact for matrices within `p eps ‖W‖` of the given
    ones, which moves each square by `2 p eps ‖W‖²`; `p` the larger dimension.
    """
    return sum(gram_rounding(side) for side in (matrix(weights[upper.weight]), incoming(lower, weights)))


def gram_rounding(side: Float[Tensor, "rows columns"]) -> float:
    """The share of one matrix in `law_rounding`: `(3 p + 2) eps ‖W‖_F²`."""
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


def angles(size: int, rank: int) -> int:
    """The number of principal angles between two spaces of that rank."""
    return max(0, min(rank, size - rank))


def _gap(above: Tensor, rank: int) -> float:
    """`σ_r² - σ_{r+1}²`, the rounding of the singular values (LAPACK's `p(d) eps σ_1` each, `p(d) = d`) taken off."""
    values = [*leading_triplets(above, rank + 1).values.tolist(), 0.0, 0.0]
    if rank > min(above.shape):
        return 0.0
    upper, lower = values[rank - 1 : rank + 1]
    return (upper - lower) * (upper + lower) - 4 * max(above.shape) * _EPS * values[0] ** 2
