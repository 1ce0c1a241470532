"""Neurons that are on for every example: their block takes the rank of the layer above (T4.2 for every r)."""

import torch

from equipoise.gallery.blocks import beyond, block_bound
from equipoise.gallery.case import Case
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import POSITIVE
from equipoise.gallery.tails import WHY, WITHIN

LOWER, UPPER = "layer1.weight", "layer2.weight"


def measure(case: Case) -> Measurement:
    """`Σ_{i>r} σ_i²` of the rows that were on for everything all along, over its bound, the worst rank and time."""
    trail = case.train(POSITIVE)
    slopes = torch.stack([moment.slopes[0] for moment in trail.moments])
    members = (slopes == 1).all(0).all(0).nonzero().flatten()
    if len(members) < 2:
        return Measurement.without(f"{len(members)} neurons were on for every example all along")
    start, worst, curve = trail.moments[0], 0.0, []
    for moment in trail.moments:
        block = moment.parameters[LOWER][members]
        for r in range(1, len(members)):
            worst = max(worst, beyond(block, r) / block_bound(LOWER, UPPER, members, start, moment, r))
        curve.append((moment.growth, beyond(block, 2) / float(block.square().sum())))
    last = trail.moments[-1].parameters[LOWER][members]
    one = beyond(last, 1) / float(last.square().sum())
    remark = (
        f"{len(members)} neurons always on; at the end {one:.2e} beyond rank one, {curve[-1][1]:.2e} beyond rank two"
    )
    return Measurement(worst, curve, remark, trail.unfinished)


EXPERIMENT = Experiment(
    name="stable-block",
    title="Stably active neurons: their block takes the rank of the layer above",
    statement="With non-negative features, a bias and non-negative first weights most neurons of the first ReLU layer "
    "are on for every example and stay so. Their rows follow the rank of the layer that reads them, within the bound: "
    "not one here but two, for that layer has a direction for each label. (Directly below a linear tail, two labels "
    "leave hardly any neuron on for every example: all of them would push the score the same way.)",
    theorem="T4.2",
    sources=("le2022training",),
    statistic="the largest of Σ_{i>r} σ_i² of the block over its bound, over every r and time",
    threshold=WITHIN,
    why=WHY,
    measure=measure,
    picture=Picture("growth s", "share of the block's square beyond rank two"),
)
