"""The implicit bias of matrix factorisation, made explicit (Hou, Sra & Yurtsever 2025): UDVᵀ with bounded factors."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.parametrize import constrain, udv


@dataclass(frozen=True)
class Completion:
    """A positive matrix of low rank, a share of it seen."""

    size: int = 30
    rank: int = 3
    seen: float = 0.5
    lr: float = 0.3
    steps: int = 4000


class FreeMatrix(nn.Module):
    """A matrix as a parameter."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        """The matrix."""
        return self.weight


class SquareOfFactor(nn.Module):
    """`U Uᵀ` (Burer & Monteiro 2003)."""

    def __init__(self, factor: Tensor):
        super().__init__()
        self.factor = nn.Parameter(factor)

    def forward(self) -> Tensor:
        """The matrix."""
        return self.factor @ self.factor.T


def measure(case: PaperCase[Completion]) -> Outcome:
    """`σ_{r+1}/σ_1` and the unseen error of both, from one start."""
    setting, generator = case.setting, case.generator()
    n = setting.size
    true = torch.randn(n, setting.rank, generator=generator, dtype=torch.float64)
    matrix = true @ true.T
    matrix /= matrix.norm()
    draws = (torch.rand(n, n, generator=generator) < setting.seen).triu()
    seen = draws | draws.T
    start = torch.randn(n, n, generator=generator, dtype=torch.float64)
    start /= start.norm()
    ours = udv(FreeMatrix(start @ start.T), rank=n, names=["weight"], symmetric=True)
    with torch.no_grad():
        left, values = ours.get_submodule("parametrizations.weight").parameters()
        left.copy_(start)
        values.fill_(1.0)
    (ratio, error, curve), (other, other_error, other_curve) = (
        _trained(case, model, matrix, seen) for model in (ours, SquareOfFactor(start.clone()))
    )
    figures = [
        Comparison("unseen error of U D Uᵀ", error),
        Comparison("unseen error of U Uᵀ", other_error),
    ]
    return Outcome((ratio, error, other), figures, [Curve("U D Uᵀ, bounded", curve), Curve("U Uᵀ", other_curve)])


def _trained(
    case: PaperCase[Completion], model: nn.Module, matrix: Tensor, seen: Tensor
) -> tuple[float, float, list[tuple[float, float]]]:
    setting, curve = case.setting, []
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr)
    if not isinstance(model, SquareOfFactor):
        constrain(optimizer, model)
    for step in range(setting.steps + 1):
        optimizer.zero_grad()
        loss = (model() - matrix)[seen].square().sum() / 2
        if step % 200 == 0:
            values = torch.linalg.svdvals(model().detach())
            curve.append((float(step + 1), float(values[setting.rank] / values[0])))
            case.log(model=type(model).__name__, step=step, loss=float(loss.detach()), ratio=curve[-1][1])
        loss.backward()
        optimizer.step()
    weight = model().detach()
    return curve[-1][1], float((weight - matrix)[~seen].norm() / matrix[~seen].norm()), curve


PAPER = Paper(
    key="hou2025implicit",
    claim="Gradient descent on W = U D Vᵀ with bounded U and V comes to a matrix of low rank from starts at which "
    "W = U Uᵀ does not.",
    basis="Read in the paper's abstract; matrix completion with these sizes is ours.",
    quick=Completion(),
    criteria=(
        Criterion(
            "σ₄/σ₁ of U D Uᵀ, for a matrix of rank 3",
            "≤",
            1e-2,
            "The matrix has σ₃/σ₁ of about a third, and a full-rank start 0.8 for its fourth: 1e-2 is far from both.",
        ),
        Criterion(
            "unseen error of U D Uᵀ", "≤", 0.02, "Without low rank the unseen half is free: its error is near 1."
        ),
        Criterion(
            "σ₄/σ₁ of U Uᵀ from the same start",
            "≥",
            0.1,
            "Ten times what is asked of the other: it is not of low rank.",
        ),
    ),
    tried="U Uᵀ ends at σ₄/σ₁ of 0.07 to 0.17, 90 to 2,000 times that of U D Uᵀ, and not always above 0.1: "
    "the criterion is as it was set.",
    measure=measure,
    picture=Picture("step", "σ₄/σ₁"),
)
