"""Gradient descent with small steps: the linear tail becomes rank one, the defects of the laws in the bound (T3.1)."""

from equipoise.gallery.case import Case
from equipoise.gallery.claim import Claim, Finding, Picture
from equipoise.gallery.recipes import DESCENT
from equipoise.gallery.tails import STATISTIC, WITHIN, within_drifting_bounds


def measure(case: Case) -> Finding:
    """Residual and misalignment of the tail over their bounds, the worst of the whole descent."""
    return within_drifting_bounds(case.train(DESCENT))


CLAIM = Claim(
    name="descent-tail",
    title="Gradient descent: the linear tail becomes rank one",
    statement="Under gradient descent with small steps the linear tail becomes rank one and aligned as under gradient "
    "flow: within the bound certified at initialisation, once what the predicted defects moved the laws by is added.",
    theorem="T3.1, T3.2, T2.2",
    sources=("le2022training", "ji2019gradient"),
    statistic=STATISTIC,
    threshold=WITHIN,
    why="The bounds hold for the laws as they are, rounding included: those of the start, their drift, and both "
    "measures subadditive. Nothing may exceed them; 1e-9 as for the flow.",
    measure=measure,
    picture=Picture("growth s", "worst 1 − σ₁²/‖W‖² of the tail"),
)
