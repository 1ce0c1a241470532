"""Implicit bias of large depth networks: a notion of rank for nonlinear functions (Jacot 2023)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.measure import linear_representation_cost, spectrum
from equipoise.networks import mlp
from equipoise.optim import CriticalPoint, minimise


@dataclass(frozen=True)
class LargeDepth:
    """A map of full rank with unequal singular values, fitted by linear networks of growing depth with a ridge."""

    values: tuple[float, ...] = (3.0, 1.0, 0.5)
    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    width: int = 5
    ridge: float = 0.08
    noise: float = 1e-3
    linear_depth: int = 256
    iterations: int = 3000


def measure(case: PaperCase[LargeDepth]) -> Outcome:
    """`R(A; L)/L`, and how many singular values above 0.5 the middle layer keeps as depth grows."""
    setting, generator = case.setting, case.generator()
    spread = torch.rand(3, generator=generator, dtype=torch.float64) * 2 + 0.5
    over_depth = linear_representation_cost(torch.diag(spread), setting.linear_depth) / setting.linear_depth
    counts = [middle_count(case, depth) for depth in setting.depths]
    rise = max(after - before for before, after in pairwise(counts))
    figures = [Comparison("R(A; L)/L at L = 256, rank 3", over_depth)]
    figures += [
        Comparison(f"singular values above 0.5, {depth} layers", float(count))
        for depth, count in zip(setting.depths, counts, strict=True)
    ]
    curves = [
        Curve(
            "middle layer", [(float(depth), float(count)) for depth, count in zip(setting.depths, counts, strict=True)]
        )
    ]
    return Outcome((abs(over_depth - 3), float(rise), float(counts[-1])), figures, curves)


def middle_count(case: PaperCase[LargeDepth], depth: int) -> int:
    """Singular values above 0.5 in the middle layer of the best network: from factors of the map cut to each rank."""
    target = drawn_map(case)
    points = [critical_point(case, depth, target, rank) for rank in range(len(target) + 1)]
    best = min(points, key=lambda point: point.value)
    case.log(depth=depth, values=[point.value for point in points], gradient_norm=best.gradient_norm)
    return int((spectrum(list(best.model.parameters())[depth // 2].detach()).values > 0.5).sum())


def drawn_map(case: PaperCase[LargeDepth]) -> Tensor:
    """A matrix of these singular values in random bases."""
    n, generator = len(case.setting.values), case.generator(1)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    return left @ torch.diag(torch.tensor(case.setting.values).double()) @ right.T


def critical_point(case: PaperCase[LargeDepth], depth: int, target: Tensor, rank: int) -> CriticalPoint:
    """From balanced factors of the map cut to a rank, and a little noise: a saddle would be left."""
    setting, n = case.setting, len(target)
    X, generator = torch.eye(n, dtype=torch.float64), case.generator(2)
    model = mlp([n, *[setting.width] * (depth - 1), n], linear_tail=depth)
    left, values, right = torch.linalg.svd(target)
    factor = torch.diag(torch.cat([values[:rank], torch.zeros(n - rank).double()]) ** (1 / depth))
    ends = [right.T, *[torch.eye(setting.width, n, dtype=torch.float64)] * (depth - 1), left]
    with torch.no_grad():
        for parameter, below, above in zip(model.parameters(), ends, ends[1:], strict=False):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(above @ factor @ below.T + setting.noise * noise)

    def loss(network: nn.Module) -> Tensor:
        return 0.5 * (network(X).T - target).square().sum()

    return minimise(model, loss, ridge=setting.ridge, iterations=setting.iterations, tolerance=1e-7)


PAPER = Paper(
    key="jacot2023implicit",
    claim="The cost of depth over depth tends to the rank of the function, and with a ridge deeper networks fit "
    "functions of ever lower rank.",
    basis="The limit for linear networks is derived here; the fall of the rank is measured on linear networks, as "
    "the best of the critical points of each rank: σ goes where L λ σ^{2/L} > σ².",
    tried="From one orthogonal start the count stays at 2: local minima keep singular values that the best one drops.",
    quick=LargeDepth(),
    criteria=(
        Criterion(
            "|R(A; L)/L - rank A| at L = 256",
            "≤",
            0.05,
            "2 Σ log s / L, for singular values between ½ and 5/2 at most 6 · 0.92 / 256 = 0.02.",
        ),
        Criterion(
            "largest rise of the count from one depth to the next",
            "≤",
            0.0,
            "The claim is that it falls, or stays: a count has no rounding.",
        ),
        Criterion(
            "singular values above 0.5 in the middle of the deepest network",
            "≤",
            1.0,
            "At 32 layers all but the largest cost more than they fit, 32 λ > σ²: it is to reach one.",
        ),
    ),
    measure=measure,
    picture=Picture("layers", "singular values above 0.5 in the middle layer", logarithmic=False),
)
