"""Deep linear networks: every layer becomes rank one, aligned with the next (Ji & Telgarsky 2019; T3.1, T3.2)."""

from equipoise.gallery.recipes import DEEP_LINEAR
from equipoise.gallery.tails import claim_of_tail

EXPERIMENT = claim_of_tail(
    DEEP_LINEAR,
    name="linear-rank-one",
    title="Deep linear networks: every layer becomes rank one and aligned",
    statement="On separable data, gradient flow of a deep linear network takes every weight matrix to rank one, its "
    "output direction aligned with the input direction of the next, and never leaves the bound certified at "
    "initialisation.",
    theorem="T3.1, T3.2",
    sources=("ji2019gradient", "le2022training"),
)
