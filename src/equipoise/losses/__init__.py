"""Losses of margins, kept in the log domain; cross-entropy for imbalanced classes, and the geometry it leads to."""

from equipoise.losses.geometry import ImplicitGeometry, measured_geometry, predicted_geometry
from equipoise.losses.imbalance import (
    AdjustedCrossEntropy,
    adjustment_of,
    class_dependent,
    label_dependent,
    logit_adjustment,
)
from equipoise.losses.margin_losses import (
    LOSSES,
    CrossEntropy,
    Differential,
    Exponential,
    Logistic,
    Loss,
    NamedLoss,
    Squared,
    log_risk,
    named_loss,
    tailed_losses,
)

__all__ = [
    "LOSSES",
    "AdjustedCrossEntropy",
    "CrossEntropy",
    "Differential",
    "Exponential",
    "ImplicitGeometry",
    "Logistic",
    "Loss",
    "NamedLoss",
    "Squared",
    "adjustment_of",
    "class_dependent",
    "label_dependent",
    "log_risk",
    "logit_adjustment",
    "measured_geometry",
    "named_loss",
    "predicted_geometry",
    "tailed_losses",
]
