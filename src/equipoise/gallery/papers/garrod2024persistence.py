"""The persistence of neural collapse despite low-rank bias (Garrod & Keating 2024), in deep unconstrained features."""

from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from equipoise.data import one_hot_examples
from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.measure import linear_representation_cost, neural_collapse
from equipoise.networks import deep_features
from equipoise.optim import CriticalPoint, minimise


@dataclass(frozen=True)
class DeepLinearFeatures:
    """Deep linear unconstrained features, one example a class, cross-entropy and a ridge on all matrices."""

    ridge: float = 2**-10
    most_classes: int = 10
    most_layers: int = 6
    classes: int = 4
    layers: int = 3
    width: int = 6


def measure(case: PaperCase[DeepLinearFeatures]) -> Outcome:
    """Losses of the low-rank rival over those of the collapsed solution; the Hessian at the latter."""
    setting = case.setting
    pairs = [(K, L) for K in range(2, setting.most_classes + 1) for L in range(2, setting.most_layers + 1)]
    wrong = sum(rival_is_cheaper(K, L) != (K >= 6 or (K >= 4 and L >= 3)) for K, L in pairs)
    better = [(K, L) for K, L in pairs if rival_is_cheaper(K, L)]
    ratios = {
        pair: best_loss(rival(pair[0]), pair[1], setting.ridge) / best_loss(collapsed(pair[0]), pair[1], setting.ridge)
        for pair in better
    }
    point = collapsed_point(case)
    X, y = one_hot_examples([1] * setting.classes)
    least = least_curvature(point, X, y, setting.ridge)
    features = point.model.get_parameter("features.weight").detach().T
    figures = [
        Comparison(f"loss of the rival over that of collapse, K = {K}, L = {L}", ratio)
        for (K, L), ratio in ratios.items()
        if K in (4, 6, 10) and L <= 4
    ]
    figures += [
        Comparison("gradient norm at the collapsed point", point.gradient_norm),
        Comparison("NC2 there: distance from a simplex", neural_collapse(features, y).simplex),
    ]
    curves = [
        Curve(f"K = {K}", [(float(L), ratios[K, L]) for L in range(2, setting.most_layers + 1) if (K, L) in ratios])
        for K in (4, 6, 10)
    ]
    return Outcome((float(wrong), max(ratios.values()), least), figures, curves)


def rival(classes: int) -> Tensor:
    """Logits of blocks `[[1, -1], [-1, 1]]`, one for each pair of classes, and 1 for one that is left: rank ⌈K/2⌉."""
    block = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()
    left = [torch.ones(1, 1).double()] * (classes % 2)
    return torch.block_diag(*[block] * (classes // 2), *left)


def collapsed(classes: int) -> Tensor:
    """Logits `I - 11ᵀ/K`: rank K - 1."""
    return torch.eye(classes, dtype=torch.float64) - 1 / classes


def rival_is_cheaper(classes: int, layers: int) -> bool:
    """Whether its least `Σ ‖W‖²` over `L + 1` matrices is smaller: `m 2^{2/(L+1)} < 2m - 1` for an even `K = 2m`."""
    costs = [linear_representation_cost(logits(classes), layers + 1) for logits in (rival, collapsed)]
    return costs[0] < costs[1]


def best_loss(logits: Tensor, layers: int, ridge: float) -> float:
    """The least `cross-entropy(a Z) + λ/2 · R(a Z)` over the scale `a`."""
    targets = torch.arange(len(logits))

    def loss(scale: float) -> float:
        fit = float(F.cross_entropy(scale * logits, targets))
        return fit + 0.5 * ridge * linear_representation_cost(scale * logits, layers + 1)

    return float(minimize_scalar(loss, bounds=(1e-3, 60), method="bounded", options={"xatol": 1e-10}).fun)  # pyright: ignore[reportAttributeAccessIssue]


def collapsed_point(case: PaperCase[DeepLinearFeatures]) -> CriticalPoint:
    """The collapsed solution in a random basis of each layer, brought to where the gradient vanishes."""
    setting, generator = case.setting, case.generator()
    K, L, d = setting.classes, setting.layers, setting.width
    X, y = one_hot_examples([1] * K)
    model = deep_features([1] * K, width=d, depth=L)
    values, basis = torch.linalg.eigh(collapsed(K))
    turns = [torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q[:, :K] for _ in range(L)]
    factor = torch.diag(values.clamp(min=0)) ** (1 / (L + 1)) * 8 ** (1 / (L + 1))
    ends = [basis, *turns, basis]
    with torch.no_grad():
        for parameter, below, above in zip(model.parameters(), ends, ends[1:], strict=False):
            parameter.copy_(above @ factor @ below.T)
    return minimise(model, lambda m: F.cross_entropy(m(X), y), ridge=setting.ridge, tolerance=1e-11)


def least_curvature(point: CriticalPoint, X: Tensor, y: Tensor, ridge: float) -> float:
    """The smallest eigenvalue of the whole Hessian."""
    parameters = {name: each.detach() for name, each in point.model.named_parameters()}
    sizes = [each.numel() for each in parameters.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = zip(parameters.items(), flat.split(sizes), strict=True)
        weights = {name: part.view_as(each) for (name, each), part in parts}
        return (
            F.cross_entropy(torch.func.functional_call(point.model, weights, (X,)), y)
            + 0.5 * ridge * flat.square().sum()
        )

    flat = torch.cat([each.flatten() for each in parameters.values()])
    return float(torch.linalg.eigvalsh(torch.func.hessian(loss)(flat))[0])


PAPER = Paper(
    key="garrod2024persistence",
    claim="In deep linear unconstrained features a solution of lower rank has a lower regularised loss than neural "
    "collapse; collapse is nevertheless a local minimum, which explains that it persists.",
    basis="Read in the abstract; the rival and the inequality are derived here from R(A; L) = L Σ σ^{2/L}. The "
    "curvature is measured at one size.",
    quick=DeepLinearFeatures(),
    criteria=(
        Criterion(
            "pairs (K ≤ 10, 2 ≤ L ≤ 6) in which the rival is cheaper, but not K ≥ 4 and L ≥ 3 or K ≥ 6, or the reverse",
            "≤",
            0.0,
            "The inequality of the regularisers is exact, and decides every pair.",
        ),
        Criterion(
            "largest loss of the rival over that of collapse, each at its best scale, where it is cheaper",
            "≤",
            1.0,
            "At equal scale its cross-entropy is lower too: the other class of its block has twice the margin.",
        ),
        Criterion(
            "smallest eigenvalue of the Hessian at the collapsed solution (K = 4, L = 3)",
            "≥",
            -1e-8,
            "A local minimum has none below zero; the directions of the symmetry have exactly zero, up to rounding and "
            "to the gradient that is left, 1e-11.",
        ),
    ),
    measure=measure,
    picture=Picture("layers", "loss of the rival over that of collapse", logarithmic=False, level=1.0),
    sampled=True,
)
