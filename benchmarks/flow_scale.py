"""What the engine takes, and what a step costs: skips, convolutions, ten classes, thousands of examples.

Each case prints one line of JSON: where it ended, steps, seconds, passes over the data for each step, the largest
resident memory of the process, the worst relative drift of each kind of law, and what the certificate says of the
tail. Cases run in this process, one a call:

    python benchmarks/flow_scale.py residual|convnet|classes|all|pair [--n N] [--until log_loss=-1e8] [--max-steps 500]

With `--out` the run is a folder, read by `equipoise report`, and goes on with `eq.resume` where it was interrupted.
"""

import argparse
import json
import resource
import time

import equipoise as eq
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


def measured(name, n, until, max_steps, out):
    network, data, flow = CASES[name]
    X, y = eq.data.load("mnist", **(data | ({} if n is None else {"n": n})))
    flow |= {} if until is None else {"until": until}
    begun = time.perf_counter()
    run = eq.flow(network(), (X, y), observe=[eq.Drift(), eq.Spectrum()], max_steps=max_steps, out=out, **flow)
    seconds, certificate = time.perf_counter() - begun, eq.certify(run)
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
        "passes_per_step": run.gradient_evaluations / max(run.steps, 1),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "drift": drifts,
        "certificate_holds": certificate.holds,
        "tail": [{"claim": claim.name, "measured": claim.measured, "bound": claim.bound} for claim in ranks],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--n", type=int)
    parser.add_argument("--until")
    parser.add_argument("--max-steps", type=int, default=2000)
    parser.add_argument("--out")
    asked = parser.parse_args()
    print(json.dumps(measured(asked.case, asked.n, asked.until, asked.max_steps, asked.out)))
