"""Time to depth: EntropicMidpoint beside dopri5 on the log-loss flow and gradient descent with loss-scaled steps.

One run, one machine, one problem; every method's error is measured against a fine reference at the same loss, so that
the times are comparable. Prints a table of seconds, ratios and errors.

    python benchmarks/flow_depth.py [--depths 30,100,300] [--budget 120]
"""

import argparse
import time

import torch
from torchdiffeq import odeint

from equipoise.data import load
from equipoise.integrate.losses import log_risk
from equipoise.integrate.problem import build_problem
from equipoise.integrate.steppers import EntropicMidpoint
from equipoise.networks import mlp


def velocity(problem, weights):
    """`-∇ log R`, and `log R`."""
    seen = problem.margins.evaluate(weights)
    slopes = tuple((z > 0).to(z) for z in seen.preactivations)
    here = problem.margins.linearise(weights, slopes)
    return here.pullback(torch.softmax(-seen.margins, 0)), log_risk(seen.margins)


def entropic(problem, depth, budget, size=0.02):
    stepper = EntropicMidpoint(step_size=size)
    state, begun = stepper.init(problem.objective, problem.weights), time.perf_counter()
    while log_risk(state.evaluation.margins) > depth and time.perf_counter() - begun < budget:
        advanced = stepper.step(problem.objective, state)
        if advanced is None:
            break
        state = advanced[0]
    return state.weights, time.perf_counter() - begun


def dopri5(problem, depth, budget, rtol=1e-4):
    """Stretches of the rescaled flow by torchdiffeq until the loss is low enough."""
    weights, begun, stretch = problem.weights, time.perf_counter(), 0.5
    while time.perf_counter() - begun < budget:
        direction, loss = velocity(problem, weights)
        if loss <= depth:
            break
        span = stretch * max(1.0, abs(loss) ** 0.5) / float(direction.norm())
        path = odeint(
            lambda _, w: velocity(problem, w)[0],
            weights,
            torch.tensor([0.0, span]).double(),
            method="dopri5",
            rtol=rtol,
            atol=1e-8,
        )
        weights = path[-1]
    return weights, time.perf_counter() - begun


def loss_scaled_descent(problem, depth, budget, rate=0.01):
    """Gradient descent with step `rate / R`: Euler's method on `-∇ log R`."""
    weights, begun = problem.weights, time.perf_counter()
    while time.perf_counter() - begun < budget:
        direction, loss = velocity(problem, weights)
        if loss <= depth:
            break
        weights = weights + rate / max(1.0, abs(loss)) * direction
    return weights, time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--depths", default="30,100,300,1000")
    parser.add_argument("--budget", type=float, default=60.0)
    options = parser.parse_args()
    problem = build_problem(mlp([20, 16, 16, 16, 1], linear_tail=3), load("separable", n=60, d=20), "exponential")
    print(f"{'log R':>8} {'method':>22} {'reached':>9} {'seconds':>9} {'ratio':>7} {'angle to reference':>19}")
    for depth in (-float(part) for part in options.depths.split(",")):
        reference, _ = entropic(problem, depth, 10 * options.budget, size=0.0025)
        base = None
        for method in (entropic, dopri5, loss_scaled_descent):
            weights, seconds = method(problem, depth, options.budget)
            base = base or seconds
            error = float((weights / weights.norm() - reference / reference.norm()).norm())
            reached = log_risk(problem.margins.evaluate(weights).margins)
            print(
                f"{depth:8.0f} {method.__name__:>22} {reached:9.1f} {seconds:9.2f} {seconds / base:7.1f} {error:19.2e}"
            )


if __name__ == "__main__":
    main()
