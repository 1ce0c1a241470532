"""Pairs of co-active neurons keep their law (T2, T2.1): ⟨in_u, in_v⟩ - ⟨out_u, out_v⟩, for as long as they are."""

import torch
from torch import Tensor

from equipoise.gallery.case import Case, Moment, Trail
from equipoise.gallery.drifts import ROUNDING
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import RELU
from equipoise.theorems.spectral_bounds import conserved_matrix

HIDDEN = (0, 1)  # the ReLU layers of the network


def co_active(moment: Moment, position: int) -> Tensor:
    """Which pairs of neurons had equal slopes on every example over the step that led here."""
    slopes = moment.slopes[position]
    return (slopes[:, :, None] == slopes[:, None, :]).all(0)


def pair_matrices(trail: Trail, position: int) -> list[Tensor]:
    """`W₊ᵀW₊ - WWᵀ` of a ReLU layer at every point."""
    chain = trail.run.chain
    assert chain is not None
    return [conserved_matrix(chain[position], chain[position + 1], s.parameters) for s in trail.moments]


def measure(case: Case) -> Measurement:
    """The drift of the laws of co-active pairs while they are co-active, summed over the flow, of the worst pair."""
    trail = case.train(RELU)
    worst, pairs, curve = 0.0, 0, [0.0] * len(trail.moments)
    for position in HIDDEN:
        values = pair_matrices(trail, position)
        moved = torch.zeros_like(values[0])
        for t, moment in enumerate(trail.moments[1:], 1):
            together = co_active(moment, position)
            moved += torch.where(together, values[t] - values[t - 1], 0.0)
            curve[t] = max(curve[t], float(moved.abs().max()) / moment.norm**2)
            worst, pairs = max(worst, curve[t]), max(pairs, int(together.sum() - len(together)) // 2)
    if pairs == 0:
        return Measurement.without("no two neurons were ever co-active")
    growth = [moment.growth for moment in trail.moments]
    return Measurement(worst, list(zip(growth, curve, strict=True)), f"up to {pairs} co-active pairs in a layer")


EXPERIMENT = Experiment(
    name="pair-invariance",
    title="ReLU networks: pair-wise invariance of co-active neurons",
    statement="Two neurons of a ReLU layer that are on for the same examples keep ⟨a_u, a_v⟩ - ⟨b_u, b_v⟩, where "
    "a are the weights that a neuron reads by and b those that read it, for as long as they are.",
    theorem="T2, T2.1",
    sources=("le2022training",),
    statistic="what the law of a pair moves by in the steps in which it is co-active, over ‖w‖²; the worst pair and "
    "time",
    threshold=ROUNDING,
    why="A step keeps the laws of pairs with equal slopes to rounding (T6.2), about 1e-16 a step; pairs that are not "
    "co-active drift by 1e-3 and more here.",
    measure=measure,
    picture=Picture("growth s", "drift of co-active pairs / ‖w‖²", level=ROUNDING),
)
