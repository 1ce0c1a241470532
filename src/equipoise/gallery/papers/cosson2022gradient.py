"""Gradient descent for low-rank functions (Cosson, Jadbabaie, Makur, Reisizadeh & Shah 2022): calls of the oracle."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.optim import LowRankGD
from equipoise.optim.low_rank_gd import Refresh

Loss = Callable[[Tensor], Tensor]  # of the parameters


@dataclass(frozen=True)
class OracleCalls:
    """A function of low rank, and draws of the published tables' problems; five seeds of four draws are twenty."""

    size: int = 200
    active: int = 5
    tolerance: float = 1e-8
    draws: int = 4
    tables: tuple[str, ...] = ("least squares", "planted least squares", "planted logistic")


@dataclass(frozen=True)
class OracleProblem:
    """A loss, its learning rate, and the norm of the gradient to stop at."""

    loss: Loss
    size: int
    lr: float
    tolerance: float
    limit: int = 4000


PUBLISHED: dict[str, dict[int, int]] = {  # calls by rank; rank 0 is gradient descent
    "least squares": {0: 880, 1: 353, 2: 518, 3: 579, 4: 614, 5: 595, 6: 596},
    "planted least squares": {0: 690, 1: 285, 2: 162, 3: 235, 4: 306, 5: 375, 6: 442},
    "planted logistic": {0: 7120, 1: 3230, 2: 1926, 3: 1539, 4: 1804, 5: 1930, 6: 2302},
    "digits": {1: 51485, 2: 19014, 4: 23524},  # and 33472 to 213440 at ranks 8 to 64, which take longer
}


def measure(case: PaperCase[OracleCalls]) -> Outcome:
    """Calls and steps on the function of low rank, beside gradient descent's; and the published tables."""
    setting = case.setting
    problem = _low_rank(setting, case.generator())
    (calls, steps), (other_calls, other_steps) = low_rank_calls(problem, setting.active), descent_calls(problem)
    figures = [
        Comparison("calls, p = 200 and r = 5", calls),
        Comparison("calls of gradient descent, p = 200", other_calls),
    ]
    curves, within = [], []
    for place, name in enumerate(setting.tables):
        problems = [_table(name, case.generator(100 * place + draw + 1)) for draw in range(setting.draws)]
        medians = []
        for rank, published in PUBLISHED[name].items():
            values = [
                low_rank_calls(each, rank, "residual")[0] if rank else descent_calls(each)[0] for each in problems
            ]
            label = f"{name}, r = {rank}" if rank else f"{name}, gradient descent"
            figures += [Comparison(label, value, published) for value in values]
            within.append(min(values) <= published <= max(values))
            medians.append((float(rank), median(values)))
            case.log(table=name, rank=rank, calls=values, published=published)
        printed = [(float(rank), float(calls)) for rank, calls in PUBLISHED[name].items() if rank]
        curves += [Curve(name, medians[-len(printed) :]), Curve(f"{name}, published", printed)]
    remark = (
        f"{sum(within)} of {len(within)} published figures lie within the range of this seed's {setting.draws} draws"
    )
    return Outcome((calls / other_calls, steps / other_steps), figures, curves, remark)


def low_rank_calls(problem: OracleProblem, rank: int, refresh: Refresh = "converged") -> tuple[int, int]:
    """Calls and steps of `LowRankGD` until its gradient is within the tolerance."""
    w = nn.Parameter(torch.zeros(problem.size, dtype=torch.float64))
    torch.manual_seed(problem.size + rank)
    optimizer = LowRankGD(
        [w],
        rank,
        lambda tensors: problem.loss(tensors[0]),
        problem.lr,
        tolerance=problem.tolerance,
        refresh=refresh,
        spread=1.0,
    )
    steps = 0
    while not optimizer.converged and steps < problem.limit:
        optimizer.step()
        steps += 1
    return optimizer.calls, steps


def descent_calls(problem: OracleProblem) -> tuple[int, int]:
    """Calls and steps of gradient descent, `p` calls a gradient."""
    w, steps = torch.zeros(problem.size, dtype=torch.float64, requires_grad=True), 0
    while True:
        (gradient,) = torch.autograd.grad(problem.loss(w), w)
        steps += 1
        if float(gradient.norm()) <= problem.tolerance or steps == problem.limit:
            return steps * problem.size, steps
        w = (w - problem.lr * gradient).detach().requires_grad_()


def _low_rank(setting: OracleCalls, generator: torch.Generator) -> OracleProblem:
    p, r = setting.size, setting.active
    basis = torch.linalg.qr(torch.randn(p, r, generator=generator, dtype=torch.float64))[0]
    target, curvature = torch.randn(r, generator=generator, dtype=torch.float64), torch.linspace(1, 5, r).double()
    return OracleProblem(
        lambda w: 0.5 * (curvature * (basis.T @ w - target).square()).sum(), p, 0.2, setting.tolerance**0.5
    )


def _table(name: str, generator: torch.Generator) -> OracleProblem:
    """The problem of a table: sizes and rates as published, the law of the data recalled."""

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if name == "digits":
        examples, labels = load_digits(n_class=2, return_X_y=True)
        X, y = torch.from_numpy(examples), torch.from_numpy(labels).double()
        smoothness = float((2 * X.T @ X).norm())
        return OracleProblem(lambda w: (X @ w - y).square().sum(), 64, 0.5 / smoothness, 10.0, 60_000)
    if name == "planted logistic":
        X, w = gaussian(20, 4) @ gaussian(4, 20) / 2, gaussian(20)
        y = torch.sign(X @ w)
        return OracleProblem(lambda w: nn.functional.softplus(-y * (X @ w)).sum(), 20, 0.05, 0.01**0.5)
    X = gaussian(50, 10) if name == "least squares" else gaussian(50, 2) @ gaussian(2, 10) + 0.01 * gaussian(50, 10)
    y = X @ gaussian(10)
    smoothness = float((2 * X.T @ X).norm())
    return OracleProblem(lambda w: (X @ w - y).square().sum(), 10, 0.5 / smoothness, 0.1**0.5)


PAPER = Paper(
    key="cosson2022gradient",
    claim="Where gradients lie near a subspace of few dimensions, descent along directional derivatives takes a "
    "fraction of the oracle calls of gradient descent, in as many steps.",
    basis="Sizes, rates and calls of four tables were read in the authors' notebook, the law of its data was not: "
    "entries are standard normal here, starts zero, our basis is drawn at a distance of one around them. For the "
    "logistic table variances of one and ε = 0.01 were chosen because descent then takes about the published calls.",
    quick=OracleCalls(),
    full=OracleCalls(draws=20, tables=tuple(PUBLISHED)),
    criteria=(
        Criterion(
            "calls over those of gradient descent, p = 200, r = 5",
            "≤",
            1 / 3,
            "A step costs r/p = 1/40 of a gradient, the basis r gradients, and the end one: about 6 gradients for "
            "some 80.",
        ),
        Criterion("steps over those of gradient descent", "≤", 1.1, "In exact arithmetic the steps are the same."),
    ),
    measure=measure,
    picture=Picture("rank r", "oracle calls"),
)
