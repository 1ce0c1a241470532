"""The same above a trunk that is not homogeneous: biases, a skip and a leaky ReLU (Le & Jegelka 2022; T3.4)."""

from equipoise.gallery.recipes import BIASED
from equipoise.gallery.tails import claim_of_tail

EXPERIMENT = claim_of_tail(
    BIASED,
    name="tail-nonhomogeneous",
    title="A trunk that is not homogeneous: the linear tail becomes rank one",
    statement="Above a trunk with biases in every layer, an identity skip and a leaky ReLU the linear tail becomes "
    "rank one and aligned, within the bound certified at initialisation: the bound uses the tail only.",
    theorem="T3.4",
)
