"""Equipoise: what training does to your weights, derived, measured, certified, and put to use."""

from importlib.metadata import version

from equipoise import data, init, losses, measure, networks, observers, optim, parametrize, sinks, testing
from equipoise.checkpoint import analyze
from equipoise.compression import compress
from equipoise.decomposition import Decomposition, decompose, sign_changes
from equipoise.integrate import steppers
from equipoise.integrate.goals import Flip, Growth, LogLoss, Separated, Steps
from equipoise.integrate.loop import flow, resume
from equipoise.integrate.run import Run, Status
from equipoise.integrate.sweep import sweep
from equipoise.laws import acts_like, invariances
from equipoise.monitor import TrainingAlarm, watch
from equipoise.observers import (
    Activity,
    Alignment,
    Bottleneck,
    ClassFeatures,
    DataAlignment,
    Defect,
    Drift,
    Margin,
    Residual,
    Signs,
    Spectrum,
)
from equipoise.optim import CriticalPoint, minimise
from equipoise.page.report import report
from equipoise.references import cite
from equipoise.runs import load
from equipoise.theorems.certificate import Certificate, certify
from equipoise.theorems.checks.low_rank_tail import forecast
from equipoise.theorems.checks.stability import limit_direction, undecided_pairs
from equipoise.transform import align, balance

__version__ = version("equipoise")

__all__ = [
    "Activity",
    "Alignment",
    "Bottleneck",
    "Certificate",
    "ClassFeatures",
    "CriticalPoint",
    "DataAlignment",
    "Decomposition",
    "Defect",
    "Drift",
    "Flip",
    "Growth",
    "LogLoss",
    "Margin",
    "Residual",
    "Run",
    "Separated",
    "Signs",
    "Spectrum",
    "Status",
    "Steps",
    "TrainingAlarm",
    "acts_like",
    "align",
    "analyze",
    "balance",
    "certify",
    "cite",
    "compress",
    "data",
    "decompose",
    "flow",
    "forecast",
    "init",
    "invariances",
    "limit_direction",
    "load",
    "losses",
    "measure",
    "minimise",
    "networks",
    "observers",
    "optim",
    "parametrize",
    "report",
    "resume",
    "sign_changes",
    "sinks",
    "steppers",
    "sweep",
    "testing",
    "undecided_pairs",
    "watch",
]
