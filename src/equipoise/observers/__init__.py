"""Observers of flow and watch, one a file."""

from equipoise.observers.activity import Activity
from equipoise.observers.alignment import Alignment, DataAlignment
from equipoise.observers.class_features import ClassFeatures
from equipoise.observers.function_geometry import Bottleneck
from equipoise.observers.gradients import GradientNorm, NuclearRatio
from equipoise.observers.laws import Defect, Drift, Residual
from equipoise.observers.margin import Margin
from equipoise.observers.protocol import (
    JacobianProducts,
    Observer,
    Probe,
    Reading,
    Requirements,
    Snapshot,
    Spectra,
    Stateless,
    StepObserver,
    TrainingContext,
    Unavailable,
    requirements,
    step_observer,
)
from equipoise.observers.signs import Signs
from equipoise.observers.spectrum import Spectrum
from equipoise.observers.state import ObserverResult, ObserverState, StateLike

__all__ = [
    "Activity",
    "Alignment",
    "Bottleneck",
    "ClassFeatures",
    "DataAlignment",
    "Defect",
    "Drift",
    "GradientNorm",
    "JacobianProducts",
    "Margin",
    "NuclearRatio",
    "Observer",
    "ObserverResult",
    "ObserverState",
    "Probe",
    "Reading",
    "Requirements",
    "Residual",
    "Signs",
    "Snapshot",
    "Spectra",
    "Spectrum",
    "StateLike",
    "Stateless",
    "StepObserver",
    "TrainingContext",
    "Unavailable",
    "requirements",
    "step_observer",
]
