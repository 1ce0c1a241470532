"""Gradient descent with small steps: the linear tail becomes rank one, the defects of the laws in the bound (T3.1)."""

from equipoise.gallery.case import Case
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import DESCENT
from equipoise.gallery.tails import WITHIN, within_predicted_bounds


def measure(case: Case) -> Measurement:
    """Residual and misalignment of the tail over their bounds, at the end."""
    return within_predicted_bounds(case.train(DESCENT))


EXPERIMENT = Experiment(
    name="descent-tail",
    title="Gradient descent: the linear tail becomes rank one",
    statement="Under gradient descent with small steps the linear tail becomes rank one and aligned as under gradient "
    "flow: within the bound certified at initialisation, once what the predicted defects moved the laws by is added.",
    theorem="T3.1, T3.2, T2.2",
    sources=("le2022training", "ji2019gradient"),
    statistic="the largest of (1 - σ₁²/‖W‖²) / its bound and (1 - cos²) / its bound, over tail layers, at the end",
    threshold=WITHIN,
    why="The bounds are of the laws at the start and of the sum of the defects predicted since, rounding included; how "
    "the laws did move does not enter. Nothing may exceed them; 1e-9 as for the flow.",
    measure=measure,
    picture=Picture("growth s", "worst 1 − σ₁²/‖W‖² of the tail"),
)
