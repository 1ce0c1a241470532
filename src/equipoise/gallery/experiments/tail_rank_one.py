"""A ReLU network with a linear tail: the tail becomes rank one (Le & Jegelka 2022, main theorem; T3.1, T3.2, T3.4)."""

from equipoise.gallery.recipes import RELU
from equipoise.gallery.tails import claim_of_tail

EXPERIMENT = claim_of_tail(
    RELU,
    name="tail-rank-one",
    title="ReLU networks: the linear tail becomes rank one",
    statement="In a fully connected ReLU network whose last layers are linear, those layers become rank one and "
    "aligned, within the bound certified at initialisation.",
    theorem="T3.1, T3.2, T3.4",
)
