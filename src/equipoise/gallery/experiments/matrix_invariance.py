"""Linear layers: matrix-wise invariance: W Wᵀ - W₊ᵀW₊ of every pair of linear layers (T2)."""

from equipoise.gallery.case import Case
from equipoise.gallery.claim import Claim, Finding, Picture
from equipoise.gallery.drifts import ROUNDING, worst_drift
from equipoise.gallery.recipes import RELU


def measure(case: Case) -> Finding:
    """The worst drift of the linear laws over the flow."""
    return worst_drift(case.train(RELU), "linear")


CLAIM = Claim(
    name="matrix-invariance",
    title="Linear layers: matrix-wise invariance",
    statement="Between consecutive linear layers the whole matrix WWᵀ − W₊ᵀW₊ stays what it was, along the whole flow.",
    theorem="T2",
    sources=("du2018algorithmic", "le2022training"),
    statistic="largest ‖C - C₀‖_F / ‖w‖², over laws and time",
    threshold=ROUNDING,
    why="A step keeps these laws to about 1e-16 of ‖w‖² (T6.2); a flow here takes some hundred, and a factor of ten "
    "is allowed. An integrator that conserved them only to its order would miss this by ten orders.",
    measure=measure,
    picture=Picture("growth s", "‖C − C₀‖ / ‖w‖²", level=ROUNDING),
)
