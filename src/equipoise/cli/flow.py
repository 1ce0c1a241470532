"""`equipoise flow` and `equipoise demo`: a network trained to its limit."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cyclopts import Parameter
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import equipoise as eq
from equipoise.cli.app import Json, Quiet, app, integers, line, say, stderr, typed
from equipoise.data import Dataset
from equipoise.errors import InputError
from equipoise.graph.chain import linear_tail
from equipoise.integrate.goals import parse_goal
from equipoise.integrate.loop import run_flow
from equipoise.integrate.manifest import Origin
from equipoise.theorems.linear_tail import LinearTail, certified_bounds


@Parameter(name="*")
@dataclass(frozen=True)
class Examples:
    """The training set.

    Attributes:
        data: digits, mnist, fashion_mnist or separable.
        classes: two labels, the first of which becomes -1.
        n: examples (default: all).
    """

    data: str = "digits"
    classes: str = "0,1"
    n: int | None = None

    def load(self, seed: int) -> Dataset:
        """The examples that the seed draws. Raises `InputError` for anything but two classes."""
        pair = None if self.data == "separable" else tuple(integers("--classes", self.classes))
        if pair is not None and len(pair) != 2:
            raise InputError(expected="two classes", found=f"{len(pair)} ({self.classes})", remedy="type --classes 0,1")
        return eq.data.load(self.data, pair, n=self.n, seed=seed)


@Parameter(name="*")
@dataclass(frozen=True)
class Network:
    """A ReLU network with a linear tail.

    Attributes:
        widths: hidden widths; the output is one score.
        linear_tail: the number of last weight matrices that are linear.
        bias: a bias in every layer.
        init: how weights start (fan_in is N(0, 1/fan_in)).
        scale: of the weights at the start, a factor on init.
    """

    widths: str = "64,64,64,64"
    linear_tail: int = 3
    bias: bool = False
    init: str = "fan_in"
    scale: float = 1.0

    def recipe(self, inputs: int, seed: int) -> dict[str, Any]:
        """The arguments of `eq.networks.mlp`."""
        return asdict(self) | {"widths": [inputs, *integers("--widths", self.widths), 1], "seed": seed}


@app.command
def flow(
    *,
    examples: Examples = Examples(),
    network: Network = Network(),
    loss: str = "exponential",
    until: str = "log_loss=-1e6",
    seed: int = 0,
    max_steps: int = 10_000,
    step_size: float = 0.05,
    out: Path | None = None,
    resume: Path | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run gradient flow of a ReLU network with a linear tail to its limit, on real images.

    Args:
        loss: exponential or logistic.
        until: log_loss=X, growth=S, steps=N, separated or flip.
        seed: of the weights and of the choice of examples.
        max_steps: the number of steps after which to stop in any case.
        step_size: largest relative change of the weights in one step.
        out: folder for the run.
        resume: go on with the run in this folder.
        json: one JSON object as the last line of standard output.
        quiet: no progress line.
    """
    with ProgressLine(quiet or not stderr.is_terminal) as callback:
        if resume is not None:
            run = eq.resume(resume, callback=callback)
        else:
            goal, stepper = parse_goal(until), eq.steppers.EntropicMidpoint(step_size=step_size)
            asked = {"loss": loss, "until": goal, "stepper": stepper, "max_steps": max_steps, "out": out}
            run = _trained(examples.load(seed), network, seed, callback, **asked)
    return _tell_run(run, eq.certify(run), json)


@app.command
def demo(*, page: Path = Path("report.html"), seed: int = 0, json: Json = False, quiet: Quiet = False) -> int:
    """Train a network on the embedded digits to log R ≤ -1e12, certify it, and write the page that shows it.

    Its weights start small (N(0, 1/fan_in) times 0.03), so that they grow more than a thousandfold on the way: enough
    for the linear layers to be rank one to six digits.

    Args:
        page: where the page goes.
        seed: of the weights and of the choice of examples.
    """
    with ProgressLine(quiet or not stderr.is_terminal) as callback:
        run = _trained(Examples().load(seed), Network(scale=0.03), seed, callback, until=eq.LogLoss(-1e12))
    certificate = eq.certify(run)
    where = eq.report(run, page, certificate=certificate)
    code = _tell_run(run, certificate, json)
    if not json:
        say(certificate)
        say(f"\nThe page: {where.resolve().as_uri()}")
    return code


def _trained(dataset: Dataset, network: Network, seed: int, callback: "ProgressLine", **asked: Any) -> "eq.Run":
    recipe = network.recipe(dataset.X[0].numel(), seed)
    origin = Origin(recipe, seed, typed())
    return run_flow(eq.networks.mlp(**recipe), dataset, origin=origin, callback=callback, **asked)


def _rank_one_bounds(run: "eq.Run") -> dict[str, float]:
    """The certified bound of every layer of the tail that tends to rank one."""
    if not run.chain:
        return {}
    tail = LinearTail.of(linear_tail(run.chain), run.final)
    bounds, ranks = certified_bounds(tail, run.initial, run.final), tail.ranks(run.final)
    return {name: bound for name, bound in bounds.items() if ranks[name] == 1}


def _tell_run(run: "eq.Run", certificate: "eq.Certificate", as_json: bool) -> int:
    """The run and its certificate, as one JSON object or in words."""
    summary = run.summary()
    bounds = _rank_one_bounds(run)
    for layer in summary["layers"]:
        layer["certified_bound"] = bounds.get(layer["name"])
    summary["certificate"] = certificate.to_json()
    if as_json:
        say(line(summary))
    else:
        say(f"{run.status} ({run.reason})" if run.reason else run.status)
        say(f"log R = {run.log_loss:.6g} after {run.steps} steps and {run.seconds:.1f} s, growth {run.growth:.3f}")
        for layer in summary["layers"]:
            bound = layer["certified_bound"]
            promise = "" if bound is None else f", certified below {bound:.2e}"
            say(f"  {layer['name']:16} {layer['kind']:6}  1 - σ₁²/‖W‖² = {layer['rank_one_residual']:.2e}{promise}")
        say(f"the certificate {'holds' if certificate.holds else 'does NOT hold'}: equipoise certify DIR prints it")
    return 0 if run.status in ("reached", "precision_floor") else 1


class ProgressLine:
    """A progress line on standard error: log-loss, growth, step size."""

    def __init__(self, quiet: bool):
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self.progress = Progress(*columns, console=stderr, disable=quiet, transient=True)
        self.task = self.progress.add_task("reading the network")

    def __enter__(self) -> "ProgressLine":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, step: int, log_loss: float, growth: float, tail_residual: float | None) -> None:
        """Show the progress of the run."""
        residual = "" if tail_residual is None else f"  tail 1 - σ₁²/‖W‖² = {tail_residual:.1e}"
        self.progress.update(self.task, description=f"step {step}  log R = {log_loss:.5g}  s = {growth:.3f}{residual}")
