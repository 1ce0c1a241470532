"""Grokking, rank minimisation and generalisation (Yunis et al. 2024): accuracy rises as the rank falls."""

from dataclasses import replace

import numpy as np

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Outcome, Paper, PaperCase
from equipoise.gallery.papers.yunis2024approaching import PAPER as SPECTRAL
from equipoise.gallery.papers.yunis2024approaching import ModularAddition, modular_run


def measure(case: PaperCase[ModularAddition]) -> Outcome:
    """The correlation of test accuracy with minus the mean rank of the matrices, along one training."""
    trace = modular_run(case, case.setting, "weight decay")
    accuracy, rank = trace.series("test accuracy"), trace.series("mean rank")
    curves = [trace.curve("test accuracy", "test accuracy"), trace.curve("mean rank", "mean rank")]
    figures = [Comparison("test accuracy at the end", accuracy[-1][1]), Comparison("mean rank at the end", rank[-1][1])]
    if trace.shortfall:
        return Outcome((), figures, curves, premise=trace.shortfall)
    if accuracy[-1][1] < 0.9:
        return Outcome((), figures, curves, premise=f"the network did not generalise: {accuracy[-1][1]:.2f} at the end")
    values = np.array([[value for _, value in series] for series in (accuracy, rank)])
    fitted = next(step for step, value in trace.series("training accuracy") if value >= 0.99)
    general = next(step for step, value in accuracy if value >= 0.9)
    delay = Comparison("steps to 90% on unseen pairs, over steps to 99% on seen ones", general / fitted)
    fall = Comparison("mean rank at the end over that at the start", rank[-1][1] / rank[0][1])
    return Outcome((float(-np.corrcoef(values)[0, 1]),), [*figures, fall, delay], curves)


PAPER = Paper(
    key="yunis2024grokking",
    claim="As a network trained with weight decay comes to generalise on modular addition, the effective rank of its "
    "matrices falls: late generalisation and low rank come together.",
    basis="Recalled from the workshop version of yunis2024approaching, whose text was read; the correlation and the "
    "thresholds are ours.",
    quick=replace(SPECTRAL.quick),
    full=SPECTRAL.full,
    criteria=(
        Criterion(
            "Pearson correlation of test accuracy and minus the mean rank, over the training",
            "≥",
            0.8,
            "Both move once, from one level to another. Were the two transitions apart by a fifth of the training, the "
            "correlation of two steps would be about 0.6; 0.8 asks that they overlap.",
        ),
    ),
    measure=measure,
    picture=Picture("step", "test accuracy; mean normalised effective rank", logarithmic=False),
    beside=("yunis2024approaching",),
)
