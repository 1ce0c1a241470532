"""A ReLU network with a linear tail: the tail becomes rank one (Le & Jegelka 2022, main theorem; T3.1, T3.2, T3.4)."""

from equipoise.gallery.case import Case
from equipoise.gallery.claim import Claim, Finding, Picture
from equipoise.gallery.recipes import RELU
from equipoise.gallery.tails import STATISTIC, WHY, WITHIN, within_bounds


def measure(case: Case) -> Finding:
    """Residual and misalignment of the tail over their certified bounds, the worst of the whole flow."""
    return within_bounds(case.train(RELU))


CLAIM = Claim(
    name="tail-rank-one",
    title="ReLU networks: the linear tail becomes rank one",
    statement="In a fully connected ReLU network whose last layers are linear, those layers become rank one and "
    "aligned, within the bound certified at initialisation.",
    theorem="T3.1, T3.2, T3.4",
    sources=("le2022training",),
    statistic=STATISTIC,
    threshold=WITHIN,
    why=WHY,
    measure=measure,
    picture=Picture("growth s", "worst 1 − σ₁²/‖W‖² of the tail"),
)
