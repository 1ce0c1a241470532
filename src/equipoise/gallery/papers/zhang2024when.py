"""When are bias-free ReLU networks effectively linear networks? (Zhang, Saxe & Latham 2024)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.networks import mlp, paired_mlp


@dataclass(frozen=True)
class SymmetricData:
    """Inputs `x` and `-x` of unit covariance, an odd linear target, gradient descent of a small step."""

    dimensions: int = 4
    half: int = 40
    hidden: int = 20
    steps: int = 3000
    lr: float = 0.01
    small: float = 1e-3
    long: int = 20_000


def measure(case: PaperCase[SymmetricData]) -> Outcome:
    """The gap to the linear network, that to least squares, and that to the closed form of the time course."""
    setting, generator = case.setting, case.generator()
    raw = torch.randn(setting.half, setting.dimensions, generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(raw, full_matrices=False)
    half = left @ right * math.sqrt(setting.half)  # unit second moments
    X = torch.cat([half, -half])
    beta = torch.randn(setting.dimensions, generator=generator, dtype=torch.float64)
    y = X @ beta
    gap = paired_gap(setting, X, y, case.seed)
    # from a small start that is not paired
    model = mlp([setting.dimensions, setting.hidden, 1], scale=setting.small, seed=case.seed)
    descend(model, X, y, 10 * setting.lr, setting.long)
    error = float((model(X).detach()[:, 0] - y).norm() / y.norm())
    course, curves = time_course(setting, X, y, beta)
    return Outcome((gap, error, course), [Comparison("gap in the paper's setting, ours", gap)], curves)


def descend(model: torch.nn.Module, X: Tensor, y: Tensor, lr: float, steps: int) -> None:
    """Gradient descent of `½ mean (y - f)²`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (model(X)[:, 0] - y).square().mean()).backward()
        optimizer.step()


def linear_part(model: torch.nn.Module) -> Tensor:
    """`½ Wᵀ a`."""
    weight, readout = (parameter.detach() for parameter in model.parameters())
    return 0.5 * (readout @ weight)[0]


def paired_gap(setting: SymmetricData, X: Tensor, y: Tensor, seed: int) -> float:
    """The largest `|f(x) - ½ aᵀ W x|` over the examples, at ten times of the training, over the largest `|y|`."""
    model = paired_mlp([setting.dimensions, setting.hidden, 1], seed=seed)
    gaps = []
    for _ in range(10):
        descend(model, X, y, setting.lr, setting.steps // 10)
        gaps.append(float((model(X).detach()[:, 0] - X @ linear_part(model)).abs().max()))
    return max(gaps) / float(y.abs().max())


def time_course(setting: SymmetricData, X: Tensor, y: Tensor, beta: Tensor) -> tuple[float, list[Curve]]:
    """The largest difference of `‖½ Wᵀ a‖/s` from `e^{st} / (e^{st} - 1 + s/u₀)`, `s = ‖β‖`, from an aligned start."""
    s, lr = float(beta.norm()), setting.lr / 10
    model = paired_mlp([setting.dimensions, setting.hidden, 1])
    weight, readout = model.parameters()
    pair = torch.cat([torch.ones(setting.hidden // 2), -torch.ones(setting.hidden // 2)]).double()
    scale = math.sqrt(2 * 1e-3 * s / setting.hidden)  # u₀ = ½ Σ a² = 1e-3 s
    with torch.no_grad():
        readout.copy_(scale * pair[None])
        weight.copy_(scale * torch.outer(pair, beta / s))
    first = float(linear_part(model).norm())
    times, seen, exact = [], [], []
    each = max(1, int(20 / s / lr / 100))
    for number in range(101):
        t = number * each * lr
        times.append(t)
        seen.append(float(linear_part(model).norm()) / s)
        exact.append(math.exp(s * t) / (math.exp(s * t) - 1 + s / first))
        descend(model, X, y, lr, each)
    worst = max(abs(a - b) for a, b in zip(seen, exact, strict=True))
    curves = [Curve("network", list(zip(times, seen, strict=True)))]
    curves.append(Curve("closed form", list(zip(times, exact, strict=True))))
    return worst, curves


PAPER = Paper(
    key="zhang2024when",
    claim="A two-layer ReLU network without biases learns like a linear network on symmetric data with an odd target, "
    "exactly from paired weights, and up to a small error from a small start.",
    basis="Read in the abstract; the invariance of pairs and the time course are derived here: each neuron sees "
    "½E[e(x) w·x] for odd errors, so with unit second moments u = ‖½Wᵀa‖ obeys du/dt = (s - u) u.",
    quick=SymmetricData(),
    criteria=(
        Criterion(
            "largest |f(x) - ½aᵀWx| over 3,000 steps from paired weights, over the largest |y|",
            "≤",
            1e-12,
            "Pairs are kept exactly by symmetric gradients: rounding, which 3,000 contracting steps do not pile up.",
        ),
        Criterion(
            "relative error against least squares, from a start of 1e-3 without pairs",
            "≤",
            1e-3,
            "The target is linear, so least squares fits it. Neurons of random signs are paired up to their start, "
            "a thousandth of the weights that are learnt.",
        ),
        Criterion(
            "largest difference of ‖½Wᵀa‖/‖β‖ from its closed form",
            "≤",
            1e-2,
            "Gradient descent of step 1e-3 is off from the flow by about that times the time of the rise.",
        ),
    ),
    measure=measure,
    picture=Picture("time", "‖½Wᵀa‖ / ‖β‖", logarithmic=False, level=1.0),
)
