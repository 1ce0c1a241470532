"""Steppers: how gradient flow is advanced, one method a file. Values with `init` and `step`, no state of their own."""

from equipoise.integrate.state import State, Step, Update
from equipoise.integrate.steppers.chebyshev import RungeKuttaChebyshev
from equipoise.integrate.steppers.entropic_gauss import EntropicGauss
from equipoise.integrate.steppers.entropic_midpoint import EntropicMidpoint
from equipoise.integrate.steppers.gradient_descent import GradientDescent
from equipoise.integrate.steppers.protocol import Stepper
from equipoise.integrate.steppers.runge_kutta import ExplicitRK
from equipoise.integrate.steppers.sgd import SGD

STEPPERS: dict[str, type[Stepper]] = {
    each.__name__: each
    for each in (EntropicGauss, EntropicMidpoint, ExplicitRK, GradientDescent, RungeKuttaChebyshev, SGD)
}

__all__ = [
    "SGD",
    "STEPPERS",
    "EntropicGauss",
    "EntropicMidpoint",
    "ExplicitRK",
    "GradientDescent",
    "RungeKuttaChebyshev",
    "State",
    "Step",
    "Stepper",
    "Update",
]
