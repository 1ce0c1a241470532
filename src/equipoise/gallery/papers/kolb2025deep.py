"""Deep weight factorisation (Kolb, Weber, Bischl & Rügamer 2025): weight decay on factors is a sparse penalty."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.parametrize import factorize, penalty


@dataclass(frozen=True)
class SparseRegression:
    """Linear regression on few of many inputs, by SGD on two factors."""

    examples: int = 80
    inputs: int = 40
    support: int = 5
    noise: float = 0.05
    strength: float = 0.1
    lr: float = 0.03
    steps: int = 4000
    depths: tuple[int, ...] = (2, 3, 4)


def measure(case: PaperCase[SparseRegression]) -> Outcome:
    """The penalty at balanced factors; support and coefficients beside the lasso's; how balanced factors end."""
    setting = case.setting
    X, y = _problem(case)
    expected = Lasso(setting.strength, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(X, y).coef_
    torch.manual_seed(case.seed)
    model = factorize(nn.Linear(setting.inputs, 1, bias=False).double(), init="random")
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    optimizer, curve = torch.optim.SGD(model.parameters(), lr=setting.lr, momentum=0.9), []
    for step in range(setting.steps):
        optimizer.zero_grad()
        loss = 0.5 * (model(inputs) - targets).square().mean() + setting.strength * penalty(model)
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            curve.append((float(step + 1), float(np.abs(_coefficients(model) - expected).max())))
            case.log(step=step, loss=float(loss.detach()), error=curve[-1][1])
    first, second = (each.detach() for each in model.get_submodule("parametrizations.weight").parameters())
    found = _coefficients(model)
    differing = np.sum((np.abs(found) > 1e-4) != (expected != 0))
    values = (
        max(_identity_error(case, depth) for depth in setting.depths),
        float(differing),
        float(np.abs(found - expected).max()),
        float((first.abs() - second.abs()).abs().max()),
    )
    kept = Comparison("coefficients of the lasso that are not zero", float(np.sum(expected != 0)))
    return Outcome(values, [kept], [Curve("largest error of a coefficient", curve)])


def _coefficients(model: nn.Module) -> np.ndarray:
    return cast("Tensor", model.weight).detach()[0].numpy()


def _problem(case: PaperCase[SparseRegression]) -> tuple[np.ndarray, np.ndarray]:
    setting, generator = case.setting, np.random.default_rng(case.seed)
    X, w = generator.normal(size=(setting.examples, setting.inputs)), np.zeros(setting.inputs)
    w[: setting.support] = np.resize([1.5, -2.0, 1.0, 0.8, -1.2], setting.support)
    return X, X @ w + setting.noise * generator.normal(size=setting.examples)


def _identity_error(case: PaperCase[SparseRegression], depth: int) -> float:
    """`|(1/D) Σ ‖w_d‖² - Σ |w|^{2/D}|`, relative, of balanced factors."""
    layer = nn.Linear(6, 5, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 6, generator=case.generator(depth), dtype=torch.float64))
    least = layer.weight.detach().abs().pow(2 / depth).sum()
    return float((penalty(factorize(layer, depth)).detach() - least).abs() / least)


PAPER = Paper(
    key="kolb2025deep",
    claim="Weight decay on the factors of w = w₁ ⊙ … ⊙ w_D is the penalty Σ|w|^{2/D} on their product: for two "
    "factors, gradient descent finds the lasso.",
    basis="Read in the paper's abstract and repository; the identity is the inequality of arithmetic and geometric "
    "means. For three factors and more the penalty is not convex, and random signs get stuck: nothing is claimed of "
    "their support.",
    quick=SparseRegression(),
    criteria=(
        Criterion(
            "relative error of the penalty of balanced factors, D = 2, 3, 4",
            "≤",
            1e-10,
            "Rounding, with room for it to add up.",
        ),
        Criterion(
            "coefficients that are zero in one of factorisation and lasso only",
            "≤",
            0.0,
            "The same convex problem has one solution; the support of scikit-learn's is exact.",
        ),
        Criterion(
            "largest difference from a coefficient of the lasso",
            "≤",
            1e-3,
            "A coefficient is 0.8 to 2; coordinate descent is right to 1e-10, so the rest is what descent has left.",
        ),
        Criterion(
            "largest difference of the magnitudes of two factors",
            "≤",
            1e-6,
            "u² - v² decays as e^{-2ληt·2}: 4,000 steps at λη = 3e-3, with momentum 0.9, leave nothing of it.",
        ),
    ),
    measure=measure,
    picture=Picture("step", "largest difference from the lasso"),
)
