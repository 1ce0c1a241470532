"""What flow and watch record, one observer a file."""

from equipoise.observers.activity import Activity
from equipoise.observers.alignment import Alignment
from equipoise.observers.defect import Defect
from equipoise.observers.drift import Drift
from equipoise.observers.margin import Margin
from equipoise.observers.protocol import (
    Foresight,
    Memory,
    Observer,
    Probe,
    Reading,
    Scene,
    Snapshot,
    Spectra,
    Unavailable,
)
from equipoise.observers.residual import Residual
from equipoise.observers.signs import Signs
from equipoise.observers.spectrum import Spectrum

__all__ = [
    "Activity",
    "Alignment",
    "Defect",
    "Drift",
    "Foresight",
    "Margin",
    "Memory",
    "Observer",
    "Probe",
    "Reading",
    "Residual",
    "Scene",
    "Signs",
    "Snapshot",
    "Spectra",
    "Spectrum",
    "Unavailable",
]
