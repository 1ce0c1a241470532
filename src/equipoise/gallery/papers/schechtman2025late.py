"""Late-stage dynamics of (stochastic) subgradient descent (Schechtman & Schreuder 2025).

For homogeneous networks and a loss with an exponential tail, the normalised iterates of subgradient descent with a
constant step follow, late in training, a flow that increases the normalised margin.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.data import load
from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Outcome, Paper, PaperCase
from equipoise.gallery.literature.training import Quantities, train
from equipoise.measure.margins import binary_margins, normalised_margin
from equipoise.networks import mlp
from equipoise.observers import Snapshot


@dataclass(frozen=True)
class LateStage:
    """Two-layer ReLU network under SGD with a constant step."""

    examples: int = 20
    inputs: int = 10
    hidden: int = 20
    batch: int = 4
    lr: float = 0.1
    steps: int = 20_000
    every: int = 250


def measure(case: PaperCase[LateStage]) -> Outcome:
    """The normalised margin over the steps, from the first at which every example is on its side."""
    setting = case.setting
    X, y = load("separable", n=setting.examples, d=setting.inputs, seed=case.seed)
    model = mlp([setting.inputs, setting.hidden, 1], seed=case.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr)

    def figures(_: Snapshot) -> dict[str, float]:
        with torch.no_grad():
            margins = binary_margins(model(X), y)
            norm = torch.nn.utils.parameters_to_vector(model.parameters()).norm()
        return {"normalised margin": normalised_margin(margins, float(norm), 2)}

    trace = train(
        case,
        model,
        optimizer,
        logistic,
        (X, y),
        steps=setting.steps,
        every=setting.every,
        batch=setting.batch,
        observe=[Quantities(figures)],
    )
    separated = [point for point in trace.series("normalised margin") if point[1] > 0]
    if len(separated) < 2:
        return Outcome.without("SGD did not separate the data")
    first, last = separated[0][1], separated[-1][1]
    doublings = list(by_doublings(separated))
    fall = max((before - after) / before for before, after in pairwise(value for _, value in doublings))
    comparisons = [
        Comparison(f"normalised margin at step {step:.0f}", value) for step, value in (separated[0], separated[-1])
    ]
    return Outcome((fall, last / first - 1), comparisons, [trace.curve("normalised margin", "normalised margin")])


def logistic(scores: Tensor, labels: Tensor) -> Tensor:
    """`mean log(1 + e^{-m})`."""
    return F.softplus(-binary_margins(scores, labels)).mean()


def by_doublings(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The first point, then each one nearest after twice the step of the one before, and the last."""
    chosen = [points[0]]
    for step, value in points[1:]:
        if step >= 2 * chosen[-1][0] or step == points[-1][0]:
            chosen.append((step, value))
    return chosen


PAPER = Paper(
    key="schechtman2025late",
    claim="Late in training, stochastic subgradient descent with a constant step on a homogeneous network increases "
    "the normalised margin min m_i / ‖w‖^L.",
    basis="The abstract: the normalised iterates follow a flow of the normalised margin, whose critical points they "
    "reach. The pass rule is ours.",
    quick=LateStage(),
    criteria=(
        Criterion(
            "largest relative fall of the normalised margin over a doubling of the steps after separation",
            "≤",
            1e-3,
            "The limit flow allows no fall. A step of size η moves the margin by a share η/t of itself at step t, 1e-4 "
            "at a thousand steps; ten times that is allowed for the noise of the batches.",
        ),
        Criterion(
            "relative gain of the normalised margin from the first snapshot at which all are on their side",
            "≥",
            0.1,
            "A network that only grew in norm along its direction at separation would gain nothing.",
        ),
    ),
    measure=measure,
    picture=Picture("step", "normalised margin", logarithmic=False, logarithmic_across=True),
    beside=("lyu2020gradient",),
    sampled=False,
)
