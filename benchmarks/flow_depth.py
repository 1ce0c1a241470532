"""Time to depth at equal error: our two steppers, dopri5, scipy's Radau, and gradient descent with loss-scaled steps.

One run, one machine. Every method follows the flow of `log R` of a deep linear network from the same weights to the
same losses; each is tuned along a ladder of its own settings, and counts at the first setting whose weights are within
`--error` (relative) of a fine reference at equal `log R`. Then the same at one depth for more examples and for wider
layers. Writes a section of docs/benchmarks.md, and docs/flow_depth.svg.

    python benchmarks/flow_depth.py [--depths 30,100,1000,10000] [--error 1e-3] [--budget 15]
"""

import argparse
import math
import re
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torchdiffeq import odeint_event

from equipoise.data import load
from equipoise.integrate.implicit.event_location import locate_event
from equipoise.integrate.problem import build_problem
from equipoise.integrate.steppers import EntropicGauss, EntropicMidpoint, State
from equipoise.integrate.steppers.runge_kutta import direction
from equipoise.networks import mlp

DOCS = Path(__file__).resolve().parents[1] / "docs"
INPUTS, WIDTH, EXAMPLES = 10, 8, 30
COUNTS, WIDE, SHALLOW = (30, 100, 300), (8, 32, 128), -100.0  # of the scaling in n and width, at this depth
JACOBIANS = 500  # parameters above which Radau is left out: it forms a dense Jacobian by as many differences


class Point(NamedTuple):
    """Where a method was when it came to a depth, and what it had cost."""

    weights: torch.Tensor
    seconds: float


class OutOfTime(Exception):
    pass


class Clock:
    """Seconds since it was made, and the end of the budget."""

    def __init__(self, budget):
        self.begun, self.budget = time.perf_counter(), budget

    def seconds(self):
        spent = time.perf_counter() - self.begun
        if spent > self.budget:
            raise OutOfTime
        return spent


def log_risk(problem, weights):
    return problem.objective.log_risk(problem.margins.evaluate(weights))


def midpoint(problem, depths, size, clock):
    """The setting is the step size."""
    return stepped(problem, depths, EntropicMidpoint(step_size=size, rtol=1.0), clock)


def gauss(problem, depths, size, clock):
    """The setting is the step size."""
    return stepped(problem, depths, EntropicGauss(step_size=size, rtol=1.0), clock)


def stepped(problem, depths, stepper, clock):
    """Our own steppers, each step cut to end at a depth."""
    objective = problem.objective
    state = stepper.init(objective, problem.weights)
    for depth in depths:
        while (begun := objective.log_risk(state.evaluation) - depth) > 0:
            taken = stepper.step(objective, state)
            if objective.log_risk(taken[0].evaluation) <= depth:
                taken = locate_event(
                    lambda size, state=state: stepper.step(objective, state, size),
                    lambda taken: taken[1].planned,
                    lambda taken, depth=depth: objective.log_risk(taken[0].evaluation) - depth,
                    taken,
                    begun,
                    1e-6 * abs(depth),
                )
            state = taken[0]
            clock.seconds()
        yield Point(state.weights, clock.seconds())


def dopri5(problem, depths, rtol, clock):
    """torchdiffeq on `dw/ds = ‖w‖ v/‖v‖`, `v = -∇ log R`; the setting is its relative tolerance."""
    weights = problem.weights

    def velocity(_, weights):
        clock.seconds()
        return direction(problem.objective, weights)

    for depth in depths:
        _, path = odeint_event(
            velocity,
            weights,
            torch.tensor(0.0).double(),
            event_fn=lambda _, weights, depth=depth: torch.tensor(log_risk(problem, weights) - depth),
            method="dopri5",
            rtol=rtol,
            atol=rtol,
        )
        weights = path[-1]
        yield Point(weights, clock.seconds())


def radau(problem, depths, rtol, clock):
    """scipy's implicit Radau on the same system; the setting is its relative tolerance."""
    weights = problem.weights

    def velocity(_, flat):
        clock.seconds()
        return direction(problem.objective, torch.as_tensor(flat)).numpy()

    for depth in depths:

        def arrives(_, flat, depth=depth):
            return log_risk(problem, torch.as_tensor(flat)) - depth

        arrives.terminal = True
        found = solve_ivp(velocity, (0.0, 50.0), weights.numpy(), "Radau", events=arrives, rtol=rtol, atol=rtol)
        weights = torch.as_tensor(found.y_events[0][0])
        yield Point(weights, clock.seconds())


