"""ReLU networks: vertex-wise invariance: ‖in‖² - ‖out‖² of every neuron (T2)."""

from equipoise.gallery.drifts import claim_of_laws

EXPERIMENT = claim_of_laws(
    "vertex",
    name="vertex-invariance",
    title="ReLU networks: vertex-wise invariance",
    statement="For every neuron of a ReLU network the squared norm of its incoming weights less that of its outgoing "
    "ones stays what it was, along the whole flow.",
)
