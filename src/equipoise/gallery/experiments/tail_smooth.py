"""The same above GELU and tanh, which are homogeneous of no degree and have no laws (Le & Jegelka 2022; T3.4)."""

from equipoise.gallery.recipes import SMOOTH
from equipoise.gallery.tails import claim_of_tail

EXPERIMENT = claim_of_tail(
    SMOOTH,
    name="tail-smooth",
    title="GELU and tanh below: the linear tail becomes rank one",
    statement="Above layers with GELU and tanh, whose weights obey no law and whose features are bounded, the linear "
    "tail becomes rank one and aligned, within the bound certified at initialisation.",
    theorem="T3.4",
)