def descent(problem, depths, fall, clock):
    """`w ← w + η v` with `η = fall / ‖v‖²`, so that each step lowers `log R` by `fall` or so; `fall` is the setting."""
    weights, objective = problem.weights, problem.objective
    for depth in depths:
        while log_risk(problem, weights) > depth:
            clock.seconds()
            state = State.start(objective, weights, {})
            flow = objective.linearize(weights, state.slopes).vjp(objective.cotangents(state.evaluation))
            move = fall * flow / flow.square().sum()
            if log_risk(problem, weights + move) <= depth:
                move *= locate_event(
                    lambda share: share,
                    lambda share: share,
                    lambda share, depth=depth, move=move, weights=weights: (
                        log_risk(problem, weights + share * move) - depth
                    ),
                    1.0,
                    log_risk(problem, weights) - depth,
                    1e-6 * abs(depth),
                )
            weights = weights + move
        yield Point(weights, clock.seconds())


LADDERS = {
    gauss: [0.1, 0.05, 0.025],
    midpoint: [0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625],
    dopri5: [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7],
    radau: [1e-2, 1e-3, 1e-4, 1e-5],
    descent: [0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003],
}
LABELS = {
    gauss: "EntropicGauss",
    midpoint: "EntropicMidpoint",
    dopri5: "dopri5 (torchdiffeq)",
    radau: "Radau (scipy)",
    descent: "loss-scaled GD",
}
FINE = {gauss: 0.0125, dopri5: 1e-8}  # settings of the references: to any depth, and for many examples


def reached(problem, method, setting, depths, budget):
    """The points of one run, as many as the budget allows."""
    points = []
    try:
        for point in method(problem, depths, setting, Clock(budget)):
            points.append(point)  # noqa: PERF402 - those before the time is out are kept
    except OutOfTime:
        pass
    return dict(zip(depths, points, strict=False))


def tuned(problem, method, depths, reference, target, budget):
    """By depth, the first setting within the error: (seconds, error, setting)."""
    best = {}
    for setting in LADDERS[method]:
        points = reached(problem, method, setting, depths, budget)
        for depth, point in points.items():
            error = float((point.weights - reference[depth].weights).norm() / reference[depth].weights.norm())
            print(
                f"{LABELS[method]:>22} {setting:8g} {depth:8.0f} {point.seconds:9.2f} s  error {error:.1e}", flush=True
            )
            if error <= target and depth not in best:
                best[depth] = (point.seconds, error, setting)
        if len(best) == len(depths) or not set(points) - set(best):  # the next setting is dearer still
            break
    return best


def exponent(found):
    """The slope of log seconds over log(depth): the power with which time grows with log(1/R)."""
    if len(found) < 2:
        return math.nan
    depths, seconds = np.log([-d for d in found]), np.log([each[0] for each in found.values()])
    return float(np.polyfit(depths, seconds, 1)[0])


def table(results, depths, target):
    heads = " | ".join(f"log R = {depth:.0f}" for depth in depths)
    lines = [f"| method | {heads} | grows as log(1/R) to the |", "|---|" + "---:|" * (len(depths) + 1)]
    for method, found in results.items():
        cells = [
            f"{found[d][0]:.2f} s (error {found[d][1]:.0e})" if d in found else "not within error and budget"
            for d in depths
        ]
        power = exponent(found)
        lines.append(f"| {LABELS[method]} | {' | '.join(cells)} | {'—' if math.isnan(power) else f'{power:.2f}'} |")
    return "\n".join(lines)


def build(examples, width):
    widths = [INPUTS, width, width, width, 1]
    data = load("separable", n=examples, d=INPUTS)
    return build_problem(mlp(widths, linear_tail=len(widths) - 1), data, "exponential")


def compared(problem, depths, target, budget, fine):
    """By method and depth, the first setting within the error; Radau where it is small enough."""
    reference = reached(problem, fine, FINE[fine], depths, math.inf)
    small = [method for method in LADDERS if method is not radau or len(problem.weights) <= JACOBIANS]
    return {method: tuned(problem, method, depths, reference, target, budget) for method in small}


