"""Deep linear networks: every layer becomes rank one, aligned with the next (Ji & Telgarsky 2019; T3.1, T3.2)."""

from equipoise.gallery.case import Case
from equipoise.gallery.claim import Claim, Finding, Picture
from equipoise.gallery.recipes import DEEP_LINEAR
from equipoise.gallery.tails import STATISTIC, WHY, WITHIN, within_bounds


def measure(case: Case) -> Finding:
    """Residual and misalignment of all three layers over their certified bounds, the worst of the whole flow."""
    return within_bounds(case.train(DEEP_LINEAR))


CLAIM = Claim(
    name="linear-rank-one",
    title="Deep linear networks: every layer becomes rank one and aligned",
    statement="On separable data, gradient flow of a deep linear network takes every weight matrix to rank one, its "
    "output direction aligned with the input direction of the next, and never leaves the bound certified at "
    "initialisation.",
    theorem="T3.1, T3.2",
    sources=("ji2019gradient", "le2022training"),
    statistic=STATISTIC,
    threshold=WITHIN,
    why=WHY,
    measure=measure,
    picture=Picture("growth s", "worst 1 − σ₁²/‖W‖²"),
)
