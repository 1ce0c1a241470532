"""Early neuron alignment (Min, Mallada & Vidal 2024): small neurons turn first, and grow afterwards.

Two-layer ReLU networks from a small, balanced start, on data whose examples have positive inner products within a class
and negative ones between the two: every neuron ends on for one class alone, or off, while the loss has hardly moved;
then the loss falls as `1/t`, and the first layer is nearly of rank two.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.gallery.literature.training import Quantities
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.measure import neuron_alignment
from equipoise.measure.spectrum import spectrum
from equipoise.networks import mlp
from equipoise.observers import Snapshot


@dataclass(frozen=True)
class SmallStart:
    """A two-layer ReLU network on orthogonally separable data; one flow for each scale of the start."""

    examples: int = 20
    inputs: int = 10
    hidden: int = 50
    scales: tuple[float, ...] = (1e-2, 1e-4)
    until: float = -12.0
    max_steps: int = 4000


def measure(case: PaperCase[SmallStart]) -> Outcome:
    """The worst over the scales: aligned share at half the loss, slope of the loss, stable rank, energy beyond two."""
    X, y = separable_cones(case)
    early, slopes, ranks, energies = [], [], [], []
    curves, figures = [], []
    for scale in case.setting.scales:
        model = mlp([case.setting.inputs, case.setting.hidden, 1], seed=case.seed, scale=scale, balanced=True)

        def figures_of(snapshot: Snapshot) -> dict[str, float]:
            first = snapshot.parameters["layer1.weight"]
            seen = spectrum(first)
            aligned = neuron_alignment(first, X, y).aligned_share
            return {"aligned": aligned, "stable rank": seen.stable_rank, "energy beyond two": seen.rank_residual(2)}

        goal = LogLoss(case.setting.until)
        run = flow(model, (X, y), "logistic", goal, observe=[Quantities(figures_of)], max_steps=case.setting.max_steps)
        case.log_table(run.table(), scale=scale)
        if run.status.value != "reached":
            return Outcome((), figures, curves, premise=f"from {scale:g}, {run.status.ending}")
        table = (
            run.table()
            .pivot_table(index=["step", "growth", "log_loss", "log_time"], columns="quantity", values="value")
            .reset_index()
        )
        before = table.loc[table.log_loss > math.log(math.log(2) / 2)].iloc[-1]
        early.append(float(before.aligned))
        late = table.loc[table.log_loss < case.setting.until / 2]
        since = late.log_time + np.log1p(-np.exp(before.log_time - late.log_time))  # log of the time since the plateau
        slopes.append(float(np.polyfit(since, late.log_loss, 1)[0]))
        ranks.append(float(table["stable rank"].iloc[-1]))
        energies.append(float(table["energy beyond two"].iloc[-1]))
        figures += [
            Comparison(f"aligned share at half the loss, start {scale:g}", early[-1]),
            Comparison(f"energy beyond two singular values at the end, start {scale:g}", energies[-1]),
            Comparison(f"slope of log loss in log time, start {scale:g}", slopes[-1]),
        ]
        curves.append(Curve(f"start {scale:g}", list(zip(table.growth, table.aligned, strict=True))))
    worst_slope = max(abs(slope + 1) for slope in slopes)
    return Outcome((min(early), worst_slope, max(ranks), max(energies)), figures, curves)


def separable_cones(case: PaperCase[SmallStart]) -> tuple[Tensor, Tensor]:
    """Examples `y (u + noise)`, drawn until all products `y_i y_j ⟨x_i, x_j⟩` are positive."""
    setting, generator = case.setting, case.generator()
    y = torch.where(torch.arange(setting.examples) % 2 == 0, 1.0, -1.0).double()
    direction = torch.randn(setting.inputs, generator=generator, dtype=torch.float64)
    direction *= setting.inputs**0.5 / direction.norm()
    spread = 1.0
    while True:
        noise = torch.randn(setting.examples, setting.inputs, generator=generator, dtype=torch.float64)
        X = y[:, None] * (direction + spread * noise)
        if bool(((y[:, None] * X) @ (y[:, None] * X).T > 0).all()):
            return X, y
        spread *= 0.95


PAPER = Paper(
    key="min2024early",
    claim="From a small start every neuron of a two-layer ReLU network turns to one class alone, or dies, before the "
    "loss falls; then the loss falls as 1/t and the first layer is nearly of rank two.",
    basis="Read in the paper's abstract (alignment first, rate O(1/t), approximately low rank of the first layer); the "
    "time to alignment, O(log n / √μ), is recalled and not checked. Thresholds are ours.",
    quick=SmallStart(),
    criteria=(
        Criterion(
            "share of neurons on for one class alone or off for all, when the loss is last above half of its start",
            "≥",
            0.98,
            "Every neuron but one of fifty: one that starts at right angles to all data takes as long as it likes.",
        ),
        Criterion(
            "distance of the slope of log loss against the log of the time since half the loss from -1, in the second "
            "half",
            "≤",
            0.2,
            "The rate is O(1/t) once the neurons are aligned. With L = 2 the flow has R' ≈ -R² log 1/R, so R = 1/(t "
            "log t) and a slope of -(1 + 1/log t), -1.1 here; twice that is allowed.",
        ),
        Criterion(
            "stable rank of the first layer at the end",
            "≤",
            2.0,
            "Neurons in two cones, each along one direction.",
        ),
        Criterion(
            "energy beyond two singular values at the end, the worst of the scales",
            "≤",
            1e-3,
            "What a neuron keeps of its start is of the order of the scale, 1e-2 of weights of order one, and 1e-4 "
            "squared; ten times that for fifty neurons.",
        ),
    ),
    measure=measure,
    picture=Picture("growth s", "share of aligned neurons", logarithmic=False),
)
