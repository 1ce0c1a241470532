"""The same above GELU and tanh, which are homogeneous of no degree and have no laws (Le & Jegelka 2022; T3.4)."""

from equipoise.gallery.case import Case
from equipoise.gallery.claim import Claim, Finding, Picture
from equipoise.gallery.recipes import SMOOTH
from equipoise.gallery.tails import STATISTIC, WHY, WITHIN, within_bounds


def measure(case: Case) -> Finding:
    """Residual and misalignment of the tail over their certified bounds, the worst of the whole flow."""
    return within_bounds(case.train(SMOOTH))


CLAIM = Claim(
    name="tail-smooth",
    title="GELU and tanh below: the linear tail becomes rank one",
    statement="Above layers with GELU and tanh, whose weights obey no law and whose features are bounded, the linear "
    "tail becomes rank one and aligned, within the bound certified at initialisation.",
    theorem="T3.4",
    sources=("le2022training",),
    statistic=STATISTIC,
    threshold=WITHIN,
    why=WHY,
    measure=measure,
    picture=Picture("growth s", "worst 1 − σ₁²/‖W‖² of the tail"),
)
