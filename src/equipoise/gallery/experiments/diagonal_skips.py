"""Trained diagonal skips: vertex-wise laws, and no matrix-wise ones (Le & Jegelka 2022; T2.5)."""

from equipoise.gallery.drifts import claim_of_laws
from equipoise.gallery.recipes import DIAGONAL

EXPERIMENT = claim_of_laws(
    "vertex",
    name="diagonal-skips",
    title="Trained diagonal skips: vertex-wise invariance",
    statement="Around a ReLU block whose skip multiplies each coordinate by a trained z_j, ‖a_j‖² - ‖u_j‖² - z_j² "
    "and ‖v_j‖² + z_j² - ‖q_j‖² stay what they were, for what writes the coordinate (a, v) and what reads it (u, q).",
    recipe=DIAGONAL,
    theorem="T2.5",
)
