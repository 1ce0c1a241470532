"""Neural collapse versus low-rank bias: is deep neural collapse really optimal? (Súkeník, Mondelli & Lampert 2024)."""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.measure import spectrum
from equipoise.networks import deep_features
from equipoise.optim import CriticalPoint, minimise


@dataclass(frozen=True)
class DeepReluFeatures:
    """Deep ReLU unconstrained features of four matrices, one example a class, square loss and a ridge."""

    orders: tuple[int, ...] = (4, 5, 6)  # r, with K = r (r - 1)/2 classes
    layers: int = 4
    ridge: float = 1e-3
    noise: float = 1e-3
    iterations: int = 2000


def measure(case: PaperCase[DeepReluFeatures]) -> Outcome:
    """Exactness of the construction, and the loss of its polished form over that of the polished collapse."""
    setting = case.setting
    exact, ratios, figures = 0.0, [], []
    for order in setting.orders:
        edges = incidence(order)
        K = edges.shape[1]
        exact = max(exact, float((torch.relu(readout(edges) @ edges) - torch.eye(K)).abs().max()))
        low = polished(case, weights_of_graph(edges, setting.layers))
        whole = polished(case, [torch.eye(K).double()] * (setting.layers + 1))
        ratios.append(low.value / whole.value)
        ranks = [spectrum(weight.detach()).numerical_rank(1e-2) for weight in low.model.parameters()]
        case.log(classes=K, rival=low.value, collapse=whole.value, gradient=low.gradient_norm, ranks=ranks)
        figures += [
            Comparison(f"loss over that of collapse, K = {K}", ratios[-1]),
            Comparison(f"largest rank before the last ReLU, K = {K}, {order} expected", float(max(ranks[:-1]))),
        ]
    classes = [order * (order - 1) / 2 for order in setting.orders]
    curves = [Curve("strongly regular graph", list(zip(classes, ratios, strict=True)))]
    return Outcome((exact, *ratios), figures, curves)


def incidence(order: int) -> Tensor:
    """Vertices × edges of the complete graph: `AᵀA` is 2 on the diagonal, 1 for edges that meet, 0 for others."""
    edges = list(combinations(range(order), 2))
    return torch.tensor([[float(vertex in edge) for edge in edges] for vertex in range(order)]).double()


def readout(edges: Tensor) -> Tensor:
    """`W = Aᵀ - ½ 11ᵀ`: as each edge has two ends, `W A = AᵀA - 11ᵀ`, and `relu(W A) = I`."""
    return edges.T - 0.5


def weights_of_graph(edges: Tensor, layers: int) -> list[Tensor]:
    """`H = A`, identities of rank r, `W`, and the last matrix `I`, each in a K × K matrix."""
    order, K = edges.shape
    padded = [torch.zeros(K, K).double() for _ in range(layers + 1)]
    padded[0][:order] = edges
    for matrix in padded[1 : layers - 1]:
        matrix[:order, :order] = torch.eye(order)
    padded[layers - 1][:, :order] = readout(edges)
    padded[layers].copy_(torch.eye(K))
    return padded


def polished(case: PaperCase[DeepReluFeatures], weights: list[Tensor]) -> CriticalPoint:
    """The critical point near these weights, of equal norms, a little noise added."""
    setting, K = case.setting, len(weights[0])
    generator, X = case.generator(), torch.eye(K, dtype=torch.float64)
    model = deep_features([1] * K, width=K, depth=setting.layers, rectified=True)
    norm = torch.stack([weight.norm() for weight in weights]).log().mean().exp()
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            noise = torch.randn(K, K, generator=generator, dtype=torch.float64)
            parameter.copy_(norm / weight.norm() * weight + setting.noise * noise)

    def loss(network: nn.Module) -> Tensor:
        return (network(X) - X).square().sum() / (2 * K)

    return minimise(model, loss, ridge=setting.ridge, iterations=setting.iterations, newton=0, tolerance=1e-7)


PAPER = Paper(
    key="sukenik2024neural",
    claim="Deep neural collapse is not optimal with ReLU and several classes: features on a strongly regular graph "
    "have rank about √(2K) and a lower regularised loss.",
    basis="Read in the abstract; the construction from the edges of a complete graph was checked here by hand. At "
    "three matrices it loses at these sizes: four are used.",
    quick=DeepReluFeatures(),
    criteria=(
        Criterion(
            "largest entry of relu((Aᵀ - ½11ᵀ)A) - I",
            "≤",
            1e-12,
            "The identity is exact: these are integers.",
        ),
        Criterion("loss of the graph over that of collapse, K = 6", "≤", 0.96, "In a trial 0.944, and 2% allowed."),
        Criterion("loss of the graph over that of collapse, K = 10", "≤", 0.90, "In a trial 0.883, and 2% allowed."),
        Criterion("loss of the graph over that of collapse, K = 15", "≤", 0.86, "In a trial 0.840, and 2% allowed."),
    ),
    measure=measure,
    picture=Picture("classes", "loss over that of collapse", logarithmic=False, level=1.0),
)
