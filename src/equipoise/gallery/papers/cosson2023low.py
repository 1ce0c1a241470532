"""Low-rank gradient descent (Cosson, Jadbabaie, Makur, Reisizadeh & Shah 2023): what it costs without low rank."""

from dataclasses import dataclass

import torch

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.gallery.papers.cosson2022gradient import OracleProblem, descent_calls, low_rank_calls


@dataclass(frozen=True)
class FullRank:
    """A quadratic whose gradients take all directions."""

    size: int = 12
    ranks: tuple[int, ...] = (4, 8, 12)
    tolerance: float = 1e-6


def measure(case: PaperCase[FullRank]) -> Outcome:
    """Calls beyond those of gradient descent, over `r p`, at `r = p`; and the calls for smaller ranks."""
    setting, generator = case.setting, case.generator()
    p = setting.size
    basis = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64))[0]
    target, curvature = torch.randn(p, generator=generator, dtype=torch.float64), torch.linspace(1, 3, p).double()
    problem = OracleProblem(
        lambda w: 0.5 * (curvature * (basis.T @ w - target).square()).sum(), p, 0.3, setting.tolerance
    )
    (plain, steps), found = descent_calls(problem), {}
    for rank in setting.ranks:
        found[rank] = low_rank_calls(problem, rank)
        case.log(rank=rank, calls=found[rank][0], steps=found[rank][1], descent=plain)
    figures = [Comparison("calls at r = p", found[p][0]), Comparison("calls of gradient descent", plain)]
    excess = (found[p][0] - plain) / p**2
    return Outcome(
        (excess, abs(found[p][1] - steps)),
        figures,
        [Curve("calls", [(float(r), calls) for r, (calls, _) in found.items()])],
    )


PAPER = Paper(
    key="cosson2023low",
    claim="On a function of full rank, low-rank descent with r = p takes the calls of gradient descent and at most r p "
    "for its basis.",
    basis="Recalled; derived: with all directions the steps are those of gradient descent.",
    quick=FullRank(),
    criteria=(
        Criterion(
            "calls beyond those of gradient descent, over r p",
            "≤",
            13 / 12,
            "The basis takes r p calls, and the full gradient that decides the end p more: 1 + 1/r at r = 12.",
        ),
        Criterion(
            "steps more or fewer than gradient descent", "≤", 1.0, "The same steps; the last may be rounded away."
        ),
    ),
    measure=measure,
    picture=Picture("rank r", "oracle calls"),
    beside=("cosson2022gradient",),
)
