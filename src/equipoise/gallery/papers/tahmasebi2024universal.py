"""A universal class of sharpness-aware minimisation (Tahmasebi, Soleymani, Bahri, Jegelka & Jaillet 2024)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.measure import sharpness
from equipoise.optim import SAM


@dataclass(frozen=True)
class Sharpnesses:
    """A fixed Hessian sampled, and a product of two vectors trained from an unbalanced start."""

    size: int = 20
    samples: int = 400_000
    width: int = 3
    ratio: float = 4.0
    lr: float = 0.02
    steps: int = 600
    strength: float = 0.02


class BalancedProduct(nn.Module):
    """`½ (⟨x, y⟩ - 1)²`: all its minima are one function, the balanced ones the flattest."""

    def __init__(self, x: Tensor, y: Tensor):
        super().__init__()
        self.x, self.y = nn.Parameter(x), nn.Parameter(y)

    def forward(self) -> Tensor:
        """The loss."""
        return 0.5 * (self.x @ self.y - 1).square()


def measure(case: PaperCase[Sharpnesses]) -> Outcome:
    """Errors of the two identities, and `‖H‖_F` where SGD ends over that of SAM."""
    setting, generator = case.setting, case.generator()
    root = torch.randn(setting.size, setting.size, generator=generator, dtype=torch.float64)
    H = root @ root.T / setting.size
    z = torch.randn(setting.samples, setting.size, generator=generator, dtype=torch.float64)
    q = 0.5 * ((z @ H) * z).sum(1)
    trace, square = float(H.trace()), float(H.square().sum())
    errors = abs(2 * float(q.mean()) - trace) / trace, abs(2 * float(q.var()) - square) / square
    plain, plain_loss, plain_curve = _trained(case, None)
    found, loss, curve = _trained(case, "frobenius")
    figures = [
        Comparison("‖H‖_F where SGD ends", plain),
        Comparison("‖H‖_F where Frobenius-SAM ends", found),
        Comparison("loss where Frobenius-SAM ends", loss),
        Comparison("loss where SGD ends", plain_loss),
    ]
    return Outcome((*errors, found / plain), figures, [Curve("SGD", plain_curve), Curve("Frobenius-SAM", curve)])


def _trained(case: PaperCase[Sharpnesses], kind: str | None) -> tuple[float, float, list[tuple[float, float]]]:
    setting, generator, curve = case.setting, case.generator(1), []
    x = setting.ratio * torch.nn.functional.normalize(
        torch.randn(setting.width, generator=generator, dtype=torch.float64), dim=0
    )
    model = BalancedProduct(
        x, x / setting.ratio**2 + 0.3 * torch.randn(setting.width, generator=generator, dtype=torch.float64)
    )
    torch.manual_seed(case.seed)
    sgd = torch.optim.SGD(model.parameters(), lr=setting.lr)
    optimizer = sgd if kind is None else SAM(sgd, "frobenius", strength=setting.strength)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss

    for step in range(setting.steps):
        if step % 50 == 0:
            curve.append((float(step), _frobenius(model)))
        loss = optimizer.step(closure)
        case.log(optimizer=type(optimizer).__name__, step=step, loss=float(torch.as_tensor(loss).detach()))
    return _frobenius(model), float(model().detach()), curve


def _frobenius(model: nn.Module) -> float:
    return sharpness(model, lambda model: model()).frobenius.value


PAPER = Paper(
    key="tahmasebi2024universal",
    claim="Functions of the Hessian's spectrum are expectations over random quadratic forms, and an optimizer that "
    "minimises such an estimate comes to flatter minima: here by the Frobenius norm.",
    basis="Read in the paper's abstract and repository (ρ = λ = 0.005 and two samples for Frobenius); the identities "
    "are derived. Second differences stand in place of its one-sided ones.",
    quick=Sharpnesses(),
    criteria=(
        Criterion(
            "relative error of 2 E q as the trace, 4e5 samples", "≤", 1e-2, "A standard error is 0.1% at this size."
        ),
        Criterion(
            "relative error of 2 Var q as ‖H‖_F², 4e5 samples", "≤", 1e-2, "A standard error is 0.3% at this size."
        ),
        Criterion(
            "‖H‖_F where Frobenius-SAM ends, over that where SGD ends",
            "≤",
            0.8,
            "From |x| = 4 |y| SGD keeps |x|² - |y|²: ‖H‖_F is near 16, at the balanced minimum 2. A fifth is past "
            "noise.",
        ),
    ),
    measure=measure,
    picture=Picture("step", "‖H‖_F"),
)
