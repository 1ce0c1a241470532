"""Bottleneck structure in learned features: low dimension versus regularity (Jacot 2023)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.measure import jacobian_spectrum, linear_representation_cost, spectrum
from equipoise.networks import mlp
from equipoise.optim import minimise


@dataclass(frozen=True)
class BottleneckOfRankTwo:
    """A map of rank `rank` between spaces of `width`, fitted by a deep ReLU network with a ridge."""

    rank: int = 2
    inputs: int = 6
    width: int = 16
    layers: int = 6
    examples: int = 60
    ridge: float = 1e-3
    depths: tuple[int, ...] = (16, 64, 256)
    iterations: int = 4000


def measure(case: PaperCase[BottleneckOfRankTwo]) -> Outcome:
    """The excess of the cost of depth over its limit, and the singular values of the middle layer."""
    setting, generator = case.setting, case.generator()
    values = torch.rand(3, generator=generator, dtype=torch.float64) * 2 + 0.5
    A = torch.diag(values)
    limit, square = 2 * float(values.log().sum()), float(values.log().square().sum())
    errors = [linear_representation_cost(A, depth) - 3 * depth - limit for depth in setting.depths]
    relative = abs(errors[-1] * setting.depths[-1] / (2 * square) - 1)
    model = fitted(case, generator)
    middle = spectrum(model.get_submodule(f"layer{setting.layers // 2 + 1}").get_parameter("weight").detach()).values
    count = int((middle > 0.5).sum())
    X = torch.randn(30, setting.inputs, generator=generator, dtype=torch.float64)
    found = jacobian_spectrum(model, X)
    figures = [
        Comparison("rank of the Jacobian at 10% of its largest singular value", float(found.rank(0.1))),
        Comparison("R(A; L) - 3L at the largest depth", errors[-1] + limit),
        Comparison("2 log|A|₊", limit),
    ]
    figures += [Comparison(f"singular value {k + 1} of the middle layer", float(middle[k])) for k in range(4)]
    curves = [Curve("middle layer", [(float(k + 1), max(float(s), 1e-12)) for k, s in enumerate(middle)])]
    return Outcome((relative, float(abs(count - setting.rank))), figures, curves)


def fitted(case: PaperCase[BottleneckOfRankTwo], generator: torch.Generator) -> nn.Module:
    """The network that fits `x ↦ 2 B σ(A x)` with `A` of that many rows, by Adam and then L-BFGS."""
    setting = case.setting
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    X = draw(setting.examples, setting.inputs)
    left, right = (torch.linalg.qr(draw(setting.inputs, setting.rank)).Q for _ in range(2))
    y = 2 * torch.relu(X @ left) @ right.T
    widths = [setting.inputs, *[setting.width] * (setting.layers - 1), setting.inputs]
    model = mlp(widths, init="kaiming", seed=case.seed)

    def loss(network: nn.Module) -> Tensor:
        return 0.5 * (network(X) - y).square().sum(1).mean()

    warm = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(1500):
        warm.zero_grad()
        loss(model).backward()
        warm.step()
    point = minimise(model, loss, ridge=setting.ridge, iterations=setting.iterations, newton=0, tolerance=1e-6)
    case.log(value=point.value, gradient_norm=point.gradient_norm)
    return point.model


PAPER = Paper(
    key="jacot2023bottleneck",
    claim="Deep networks with weight decay keep as many singular values near one in their middle layers as the "
    "function has dimensions, and the cost of depth tends to L times that rank plus twice the log-pseudo-determinant.",
    basis="The limit for linear networks is derived here, with its error (2/L) Σ log² s; for ReLU networks the "
    "statement was read in the abstract and is measured at one size, on a map whose bottleneck coordinates are not "
    "negative.",
    tried="A linear map of rank 2 keeps three singular values near one in a network without biases: non-negative "
    "activations span a plane only by three directions (docs/theory.md, T10).",
    quick=BottleneckOfRankTwo(),
    criteria=(
        Criterion(
            "relative difference of R(A; L) - L·rank - 2 log|A|₊ from (2/L) Σ log² s, at the largest depth",
            "≤",
            0.02,
            "The next term of the expansion is smaller by Σ log³ s / L, some 1% at L = 256.",
        ),
        Criterion(
            "difference of the number of singular values above 0.5 in the middle layer from the rank of the function",
            "≤",
            1e-9,
            "The claim is exactly as many.",
        ),
    ),
    measure=measure,
    picture=Picture("number", "singular value of the middle layer", level=0.5),
)
