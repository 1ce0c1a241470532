"""What flow and watch record, one observer a file."""

from equipoise.observers.activity import Activity
from equipoise.observers.alignment import Alignment
from equipoise.observers.drift import Drift
from equipoise.observers.margin import Margin
from equipoise.observers.protocol import Memory, Observer, Reading, Scene, Snapshot
from equipoise.observers.spectrum import Spectrum

__all__ = ["Activity", "Alignment", "Drift", "Margin", "Memory", "Observer", "Reading", "Scene", "Snapshot", "Spectrum"]
