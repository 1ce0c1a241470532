"""The same above a convolutional trunk (Le & Jegelka 2022; T3.4)."""

from equipoise.gallery.recipes import CONVOLUTIONAL
from equipoise.gallery.tails import claim_of_tail

EXPERIMENT = claim_of_tail(
    CONVOLUTIONAL,
    name="tail-convolutional",
    title="Convolutional networks: the linear tail becomes rank one",
    statement="Above a convolution, ReLU and average pooling the linear tail becomes rank one and aligned, within the "
    "bound certified at initialisation.",
    theorem="T3.4",
)
