"""Steppers: how gradient flow is advanced, one method a file. Values with `init` and `step`, no state of their own."""

from equipoise.integrate.steppers.midpoint import EntropicMidpoint
from equipoise.integrate.steppers.state import State, Step

__all__ = ["EntropicMidpoint", "State", "Step"]
