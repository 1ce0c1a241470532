"""What the engine takes, and what a step costs: skips, convolutions, ten classes, thousands of examples.

Each case prints one line of JSON: where it ended, steps, seconds, passes over the data for each step, the largest
resident memory of the process, the worst relative drift of each kind of law, and what the certificate says of the
tail. Cases run in this process, one a call:

    python benchmarks/flow_scale.py residual|convnet|classes|all|pair [--n N] [--until log_loss=-1e8] [--max-steps 500]
        [--explicit always|never]

With several numbers of examples, `--n 1000,2000,4000`, each is a process of its own, and a table ends the output: how
passes, CPU seconds and memory grow. `--explicit never` takes implicit steps only, `always` lets explicit ones compete.
With `--out` the run is a folder, read by `equipoise report`, and goes on with `eq.resume` where it was interrupted.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time

import equipoise as eq
from equipoise.integrate.steppers import EntropicMidpoint
from equipoise.networks import convnet, mlp, residual_mlp

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


def measured(name, n, until, max_steps, out, explicit="auto"):
    network, data, flow = CASES[name]
    X, y = eq.data.load("mnist", **(data | ({} if n is None else {"n": n})))
    flow |= {} if until is None else {"until": until}
    stepper, begun, used = EntropicMidpoint(explicit=EXPLICIT[explicit]), time.perf_counter(), time.process_time()
    observers = [eq.Drift(), eq.Spectrum()]
    run = eq.flow(network(), (X, y), stepper=stepper, observe=observers, max_steps=max_steps, out=out, **flow)
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
    }


def table(rows):
    """Markdown: a row for each number of examples, and the exponents with which the columns grow from first to last."""
    columns = ("steps", "passes", "cpu_seconds", "megabytes")
    lines = ["| examples | log R | steps | passes | CPU seconds | MB |", "|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        figures = " | ".join(f"{row[c]:.0f}" for c in columns)
        lines += [f"| {row['examples']} | {row['log_loss']:.4g} | {figures} |"]
    first, last = rows[0], rows[-1]
    grown = math.log(last["examples"] / first["examples"])
    exponents = " | ".join(f"{math.log(last[c] / first[c]) / grown:.2f}" for c in columns)
    return "\n".join([*lines, f"| grows to the | | {exponents} |"])


def in_processes(sizes, arguments):
    """The lines of one process for each number of examples."""
    rows = []
    for n in sizes:
        command = [sys.executable, __file__, *arguments, "--n", str(n)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--n", type=lambda text: [int(n) for n in text.split(",")], default=[None])
    parser.add_argument("--until")
    parser.add_argument("--max-steps", type=int, default=2000)
    parser.add_argument("--out")
    parser.add_argument("--explicit", choices=EXPLICIT, default="auto")
    asked = parser.parse_args()
    if len(asked.n) > 1:
        given = {"--until": asked.until, "--max-steps": asked.max_steps, "--explicit": asked.explicit}
        options = [f"{name}={value}" for name, value in given.items() if value is not None]
        print(table(in_processes(asked.n, [asked.case, *options])))
    else:
        print(json.dumps(measured(asked.case, asked.n[0], asked.until, asked.max_steps, asked.out, asked.explicit)))
