"""Equipoise: what training does to your weights, derived, measured, certified, and put to use."""

from equipoise import data, networks
from equipoise.integrate import steppers
from equipoise.integrate.goals import Growth, LogLoss, Steps
from equipoise.integrate.loop import flow, resume
from equipoise.integrate.run import Run, Status
from equipoise.laws import invariances
from equipoise.observers import Activity, Alignment, Drift, Margin, Spectrum
from equipoise.references import cite

__all__ = [
    "Activity",
    "Alignment",
    "Drift",
    "Growth",
    "LogLoss",
    "Margin",
    "Run",
    "Spectrum",
    "Status",
    "Steps",
    "cite",
    "data",
    "flow",
    "invariances",
    "networks",
    "resume",
    "steppers",
]
