"""What the engine takes, and what a step costs: skips, convolutions, ten classes, thousands of examples.

Each case prints one line of JSON: where it ended, steps, seconds, passes over the data for each step, the largest
resident memory of the process, the worst relative drift of each kind of law, and what the certificate says of the
tail. Cases run in this process, one a call:

    python benchmarks/flow_scale.py residual|convnet|classes|parity|all|pair [--n N] [--until log_loss=-1e8]
        [--max-steps 500] [--explicit always|never]
    python benchmarks/flow_scale.py grid [--n N] [--width W] [--depth D] [--classes C] [--until GOAL] [--beside 60]

With several values, `--n 1000,2000,4000`, each is a process of its own, and a table ends the output: how passes, CPU
seconds and memory grow. `grid` is a network of D hidden layers of width W, the last three linear, on C digits, in which
one of n, width, depth and classes is varied. `--beside SECONDS` follows the same flow with torchdiffeq's dopri5 for so
long at most, at a tolerance of 1e-5. `--explicit never` takes implicit steps only, `always` lets explicit ones compete.
With `--out` the run is a folder, read by `equipoise report`, and goes on with `eq.resume` where it was interrupted.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from functools import partial

import torch

import equipoise as eq
from equipoise.integrate.problem import build_problem
from equipoise.integrate.steppers import EntropicMidpoint
from equipoise.networks import convnet, mlp, residual_mlp
from flow_depth import OutOfTime, dopri5

CASES = {
    "residual": (
        lambda: residual_mlp(784, 32, 32, blocks=2, linear_tail=3, seed=0),
        {"classes": (0, 1), "n": 200},
        {"loss": "exponential", "until": "log_loss=-1e8"},
    ),
    "convnet": (
        lambda: convnet((28, 28), (4, 8), width=16, linear_tail=3, seed=0),
        {"classes": (0, 1), "n": 200},
        {"loss": "exponential", "until": "log_loss=-1e8"},
    ),
    "classes": (
        lambda: mlp([784, 128, 64, 64, 10], linear_tail=3, seed=0),
        {"classes": tuple(range(10)), "n": 2000},
        {"loss": "cross_entropy", "until": "log_loss=-1e4"},
    ),
    "parity": (
        lambda: mlp([784, 128, 64, 64, 1], linear_tail=3, seed=0),
        {"classes": tuple(range(10)), "n": None},
        {"loss": "exponential", "until": "log_loss=-1e4"},
    ),
    "all": (
        lambda: mlp([784, 64, 64, 64, 64, 1], linear_tail=3, seed=0),
        {"classes": (0, 1), "n": None},
        {"loss": "exponential", "until": "log_loss=-1e8"},
    ),
    "pair": (
        lambda: mlp([784, 512, 512, 512, 512, 1], linear_tail=3, seed=0),
        {"classes": (0, 1), "n": None},
        {"loss": "exponential", "until": "log_loss=-1e6"},
    ),
}


EXPLICIT = {"auto": None, "always": True, "never": False}
GRID = {"n": 500, "width": 32, "depth": 4, "classes": 2}  # where they are not varied


def grid(n, width, depth, classes):
    """A case of the grid: hidden layers of one width, the last three linear."""
    outputs, loss = (1, "exponential") if classes == 2 else (classes, "cross_entropy")
    network = partial(mlp, [784, *[width] * depth, outputs], linear_tail=3, seed=0)
    return network, {"classes": tuple(range(classes)), "n": n}, {"loss": loss, "until": "log_loss=-20"}


def loaded(name, data):
    """The examples of a case; even against odd digits for `parity`."""
    X, y = eq.data.load("mnist", **data)
    return (X, torch.where(y % 2 == 0, 1.0, -1.0).to(X)) if name == "parity" else (X, y)


def followed(network, data, loss, log_loss, seconds):
    """CPU seconds that dopri5 takes to this loss, and its passes; none where it does not come there in time."""
    problem, passes, begun = build_problem(network, data, loss), 0, time.process_time()

    class Budget:
        def seconds(self):
            nonlocal passes
            passes += 1
            if time.process_time() - begun > seconds:
                raise OutOfTime

    try:
        next(dopri5(problem, [log_loss], 1e-5, Budget()))
    except OutOfTime:
        return {"cpu_seconds": None, "passes": passes}
    return {"cpu_seconds": time.process_time() - begun, "passes": passes}


def measured(name, case, until, max_steps, out, explicit="auto", beside=None, scale=1.0):
    network, data, flow = case
    X, y = loaded(name, data)
    flow |= {} if until is None else {"until": until}
    stepper, begun, used = EntropicMidpoint(explicit=EXPLICIT[explicit]), time.perf_counter(), time.process_time()
    observers = [eq.Drift(), eq.Spectrum()]
    model = network()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= scale
    run = eq.flow(model, (X, y), stepper=stepper, observe=observers, max_steps=max_steps, out=out, **flow)
    seconds, used, certificate = time.perf_counter() - begun, time.process_time() - used, eq.certify(run)
    ranks = [claim for claim in certificate.claims if claim.theorem == "T3.1"]
    drifts = {kind: run.last("drift", "relative_drift", f"worst {kind}") for kind in ("linear", "vertex")}
    return {
        "case": name,
        "examples": len(y),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "status": run.status.value,
        "log_loss": run.log_loss,
        "growth": run.growth,
        "steps": run.steps,
        "seconds": seconds,
        "cpu_seconds": used,
        "passes": run.gradient_evaluations,
        "passes_per_step": run.gradient_evaluations / max(run.steps, 1),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "drift": drifts,
        "certificate_holds": certificate.holds,
        "tail": [{"claim": claim.name, "measured": claim.measured, "bound": claim.bound} for claim in ranks],
        "dopri5": beside and followed(network(), (X, y), flow["loss"], run.log_loss, beside),
    }


def table(varied, values, rows):
    """Markdown: a row for each value, and the exponents with which the columns grow from first to last."""
    columns = ("steps", "passes", "cpu_seconds", "megabytes")
    lines = [f"| {varied} | log R | steps | passes | CPU seconds | MB | dopri5: passes | CPU seconds |"]
    lines += ["|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for value, row in zip(values, rows, strict=True):
        figures = " | ".join(f"{row[c]:.0f}" for c in columns)
        peer = row["dopri5"] or {"passes": "", "cpu_seconds": None}
        beside = [str(peer["passes"]), "" if peer["cpu_seconds"] is None else f"{peer['cpu_seconds']:.0f}"]
        lines += [f"| {value} | {row['log_loss']:.4g} | {figures} | {' | '.join(beside)} |"]
    grown = math.log(values[-1] / values[0])
    exponents = " | ".join(f"{math.log(rows[-1][c] / rows[0][c]) / grown:.2f}" for c in columns)
    return "\n".join([*lines, f"| grows to the | | {exponents} | | |"])


def in_processes(varied, values, arguments):
    """The lines of one process for each value."""
    rows = []
    for value in values:
        command = [sys.executable, __file__, *arguments, f"--{varied}", str(value)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=[*CASES, "grid"])
    for name in GRID:
        parser.add_argument(f"--{name}", type=lambda text: [int(n) for n in text.split(",")], default=[])
    parser.add_argument("--until")
    parser.add_argument("--max-steps", type=int, default=2000)
    parser.add_argument("--out")
    parser.add_argument("--explicit", choices=EXPLICIT, default="auto")
    parser.add_argument("--beside", type=float)
    parser.add_argument("--scale", type=float, default=1.0, help="of all weights at the start")
    asked = vars(parser.parse_args())
    sizes = {name: asked.pop(name) for name in GRID}
    several = [name for name, values in sizes.items() if len(values) > 1]
    name = asked.pop("case")
    if several:
        (varied,) = several
        one = {key: values[0] for key, values in sizes.items() if len(values) == 1}
        options = [f"--{key.replace('_', '-')}={value}" for key, value in (asked | one).items() if value is not None]
        print(table(varied, sizes[varied], in_processes(varied, sizes[varied], [name, *options])))
        return
    given = {key: values[0] for key, values in sizes.items() if values}
    if name == "grid":
        case = grid(**(GRID | given))
    else:
        network, data, flow = CASES[name]
        case = network, data | given, flow
    print(json.dumps(measured(name, case, **asked)))


if __name__ == "__main__":
    main()
