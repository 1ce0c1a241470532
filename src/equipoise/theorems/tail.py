"""The linear tail of a feedforward chain tends to rank one and aligns: the bounds of THEORY T3.1, T3.2 and T3.3.

Everything follows from the conserved matrices `C_k = W_{k+1}ᵀ W_{k+1} - W_k W_kᵀ - b_k b_kᵀ` at initialisation. What
they drifted by since is measured, `E_k = C_k(now) - C_k(0)`, and enters by its exact effect on the bound:
`C ↦ λ_1(C) - tr C` and `C ↦ λ_max(C) - λ_min(C)` are subadditive. Rounding enters as a bound too (`_rounding`), so
that the bounds hold for the weights as stored, not only for real numbers. All figures are computed in float64.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.errors import InputError
from equipoise.graph.chain import Layer
from equipoise.linalg import leading_triplets

Chain = tuple[Layer, ...]
Weights = Mapping[str, Tensor]

_EPS = torch.finfo(torch.float64).eps


def linear_tail(chain: Chain) -> Chain:
    """The last layers that no activation follows, in order: `W_{K0}, …, W_L` of T3.

    >>> chain = (Layer("a", None, 0.0), Layer("b", None, None), Layer("c", None, None))
    >>> [layer.weight for layer in linear_tail(chain)]
    ['b', 'c']
    """
    rectified = [position for position, layer in enumerate(chain) if layer.kind != "linear"]
    return chain[max(rectified) + 1 :] if rectified else chain


def conserved_matrix(lower: Layer, upper: Layer, weights: Weights) -> Float[Tensor, "d d"]:
    """`C_k = W_{k+1}ᵀ W_{k+1} - W_k W_kᵀ - b_k b_kᵀ` in float64 (T2, T3.1).

    Constant along gradient flow when `lower` is linear; where an activation follows it, only the diagonal is.

    >>> weights = {"a": torch.eye(2), "b": torch.tensor([[3.0, 0.0]])}
    >>> conserved_matrix(Layer("a", None, None), Layer("b", None, None), weights)
    tensor([[ 8.,  0.],
            [ 0., -1.]], dtype=torch.float64)
    """
    above, below = weights[upper.weight].double(), _incoming(lower, weights)
    return above.mT @ above - below @ below.mT


def law_drifts(chain: Chain, initial: Weights, final: Weights) -> dict[str, float]:
    """`‖C_k(now) - C_k(0)‖_F / ‖w‖²` of the law between each layer and the next; the diagonal alone below a ReLU (T2).

    Raises `InputError` when the two sets differ in names or shapes.

    >>> chain = (Layer("a", None, None), Layer("b", None, None))
    >>> weights = {"a": torch.eye(2), "b": torch.tensor([[3.0, 0.0]])}
    >>> law_drifts(chain, weights, weights)
    {'a → b': 0.0}
    """
    require_same_shapes(initial, final)
    square = sum(float(tensor.double().square().sum()) for tensor in final.values())
    drifts = {}
    for lower, upper in pairwise(chain):
        change = conserved_matrix(lower, upper, final) - conserved_matrix(lower, upper, initial)
        kept = change if lower.kind == "linear" else change.diagonal()
        drifts[f"{lower.weight} → {upper.weight}"] = _ratio(float(kept.norm()), square)
    return drifts


def deficit_bounds(chain: Chain, initial: Weights, final: Weights | None = None) -> dict[str, float]:
    """`D_k`, the bound of T3.1 on `Δ_k = ‖W_k‖_F² - σ_1(W_k)²` of every tail layer, by its name.

    `D_L = 0` and `D_k = D_{k+1} + λ_1(C_k) - tr C_k` with `C_k` at initialisation, the rounding of `C_k` added. With
    `final` weights the drift since is added: `λ_1(E_k) - tr E_k`, at most `√(d - 1) ‖E_k‖_F`. In the units of `‖W‖²`;
    divide by `‖W_k‖_F²` at any time of the run for the bound on the rank-one residual then. Given one set of weights
    only, the bound holds for these weights, whatever the optimizer. Raises `InputError` when the last layer has more
    than one output, or the two sets differ in names or shapes.

    >>> chain = (Layer("a", None, None), Layer("b", None, None))
    >>> found = deficit_bounds(chain, {"a": torch.eye(2), "b": torch.tensor([[3.0, 0.0]])})
    >>> round(found["a"], 9), found["b"]
    (1.0, 0.0)
    """
    tail = _checked_tail(chain, initial, final)
    bounds = {tail[-1].weight: 0.0}
    for lower, upper in reversed(list(pairwise(tail))):
        bounds[lower.weight] = bounds[upper.weight] + _bounded(_excess, lower, upper, initial, final)
    return {layer.weight: bounds[layer.weight] for layer in tail}


def certified_bounds(chain: Chain, initial: Weights, final: Weights) -> dict[str, float]:
    """`D_k / ‖W_k‖_F²`, the certified bound on the rank-one residual of every tail layer (T3.1), at the final weights.

    1 where the bound says nothing. Raises as `deficit_bounds`.

    >>> chain = (Layer("a", None, None), Layer("b", None, None))
    >>> weights = {"a": torch.eye(2), "b": torch.tensor([[3.0, 0.0]])}
    >>> {name: round(bound, 9) for name, bound in certified_bounds(chain, weights, weights).items()}
    {'a': 0.5, 'b': 0.0}
    """
    deficits = deficit_bounds(chain, initial, final)
    squares = {name: float(final[name].double().square().sum()) for name in deficits}
    return {name: min(1.0, _ratio(deficits[name], squares[name])) for name in deficits}


def misalignment_bounds(chain: Chain, initial: Weights, final: Weights) -> dict[str, float]:
    """The bound of T3.2 on `1 - ⟨v_{k+1}, u_k⟩²` for every tail layer but the last, by the lower layer's name.

    The sharper form `(λ_max(C_k) - λ_min(C_k)) / (σ_1² - σ_2²)`, `σ` of `W_{k+1}`, drift and rounding added; 1 where it
    says nothing. Raises as `deficit_bounds`.

    >>> chain = (Layer("a", None, None), Layer("b", None, None))
    >>> weights = {"a": torch.diag(torch.tensor([3.0, 1.0])), "b": torch.tensor([[4.0, 0.0]])}
    >>> {name: round(bound, 9) for name, bound in misalignment_bounds(chain, weights, weights).items()}
    {'a': 0.5}
    """
    bounds = {}
    for lower, upper in pairwise(_checked_tail(chain, initial, final)):
        spread = _bounded(_spread, lower, upper, initial, final)
        gap = _gap(final[upper.weight].double())
        directed = gap > 0 and bool(_incoming(lower, final).any())  # a zero matrix has no direction to align
        bounds[lower.weight] = min(1.0, spread / gap) if directed else 1.0
    return bounds


def norm_bounds(chain: Chain, initial: Weights, final: Weights, margin: float, radius: float) -> dict[str, float]:
    """A lower bound on `‖W_k‖_F` of every tail layer, from the smallest margin alone; for chains without biases (T3.3).

    With `c = mean_j ‖W_j‖_F² - ‖W_k‖_F²`, constant, `margin ≤ radius · Π_j ‖W_j‖_F ≤ radius · (‖W_k‖_F² + c)^{L/2}`,
    `radius` the largest `‖x_i‖`. So the norm tends to infinity with the margin. `c` is that of initialisation, its
    drift since taken off the bound; slopes beyond 1 are taken into the radius.

    >>> chain = (Layer("a", None, None), Layer("b", None, None))
    >>> weights = {"a": torch.diag(torch.tensor([2.0, 0.0])), "b": torch.tensor([[2.0, 0.0]])}
    >>> norm_bounds(chain, weights, weights, margin=3.0, radius=1.0)["a"] ** 2
    2.99999...
    """
    tail = _checked_tail(chain, initial, final)
    reach = radius * math.prod(max(1.0, abs(layer.negative_slope or 0.0)) for layer in chain)
    mean_square = (max(margin, 0.0) / reach) ** (2 / len(chain)) if reach > 0 else 0.0
    rounding = 4 * max(tensor.numel() for tensor in final.values()) * _EPS * _mean_square(chain, final)
    bounds = {}
    for layer in tail:
        constants = [_mean_square(chain, w) - float(w[layer.weight].double().square().sum()) for w in (initial, final)]
        square = mean_square - max(constants) - rounding
        bounds[layer.weight] = math.sqrt(max(square, 0.0))
    return bounds


def _excess(matrix: Tensor) -> float:
    """`λ_1(C) - tr C = -Σ_{i>1} λ_i(C)`, without the subtraction."""
    return -float(torch.linalg.eigvalsh(matrix)[:-1].sum())


def _spread(matrix: Tensor) -> float:
    """`λ_max(C) - λ_min(C)`."""
    values = torch.linalg.eigvalsh(matrix)
    return float(values[-1] - values[0])


def _bounded(
    measure: Callable[[Tensor], float], lower: Layer, upper: Layer, initial: Weights, final: Weights | None
) -> float:
    """`measure(C(0)) + measure(E) + rounding ≥ measure(C(now))`: both measures are subadditive.

    Both change by at most `max(√2, √(d - 1)) ‖F‖_F` when `F` is added to the matrix (Ky Fan, Cauchy-Schwarz).
    """
    before = conserved_matrix(lower, upper, initial)
    change = torch.zeros_like(before) if final is None else conserved_matrix(lower, upper, final) - before
    # LAPACK's eigenvalues are those of a matrix within p(d) eps ‖C‖ of the given one; p(d) = d is taken
    eigenvalues = len(before) * _EPS * float(before.norm() + change.norm())
    rounding = _rounding(lower, upper, initial if final is None else final) + eigenvalues
    return measure(before) + measure(change) + max(math.sqrt(2), math.sqrt(len(before) - 1)) * rounding


def _rounding(lower: Layer, upper: Layer, weights: Weights) -> float:
    """A bound on `‖fl(C_k) - C_k‖_F`: `q eps (‖W_{k+1}‖_F² + ‖W_k‖_F² + ‖b_k‖²)`, `q - 2` the inner dimension.

    Because `|fl(AB) - AB| ≤ γ_q |A||B|` with `γ_q = q u / (1 - q u) ≤ q eps` in any order of summation (Higham,
    *Accuracy and Stability*, §3.5).
    """
    above, below = weights[upper.weight], _incoming(lower, weights)
    squares = float(above.double().square().sum() + below.square().sum())
    return (max(above.shape[0], below.shape[1]) + 2) * _EPS * squares


def _incoming(layer: Layer, weights: Weights) -> Tensor:
    """`[W_k b_k]`, or `W_k` where there is no bias."""
    matrix = weights[layer.weight].double()
    return matrix if layer.bias is None else torch.cat([matrix, weights[layer.bias].double()[:, None]], 1)


def _gap(matrix: Tensor) -> float:
    """`σ_1² - σ_2²`, the rounding of the singular values (LAPACK's `p(d) eps σ_1` each, `p(d) = d`) taken off."""
    first, second = [*leading_triplets(matrix, 2).values.tolist(), 0.0][:2]
    return (first - second) * (first + second) - 4 * max(matrix.shape) * _EPS * first**2


def _mean_square(chain: Chain, weights: Weights) -> float:
    return sum(float(weights[layer.weight].double().square().sum()) for layer in chain) / len(chain)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else (0.0 if part == 0 else math.inf)


def _checked_tail(chain: Chain, initial: Weights, final: Weights | None) -> Chain:
    require_one_score(chain, initial)
    if final is not None:
        require_same_shapes(initial, final)
    return linear_tail(chain)


def require_one_score(chain: Chain, weights: Weights) -> None:
    """Raises `InputError` unless the chain ends in a linear layer with one output: `r = 1` in T3."""
    tail = linear_tail(chain)
    outputs = len(weights[tail[-1].weight]) if tail else 0
    if outputs != 1:
        raise InputError(
            expected="a network that ends in a linear layer with one score",
            found=f"{outputs} outputs" if tail else "an activation after the last layer",
            remedy="certify a binary classifier, as of mlp([..., 1], linear_tail=3)",
        )


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
