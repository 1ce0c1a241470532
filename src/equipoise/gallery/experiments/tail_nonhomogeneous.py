"""The same above a trunk that is not homogeneous: biases, a skip and a leaky ReLU (Le & Jegelka 2022; T3.4)."""

from equipoise.gallery.case import Case
from equipoise.gallery.claim import Claim, Finding, Picture
from equipoise.gallery.recipes import BIASED
from equipoise.gallery.tails import STATISTIC, WHY, WITHIN, within_bounds


def measure(case: Case) -> Finding:
    """Residual and misalignment of the tail over their certified bounds, the worst of the whole flow."""
    return within_bounds(case.train(BIASED))


CLAIM = Claim(
    name="tail-nonhomogeneous",
    title="A trunk that is not homogeneous: the linear tail becomes rank one",
    statement="Above a trunk with biases in every layer, an identity skip and a leaky ReLU the linear tail becomes "
    "rank one and aligned, within the bound certified at initialisation: the bound uses the tail only.",
    theorem="T3.4",
    sources=("le2022training",),
    statistic=STATISTIC,
    threshold=WITHIN,
    why=WHY,
    measure=measure,
    picture=Picture("growth s", "worst 1 − σ₁²/‖W‖² of the tail"),
)
