"""Equipoise: what training does to your weights, derived, measured, certified, and put to use."""

from equipoise.references import cite

__all__ = ["cite"]
