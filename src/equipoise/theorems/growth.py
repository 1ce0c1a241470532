"""All layers of a chain grow together, and margins force them to: T3.3."""

import math

import torch

from equipoise.graph.chain import Layer
from equipoise.theorems.tail import Weights, require_same_shapes

_EPS = torch.finfo(torch.float64).eps


def norm_bounds(
    chain: tuple[Layer, ...], initial: Weights, final: Weights, margin: float, radius: float
) -> dict[str, float]:
    """A lower bound on `‖W_k‖_F` of every layer, from the smallest margin alone; for chains without biases (T3.3).

    With `c = mean_j ‖W_j‖_F² - ‖W_k‖_F²`, constant, `margin ≤ radius · Π_j ‖W_j‖_F ≤ radius · (‖W_k‖_F² + c)^{L/2}`,
    `radius` the largest `‖x_i‖` (times `√2` for the difference of two scores). So the norm tends to infinity with the
    margin. `c` is that of initialisation, its drift since taken off the bound; slopes beyond 1 are taken into the
    radius. Raises `InputError` when the two sets differ in names or shapes.

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
