"""Laws of training: every conserved quantity of a model, derived from how it computes."""

from equipoise.laws.check import Audit, LawCheck
from equipoise.laws.collection import Laws
from equipoise.laws.commutant import (
    Antisymmetric,
    Blocks,
    Commutant,
    ComplexPlanes,
    Diagonal,
    Full,
    Intersection,
    Product,
    Scalar,
    Shift,
)
from equipoise.laws.custom_ops import acts_like
from equipoise.laws.derive import Between
from equipoise.laws.evaluate import LawPlan, LawReadings
from equipoise.laws.law import Law
from equipoise.laws.predict import Prediction
from equipoise.laws.reading import FalseLaw, invariances

__all__ = [
    "Antisymmetric",
    "Audit",
    "Between",
    "Blocks",
    "Commutant",
    "ComplexPlanes",
    "Diagonal",
    "FalseLaw",
    "Full",
    "Intersection",
    "Law",
    "LawCheck",
    "LawPlan",
    "LawReadings",
    "Laws",
    "Prediction",
    "Product",
    "Scalar",
    "Shift",
    "acts_like",
    "invariances",
]
