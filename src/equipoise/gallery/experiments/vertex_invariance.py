"""ReLU networks: vertex-wise invariance: ‖in‖² - ‖out‖² of every neuron (T2)."""

from equipoise.gallery.case import Case
from equipoise.gallery.claim import Claim, Finding, Picture
from equipoise.gallery.drifts import ROUNDING, worst_drift
from equipoise.gallery.recipes import RELU


def measure(case: Case) -> Finding:
    """The worst drift of the vertex laws over the flow."""
    return worst_drift(case.train(RELU), "vertex")


CLAIM = Claim(
    name="vertex-invariance",
    title="ReLU networks: vertex-wise invariance",
    statement="For every neuron of a ReLU network the squared norm of its incoming weights less that of its outgoing "
    "ones stays what it was, along the whole flow.",
    theorem="T2",
    sources=("du2018algorithmic", "le2022training"),
    statistic="largest ‖C - C₀‖_F / ‖w‖², over laws and time",
    threshold=ROUNDING,
    why="A step keeps these laws to about 1e-16 of ‖w‖² (T6.2); a flow here takes some hundred, and a factor of ten "
    "is allowed. An integrator that conserved them only to its order would miss this by ten orders.",
    measure=measure,
    picture=Picture("growth s", "‖C − C₀‖ / ‖w‖²", level=ROUNDING),
)
