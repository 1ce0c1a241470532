"""Behind `eq.analyze`: a checkpoint's spectra, streaming."""

from equipoise.checkpoint.analysis import METHODS, analyze
from equipoise.checkpoint.selection import TYPES
from equipoise.checkpoint.spectra.measures import Row
from equipoise.checkpoint.table import records
from equipoise.checkpoint.up_to_symmetry import aligned_checkpoints

__all__ = ["METHODS", "TYPES", "Row", "aligned_checkpoints", "analyze", "records"]
