"""Fewer weights with the same answers on the data: exact moves, moves within a tolerance, and their proof."""

from equipoise.compression.compressing import Compressed, apply, compress, plan
from equipoise.compression.exporting import load
from equipoise.compression.planning import Move, Plan
from equipoise.compression.verification import Agreement

__all__ = ["Agreement", "Compressed", "Move", "Plan", "apply", "compress", "load", "plan"]
