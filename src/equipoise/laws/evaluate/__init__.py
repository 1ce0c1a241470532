"""Evaluation of many laws at once: planned once, replayed at every instant."""

from equipoise.laws.evaluate.plan import DIRECTIONS, LawPlan, ProcessSums
from equipoise.laws.evaluate.readings import LawLayout, LawReadings, Rates, sketched

__all__ = ["DIRECTIONS", "LawLayout", "LawPlan", "LawReadings", "ProcessSums", "Rates", "sketched"]
