"""On the convergence of gradient flow on multi-layer linear models (Min, Vidal & Mallada 2023)."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.measure import imbalance_rate


@dataclass(frozen=True)
class TwoFactors:
    """Random factors of random shapes, and gradient flows of ½‖Y - W₁W₂‖² for square `Y`."""

    draws: int = 4000
    flows: int = 5
    size: int = 3
    hidden: int = 6
    time: float = 2.0


def measure(case: PaperCase[TwoFactors]) -> Outcome:
    """The least slack of the bound over the draws, and the largest loss over the bound along the flows."""
    generator = case.generator()
    slacks = [slack(*factors(generator)) for _ in range(case.setting.draws)]
    excess, curves = [], []
    for number in range(case.setting.flows):
        times, losses, bounds = flow_of_factors(case.setting, generator)
        excess.append(float((losses / bounds).max()))
        if number == 0:
            curves = [
                Curve("loss", list(zip(times.tolist(), losses.tolist(), strict=True))),
                Curve("bound e^(-2αt)", list(zip(times.tolist(), bounds.tolist(), strict=True))),
            ]
    attained = sum(abs(each) < 1e-6 for each in slacks)
    figures = [Comparison("draws in which the bound is attained to 1e-6", float(attained))]
    return Outcome((min(slacks), max(excess)), figures, curves)


def factors(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian factors of random shapes and scales, at least as many hidden units as rows and columns."""
    n, m, more = torch.randint(1, 5, (3,), generator=generator).tolist()
    hidden = max(n, m) + more - 1
    a, b = (10 ** (2 * torch.rand(2, generator=generator) - 1)).tolist()
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return a * draw(n, hidden), b * draw(hidden, m)


def slack(first: Tensor, second: Tensor) -> float:
    """`λ_n(W₁W₁ᵀ) + λ_m(W₂ᵀW₂)` less the bound, over the squared norm of both."""
    least = torch.linalg.eigvalsh(first @ first.T)[0] + torch.linalg.eigvalsh(second.T @ second)[0]
    return float((least - imbalance_rate(first, second)) / (first.square().sum() + second.square().sum()))


def flow_of_factors(setting: TwoFactors, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, losses, and `L(0) exp(-2 ∫ bound)`, the bound along the way, by an explicit solver of order eight."""
    n, h = setting.size, setting.hidden
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).numpy()  # noqa: E731
    target, start = draw(n, n), np.concatenate([draw(n, h).ravel(), draw(h, n).ravel()])

    def split(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return w[: n * h].reshape(n, h), w[n * h :].reshape(h, n)

    def velocity(_: float, w: np.ndarray) -> np.ndarray:
        first, second = split(w)
        error = target - first @ second
        return np.concatenate([(error @ second.T).ravel(), (first.T @ error).ravel()])

    times = np.linspace(0, setting.time, 201)
    states = solve_ivp(velocity, (0, setting.time), start, "DOP853", times, rtol=1e-11, atol=1e-13).y.T
    losses = np.array([0.5 * np.square(target - np.matmul(*split(w))).sum() for w in states])
    rates = np.array([imbalance_rate(*(torch.from_numpy(part.copy()) for part in split(w))) for w in states])
    alpha = np.minimum.accumulate(rates)  # the least bound so far, as in the paper's α
    return times, losses, losses[0] * np.exp(-2 * alpha * times)


PAPER = Paper(
    key="min2023convergence",
    claim="Imbalance, and a product away from singular, bound the rate from below at which gradient flow of a "
    "two-layer linear model converges.",
    basis="The bound is recalled and was tested here: with σ_n beside D₋ and σ_m beside D₊ (D = W₁ᵀW₁ - W₂W₂ᵀ) no draw "
    "violates it; with the pairing exchanged nearly a third of them do.",
    quick=TwoFactors(),
    criteria=(
        Criterion(
            "least slack λ_n(W₁W₁ᵀ) + λ_m(W₂ᵀW₂) - bound over all draws, over ‖W₁‖² + ‖W₂‖²",
            "≥",
            -1e-12,
            "An inequality: nothing but the rounding of eigenvalues, some 1e-15 of the norm, may be below zero.",
        ),
        Criterion(
            "largest loss along a flow over e^(-2αt) times the first, α the least bound so far",
            "≤",
            1.0 + 1e-8,
            "An inequality, up to the relative error 1e-11 of the solver along the way.",
        ),
    ),
    measure=measure,
    picture=Picture("time", "loss"),
)
