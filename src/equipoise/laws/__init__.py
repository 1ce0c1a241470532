"""Laws of training: every conserved quantity of a model, derived from how it computes."""

from equipoise.laws.audit import Audit, Finding
from equipoise.laws.collection import FalseLaw, Laws, invariances
from equipoise.laws.combined import Intersection, Product
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
from equipoise.laws.declared import acts_like
from equipoise.laws.derive import Between
from equipoise.laws.law import Law
from equipoise.laws.predict import Prediction

__all__ = [
    "Antisymmetric",
    "Audit",
    "Between",
    "Blocks",
    "Commutant",
    "ComplexPlanes",
    "Diagonal",
    "FalseLaw",
    "Finding",
    "Full",
    "Intersection",
    "Law",
    "Laws",
    "Prediction",
    "Product",
    "Scalar",
    "Shift",
    "acts_like",
    "invariances",
]
