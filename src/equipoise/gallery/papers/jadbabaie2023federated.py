"""Federated optimisation of smooth losses (Jadbabaie, Makur & Shah 2023): gradients from few server points."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.optim import fed_avg, fed_lrgd
from equipoise.optim.federated import Examples, anchor_parameters, example_gradients, server_weights


@dataclass(frozen=True)
class KernelRegression:
    """Gaussian bumps fitted to a smooth function by clients with a few examples each."""

    clients: int = 4
    examples: int = 25
    bumps: int = 5
    points: tuple[int, ...] = (2, 4, 6, 8, 10)
    anchors: int = 6
    steps: int = 3000
    lr: float = 0.4
    gap: float = 1e-4


class GaussianBumps(nn.Module):
    """`Σ_k a_k exp(-(x - c_k)²)`."""

    c: Tensor

    def __init__(self, bumps: int):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(bumps, dtype=torch.float64))
        self.register_buffer("c", torch.linspace(-1, 1, bumps, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """One output an example."""
        return torch.exp(-(x - self.c).square()) @ self.a


def _loss(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean()


def measure(case: PaperCase[KernelRegression]) -> Outcome:
    """The error of the gradient by the number of points, and rounds to the gap."""
    setting, model = case.setting, GaussianBumps(case.setting.bumps)
    clients = [_examples(setting, case.generator(k)) for k in range(setting.clients)]
    errors = [(float(r), _error(case, model, clients[0], _chebyshev(r))) for r in setting.points]
    case.log(errors=errors)
    alone = fed_lrgd(
        model,
        clients,
        _chebyshev(setting.points[-1]),
        _loss,
        steps=setting.steps,
        lr=setting.lr,
        anchors=setting.anchors,
    )
    averaged = fed_avg(model, clients, _loss, rounds=setting.steps, lr=setting.lr)
    least = min(averaged.losses[-1], _least(model, clients))
    rounds = next((k for k, loss in enumerate(averaged.losses) if loss - least <= setting.gap), setting.steps + 1)
    decay = (errors[-1][1] / errors[0][1]) ** (1 / (setting.points[-1] - setting.points[0]))
    figures = [
        Comparison("rounds of FedAvg to the gap", rounds),
        Comparison("numbers that a client sends, FedAvg", rounds * setting.bumps),
        Comparison("numbers that a client sends, FedLRGD", setting.points[-1]),
    ]
    values = (errors[-1][1], decay, (alone.losses[-1] - least) / setting.gap, alone.rounds / rounds)
    return Outcome(values, figures, [Curve("error of the gradient", errors)])


def _examples(setting: KernelRegression, generator: torch.Generator) -> Examples:
    x = 2 * torch.rand(setting.examples, 1, generator=generator, dtype=torch.float64) - 1
    return x, torch.sin(2 * x[:, 0])


def _chebyshev(r: int) -> Examples:
    x = torch.cos(torch.pi * (torch.arange(r, dtype=torch.float64) + 0.5) / r)[:, None]
    return x, torch.sin(2 * x[:, 0])


def _error(case: PaperCase[KernelRegression], model: nn.Module, client: Examples, server: Examples) -> float:
    """Of the gradient at parameters that were no anchor."""
    weights = server_weights(model, client, server, _loss, anchor_parameters(model, case.setting.anchors))
    there = anchor_parameters(model, 2, seed=1000 + case.seed)[1]
    exact = example_gradients(model, client, _loss, there).mean(0)
    return float((weights @ example_gradients(model, server, _loss, there) - exact).norm() / exact.norm())


def _least(model: nn.Module, clients: list[Examples]) -> float:
    """The least loss that any coefficients reach, by least squares."""
    X, y = (torch.cat(parts) for parts in zip(*clients, strict=True))
    bumps = torch.exp(-(X - model.get_buffer("c")).square())
    best = torch.linalg.lstsq(bumps, y[:, None], driver="gelsd").solution
    return float((bumps @ best - y[:, None]).square().mean())


PAPER = Paper(
    key="jadbabaie2023federated",
    claim="Where a loss is smooth in its examples, the gradients of clients are combinations of those at few points of "
    "the server: one round of communication does what averaging needs many for.",
    basis="Read in the paper's abstract. Weights are by least squares over all coordinates, where the paper has some "
    "for each coordinate.",
    quick=KernelRegression(),
    criteria=(
        Criterion(
            "relative error of a client's gradient from 10 points",
            "≤",
            1e-3,
            "Interpolation of an entire function of x at 10 Chebyshev points; two points leave an error of order one.",
        ),
        Criterion(
            "factor of the error for each further point",
            "≤",
            0.6,
            "Geometric: a factor of 0.4 leads from 1 to 1e-3 in 8.",
        ),
        Criterion("gap of FedLRGD over 1e-4", "≤", 1.0, "The tolerance itself: it has arrived."),
        Criterion("rounds of FedLRGD over those of FedAvg to the same gap", "≤", 0.5, "Fewer by half at least."),
    ),
    measure=measure,
    picture=Picture("points of the server", "relative error of the gradient"),
)
