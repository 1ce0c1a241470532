"""Generator born from classifier (Yu & Wang 2023): a classifier at its max-margin point knows where its data were.

There `w = Σ λ_i y_i ∂f(x_i)` with `λ ≥ 0` for a network that is homogeneous in its weights: the training data explain
the weights, other points do not. A generator of `x` and `λ` that is trained on the residual alone, without any data,
gives points of the class asked for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.data import load
from equipoise.gallery.case import PAIRS
from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Outcome, Paper, PaperCase
from equipoise.gallery.literature.training import Quantities, Trace, train
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.measure.kkt import kkt_from_jacobian
from equipoise.networks import mlp
from equipoise.observers import Margin, Snapshot


@dataclass(frozen=True)
class GeneratorTraining:
    """A classifier of two classes of digits at its limit, and a generator of three layers."""

    examples: int = 20
    hidden: int = 16
    log_loss: float = -1e4
    latent: int = 8
    width: int = 64
    points: int = 40
    lr: float = 2e-3
    steps: int = 1500
    every: int = 50


def measure(case: PaperCase[GeneratorTraining]) -> Outcome:
    """Residuals of the training data and of random points; fall of the generator's loss; classes of its points."""
    setting = case.setting
    X, y = load("digits", classes=PAIRS[case.seed % len(PAIRS)], n=setting.examples, seed=case.seed)
    classifier = mlp([X.shape[1], setting.hidden, 1], seed=case.seed)
    run = flow(classifier, (X, y), "logistic", LogLoss(setting.log_loss), observe=[Margin()])
    if run.status.value not in ("reached", "precision_floor"):
        return Outcome.without(run.status.ending)
    own = run.last("margin", "kkt_epsilon")
    if own is None:
        return Outcome.without("the flow did not separate the data")
    noise = torch.randn(X.shape, generator=case.generator(), dtype=X.dtype)
    others = residual(run.model, noise * (X.norm(dim=1) / noise.norm(dim=1))[:, None])
    trace, generator = generator_run(case, run.model)
    asked, made = generated(generator, setting, case.generator(4))
    with torch.no_grad():
        right = float((run.model(made[:, 1:])[:, 0] * asked > 0).double().mean())
    losses = [value for _, value in trace.series("stationarity loss")]
    figures = [
        Comparison("residual of the training data", own),
        Comparison("the same with slopes 0 or 1 at the kinks", residual(run.model, X)),
        Comparison("residual of random points", others),
        Comparison("stationarity loss at the end", losses[-1]),
    ]
    curves = [trace.curve("stationarity loss", "stationarity loss")]
    return Outcome((own, others, losses[0] / losses[-1], right), figures, curves)


def residual(model: nn.Module, points: Tensor) -> float:
    """`ε` of the KKT conditions when the points, in the classes that the network gives them, are its training data."""
    weights = list(model.parameters())
    with torch.no_grad():
        scores = model(points)[:, 0]
    kept = points[scores != 0]
    signs = scores[scores != 0].sign()
    rows = [
        torch.cat([each.flatten() for each in torch.autograd.grad(sign * model(point[None])[0, 0], weights)])
        for point, sign in zip(kept, signs, strict=True)
    ]
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    return kkt_from_jacobian(torch.stack(rows), flat, scores[scores != 0].abs(), degree=2).epsilon


def generator_run(case: PaperCase[GeneratorTraining], classifier: nn.Module) -> tuple[Trace, nn.Module]:
    """Train a generator on the stationarity residual of fresh points, with multipliers of its own, and no data."""
    setting = case.setting
    weights = list(classifier.parameters())
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    inputs = weights[0].shape[1]
    generator = mlp([setting.latent + 1, setting.width, setting.width, 1 + inputs], bias=True, seed=case.seed)
    stream, last = case.generator(3), [float("nan")]

    def loss(_: Tensor, __: Tensor) -> Tensor:
        asked, made = generated(generator, setting, stream)
        score = (F.softplus(made[:, 0]) * asked * classifier(made[:, 1:])[:, 0]).sum()
        parts = torch.autograd.grad(score, weights, create_graph=True)
        combination = torch.cat([part.flatten() for part in parts])
        value = (flat / flat.norm() - combination / combination.norm()).square().sum()
        last[0] = float(value.detach())
        return value

    def figures(_: Snapshot) -> dict[str, float]:
        return {"stationarity loss": last[0]}

    optimizer = torch.optim.Adam(generator.parameters(), lr=setting.lr)
    blank = torch.zeros(1, setting.latent + 1, dtype=flat.dtype)  # the loss draws its own points
    trace = train(
        case,
        generator,
        optimizer,
        loss,
        (blank, blank),
        steps=setting.steps,
        every=setting.every,
        observe=[Quantities(figures)],
        name="generator",
    )
    return trace, generator


def generated(generator: nn.Module, setting: GeneratorTraining, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """The classes asked for, half of each, and what is made: a multiplier before the softplus, and a point."""
    asked = torch.ones(setting.points, dtype=torch.float64)
    asked[setting.points // 2 :] = -1
    latent = torch.randn(setting.points, setting.latent, generator=stream, dtype=torch.float64)
    return asked, generator(torch.cat([latent, asked[:, None]], 1))


PAPER = Paper(
    key="yu2023generator",
    claim="The max-margin weights of a homogeneous classifier are explained by its training data and not by other "
    "points, and a generator trained on that stationarity condition alone makes points of the class asked for.",
    basis="The condition is that of Lyu & Li, read there; the generator is ours, after the idea in the abstract. The "
    "paper's own networks, with BatchNorm on 500 images of MNIST, are not repeated.",
    quick=GeneratorTraining(),
    criteria=(
        Criterion(
            "‖w/‖w‖ - Jᵀλ/‖Jᵀλ‖‖ with λ ≥ 0 fitted, on the training data, slopes at kinks as the flow settled them",
            "≤",
            0.1,
            "Zero in the limit. At log R = -1e4 what is left of the start is about e^{-s} of the weights, s the "
            "growth of some 4: a few percent.",
        ),
        Criterion(
            "the same on random points of the same lengths",
            "≥",
            0.5,
            "A vector at 29° is at a distance of 0.5; twenty random gradients in a thousand dimensions explain much "
            "less.",
        ),
        Criterion(
            "the generator's stationarity loss at its start over that at its end",
            "≥",
            10.0,
            "Ten times nearer in square: the generator has found directions of the data, not only their signs.",
        ),
        Criterion(
            "share of fresh generated points that the classifier puts into the class asked for",
            "≥",
            0.8,
            "Half of them would be by chance.",
        ),
    ),
    measure=measure,
    picture=Picture("step of the generator", "stationarity loss"),
    beside=("lyu2020gradient",),
)
