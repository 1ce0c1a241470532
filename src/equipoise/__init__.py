"""Equipoise: what training does to your weights, derived, measured, certified, and put to use.

Nothing heavy is imported before it is used: `import equipoise` reads neither torch nor pandas.
"""

from equipoise.starting import end_when_interrupted

end_when_interrupted()

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
        GradientNorm,
        Margin,
        NuclearRatio,
        Residual,
        Signs,
        Spectrum,
    )
    from equipoise.optim import CriticalPoint, minimise
    from equipoise.page.comparison import compare
    from equipoise.page.report import report
    from equipoise.references import cite
    from equipoise.runs import load
    from equipoise.stages import show_progress
    from equipoise.theorems.certificate import Certificate, certify
    from equipoise.theorems.checks.low_rank_tail import forecast
    from equipoise.theorems.checks.stability import limit_direction, undecided_pairs
    from equipoise.transform import align, balance

__version__ = version("equipoise")

_PLACES = {  # where what type checkers see above is found when it is first used
    "equipoise.checkpoint": ("analyze",),
    "equipoise.compression": ("compress",),
    "equipoise.decomposition": (
        "Decomposition",
        "decompose",
        "sign_changes",
    ),
    "equipoise.integrate": ("steppers",),
    "equipoise.integrate.goals": (
        "Flip",
        "Growth",
        "LogLoss",
        "Separated",
        "Steps",
    ),
    "equipoise.integrate.loop": (
        "flow",
        "resume",
    ),
    "equipoise.integrate.run": (
        "Run",
        "Status",
    ),
    "equipoise.integrate.sweep": ("sweep",),
    "equipoise.laws": (
        "acts_like",
        "invariances",
    ),
    "equipoise.monitor": (
        "TrainingAlarm",
        "watch",
    ),
    "equipoise.observers": (
        "Activity",
        "Alignment",
        "Bottleneck",
        "ClassFeatures",
        "DataAlignment",
        "Defect",
        "Drift",
        "GradientNorm",
        "Margin",
        "NuclearRatio",
        "Residual",
        "Signs",
        "Spectrum",
    ),
    "equipoise.optim": (
        "CriticalPoint",
        "minimise",
    ),
    "equipoise.page.comparison": ("compare",),
    "equipoise.page.report": ("report",),
    "equipoise.references": ("cite",),
    "equipoise.runs": ("load",),
    "equipoise.stages": ("show_progress",),
    "equipoise.theorems.certificate": (
        "Certificate",
        "certify",
    ),
    "equipoise.theorems.checks.low_rank_tail": ("forecast",),
    "equipoise.theorems.checks.stability": (
        "limit_direction",
        "undecided_pairs",
    ),
    "equipoise.transform": (
        "align",
        "balance",
    ),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}

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
    "GradientNorm",
    "Growth",
    "LogLoss",
    "Margin",
    "NuclearRatio",
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
    "compare",
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
    "show_progress",
    "sign_changes",
    "sinks",
    "steppers",
    "sweep",
    "testing",
    "undecided_pairs",
    "watch",
]


def __getattr__(name: str) -> object:
    """A public name or a package, imported when it is first used."""
    if name not in __all__ and (name.startswith("_") or find_spec(f"equipoise.{name}") is None):
        raise AttributeError(f"module 'equipoise' has no attribute {name!r}")
    module = import_module(_MODULE_OF.get(name, f"equipoise.{name}"))
    found = _within(module, name) if name in _MODULE_OF else module
    globals()[name] = found
    return found


def _within(module: ModuleType, name: str) -> object:
    """What a module has under a name, or its submodule of that name."""
    return getattr(module, name) if hasattr(module, name) else import_module(f"{module.__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
