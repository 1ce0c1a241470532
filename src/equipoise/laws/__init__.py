"""Laws of training: every conserved quantity of a model, derived from how it computes."""

from equipoise.laws.commutant import (
    Antisymmetric,
    Blocks,
    Commutant,
    ComplexPlanes,
    Diagonal,
    Full,
    Scalar,
    Shift,
)
from equipoise.laws.derive import invariances
from equipoise.laws.law import Law, Laws

__all__ = [
    "Antisymmetric",
    "Blocks",
    "Commutant",
    "ComplexPlanes",
    "Diagonal",
    "Full",
    "Law",
    "Laws",
    "Scalar",
    "Shift",
    "invariances",
]
