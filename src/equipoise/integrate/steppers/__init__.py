"""Steppers: how gradient flow is advanced, one method a file. Values with `init` and `step`, no state of their own."""

from equipoise.integrate.steppers.gauss import EntropicGauss
from equipoise.integrate.steppers.gradient_descent import GradientDescent
from equipoise.integrate.steppers.midpoint import EntropicMidpoint
from equipoise.integrate.steppers.runge_kutta import ExplicitRK
from equipoise.integrate.steppers.sgd import SGD
from equipoise.integrate.steppers.state import State, Step, Stepper, Update

STEPPERS: dict[str, type[Stepper]] = {
    each.__name__: each for each in (EntropicGauss, EntropicMidpoint, ExplicitRK, GradientDescent, SGD)
}

__all__ = [
    "SGD",
    "STEPPERS",
    "EntropicGauss",
    "EntropicMidpoint",
    "ExplicitRK",
    "GradientDescent",
    "State",
    "Step",
    "Stepper",
    "Update",
]
