"""The same above a trunk with a skip connection (Le & Jegelka 2022; T3.4, T2.5)."""

from equipoise.gallery.recipes import SKIPS
from equipoise.gallery.tails import claim_of_tail

EXPERIMENT = claim_of_tail(
    SKIPS,
    name="tail-skips",
    title="Skip connections: the linear tail becomes rank one",
    statement="Above a ReLU block with an identity skip, which is not homogeneous, the linear tail becomes rank one "
    "and aligned, within the bound certified at initialisation.",
    theorem="T3.4",
)
