"""The theorems, one file each: `check(evidence)` states what the theorem says of a network, and decides no more.

A new theorem is a file with a `check` and a line in `THEOREMS`.
"""

from collections.abc import Callable

from equipoise.theorems.checks import (
    asymmetric_margin,
    class_geometry,
    coactive_classes,
    low_rank_tail,
    stability,
    stationarity,
)
from equipoise.theorems.claims import CheckResult
from equipoise.theorems.evidence import Evidence

THEOREMS: tuple[Callable[[Evidence], CheckResult], ...] = (
    low_rank_tail.check,
    coactive_classes.check,
    stability.check,
    stationarity.check,
    asymmetric_margin.check,
    class_geometry.check,
)
