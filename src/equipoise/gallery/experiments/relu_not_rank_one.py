"""The whole matrix of a ReLU layer does not become rank one (T4.4): its pattern classes go their own ways."""

import torch
from torch import Tensor

from equipoise.gallery.case import Case, Moment, Trail
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import RELU
from equipoise.linalg import leading_triplets
from equipoise.measure.activity import pattern_classes, patterns
from equipoise.measure.spectrum import spectrum

CONSTANT = 0.5  # growth after which a residual that tended to zero as e^{-2s} would have fallen to e^{-1}


def lower_bound(weight: Tensor, classes: tuple[Tensor, ...]) -> float:
    """The distance from rank one that the classes' own directions leave: `1 - σ₁²/‖W‖²` is at least this.

    With `x_j` the top left singular vector of class `j`'s rows, the rows `x_jᵀ W_j` are `Q W`, `Q` with orthonormal
    rows, whose singular values are at most those of `W`, each: `Σ_{i>1} σ_i(QW)² ≤ Σ_{i>1} σ_i(W)²`.
    """
    tops = [leading_triplets(weight[members], 1) for members in classes]
    directions = spectrum(torch.stack([float(top.values[0]) * top.right[:, 0] for top in tops]))
    return directions.beyond(1) / float(weight.square().sum())


def last_classes(trail: Trail, moment: Moment, position: int) -> tuple[Tensor, ...]:
    """The pattern classes of a ReLU layer at that point."""
    return pattern_classes(patterns(moment.preactivations[position].flatten(1))).classes


def measure(case: Case) -> Measurement:
    """How much of the residual of the least rank-one ReLU layer is left after the last stretch of growth."""
    trail = case.train(RELU)
    name = "layer2.weight"
    curve = [(s.growth, spectrum(s.parameters[name]).rank_one_residual) for s in trail.moments]
    last = trail.moments[-1]
    classes = last_classes(trail, last, 1)
    if len(classes) < 2:
        return Measurement.without("the layer has a single pattern class left")
    before = next(residual for growth, residual in reversed(curve) if growth <= last.growth - CONSTANT)
    bound = lower_bound(torch.as_tensor(last.parameters[name]), classes)
    remark = (
        f"1 - σ₁²/‖W‖² = {curve[-1][1]:.3f}, {bound:.3f} of it between the directions of its {len(classes)} classes"
    )
    return Measurement(curve[-1][1] / before, curve, remark, trail.unfinished)


EXPERIMENT = Experiment(
    name="relu-not-rank-one",
    title="ReLU layers: the whole matrix does not become rank one",
    statement="The matrix of the last ReLU layer does not tend to rank one: the classes of neurons that are on for "
    "the same examples take directions of their own, and what lies between these directions stays.",
    theorem="T4.4",
    sources=("le2022training", "timor2022implicit"),
    statistic=f"1 - σ₁²/‖W‖² at the end, over that {CONSTANT} of growth earlier",
    relation="≥",
    threshold=0.6,
    why="A layer on its way to rank one loses its residual as e^{-2s} (linear layers do): e^{-1} = 0.37 over this "
    "growth. One that keeps it has ratio 1; 0.6 is the middle of the two on a logarithmic scale.",
    measure=measure,
    picture=Picture("growth s", "1 − σ₁²/‖W‖² of the last ReLU layer"),
)
