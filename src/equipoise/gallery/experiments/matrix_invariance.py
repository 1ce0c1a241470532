"""Linear layers: matrix-wise invariance: W Wᵀ - W₊ᵀW₊ of every pair of linear layers (T2)."""

from equipoise.gallery.drifts import claim_of_laws

EXPERIMENT = claim_of_laws(
    "linear",
    name="matrix-invariance",
    title="Linear layers: matrix-wise invariance",
    statement="Between consecutive linear layers the whole matrix WWᵀ − W₊ᵀW₊ stays what it was, along the whole flow.",
)