def scaling(cases, target, budget):
    """By method, seconds to one depth for each case."""
    found = {method: {} for method in LADDERS}
    for size, problem in cases:
        for method, best in compared(problem, [SHALLOW], target, budget, dopri5).items():
            if SHALLOW in best:
                found[method][size] = best[SHALLOW][0]
    return found


def scaling_table(found, sizes, name):
    lines = [f"| method | {' | '.join(f'{name} = {size}' for size in sizes)} |", "|---|" + "---:|" * len(sizes)]
    for method, seconds in found.items():
        cells = (f"{seconds[size]:.2f} s" if size in seconds else "—" for size in sizes)
        lines.append(f"| {LABELS[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(panels, path):
    """Seconds against depth, examples and width, side by side."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    chart, row = plt.subplots(1, len(panels), figsize=(12, 4), layout="constrained", sharey=True)
    for axes, (label, found) in zip(row, panels.items(), strict=True):
        for (method, seconds), mark in zip(found.items(), "Dos^v", strict=True):
            axes.loglog(list(seconds), list(seconds.values()), marker=mark, label=LABELS[method])
        measured = sorted({each for seconds in found.values() for each in seconds})
        axes.set(xlabel=label)
        axes.set_xticks(measured, [f"{each:g}" for each in measured])
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
    row[0].set(ylabel="seconds")
    row[0].legend()
    chart.suptitle("Time to depth at equal error")
    chart.savefig(path, metadata={"Date": None})


def publish(name, text):
    """Put a section between its marks in docs/benchmarks.md, leaving the others."""
    page = DOCS / "benchmarks.md"
    whole = page.read_text() if page.exists() else "# Benchmarks\n"
    section = f"<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->"
    marks = re.compile(f"<!-- {name} -->.*<!-- /{name} -->", re.DOTALL)
    whole = marks.sub(lambda _: section, whole) if marks.search(whole) else f"{whole.rstrip()}\n\n{section}\n"
    page.write_text(whole)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--depths", default="30,100,1000,10000")
    parser.add_argument("--error", type=float, default=1e-3)
    parser.add_argument("--budget", type=float, default=15.0, help="seconds for each run")
    options = parser.parse_args()
    depths = [-float(part) for part in options.depths.split(",")]
    results = compared(build(EXAMPLES, WIDTH), depths, options.error, options.budget, gauss)
    short = options.budget / 4
    by_count = scaling(((n, build(n, WIDTH)) for n in COUNTS), options.error, short)
    by_width = scaling(((width, build(EXAMPLES, width)) for width in WIDE), options.error, short)
    rows = table(results, depths, options.error)
    tables = scaling_table(by_count, COUNTS, "n"), scaling_table(by_width, WIDE, "width")
    print(rows, *tables, sep="\n\n")
    by_depth = {method: {-depth: best[0] for depth, best in found.items()} for method, found in results.items()}
    panels = {"depth, -log R": by_depth, "examples n": by_count, "width": by_width}
    figure(panels, DOCS / "flow_depth.svg")
    asked = f"--depths {options.depths} --error {options.error:g} --budget {options.budget:g}"
    layers = "-".join(map(str, (INPUTS, WIDTH, WIDTH, WIDTH, 1)))
    publish(
        "flow_depth",
        f"""## Time to depth, at equal error

Wall time from the same weights to the same loss, on a deep linear network {layers} with {EXAMPLES} examples,
exponential loss. Each method at the first of its settings, coarsest first, whose weights are within {options.error:g}
(relative) of a reference: EntropicGauss with steps of {FINE[gauss]:g}; in the two tables below, dopri5 with a tolerance
of {FINE[dopri5]:g}.
Printed by `python benchmarks/flow_depth.py {asked}`.

{rows}

To log R = {SHALLOW:.0f} with more examples, and with wider layers (no figure: not within the error and {short:g} s,
or for Radau more than {JACOBIANS} parameters):

{tables[0]}

{tables[1]}

![Time to depth](flow_depth.svg)
""",
    )


if __name__ == "__main__":
    main()
