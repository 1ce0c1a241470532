"""Deep linear networks: the product's margin becomes the largest there is (Ji & Telgarsky 2019; docs/theory.md §7)."""

import torch

from equipoise.gallery.case import Case
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.experiments.linear_svm import max_margin
from equipoise.gallery.recipes import DEEP_LINEAR


def measure(case: Case) -> Measurement:
    """`min_i y_i ⟨β, x_i⟩ / ‖β‖` of the product `β`, over the SVM's."""
    trail = case.train(DEEP_LINEAR)
    X, y = trail.run.data
    largest = 1 / float(max_margin(X, y).norm())
    curve = []
    for moment in trail.moments:
        product = torch.linalg.multi_dot([moment.parameters[f"layer{k}.weight"] for k in (3, 2, 1)])[0]
        curve.append((moment.growth, float((y * (X @ product)).min() / product.norm()) / largest))
    return Measurement(curve[-1][1], curve, premise=trail.unfinished)


EXPERIMENT = Experiment(
    name="linear-margin",
    title="Deep linear networks: the margin becomes the largest there is",
    statement="The margin of the product of the layers, over its norm, tends to that of the bias-free hard-margin SVM.",
    theorem="T7",
    sources=("ji2019gradient", "lyu2020gradient"),
    statistic="min_i y_i ⟨β, x_i⟩ / ‖β‖ at the end, over the optimum of an independent solver",
    relation="≥",
    threshold=0.998,
    why="Components of β outside the data's span cost 1 - cos θ ≈ θ²/2, which is 5e-4 at the angles of 0.03 that "
    "these flows end at; four times that is allowed. A flow that ends elsewhere loses the margin at first order.",
    measure=measure,
    picture=Picture("growth s", "margin / optimum", logarithmic=False, level=1.0),
)
