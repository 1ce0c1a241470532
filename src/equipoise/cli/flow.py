"""`equipoise flow` and `equipoise demo`: a network trained to its limit."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cyclopts import Parameter
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import equipoise as eq
from equipoise.cli.app import (
    Json,
    Quiet,
    integers,
    line,
    network_widths,
    refuse_ignored,
    require_seed,
    require_writable,
    say,
    stderr,
    typed,
)
from equipoise.data import Dataset
from equipoise.errors import InputError
from equipoise.graph.chain import linear_tail
from equipoise.integrate.goals import Goal, Instant, parse_goal
from equipoise.integrate.loop import run_flow
from equipoise.integrate.manifest import Origin
from equipoise.page.render import require_libraries
from equipoise.theorems.linear_tail import LinearTail, certified_bounds

_STEP_SIZE = 0.05


@Parameter(name="*")
@dataclass(frozen=True)
class Examples:
    """The training set.

    Attributes:
        data: digits, mnist, fashion_mnist or separable.
        classes: two labels, the first of which becomes -1 (default: 0,1; separable has none).
        n: examples (default: all).
    """

    data: str = "digits"
    classes: str | None = None
    n: int | None = None

    def load(self, seed: int) -> Dataset:
        """The examples that the seed draws. Raises `InputError` for anything but two classes."""
        refuse_ignored("--data separable", {"--classes": self.data == "separable" and self.classes is not None})
        pair = None if self.data == "separable" else tuple(integers("--classes", self.classes or "0,1", "0,1"))
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
        return asdict(self) | {"widths": network_widths(inputs, self.widths), "seed": seed}


def flow(
    *,
    examples: Examples = Examples(),
    network: Network = Network(),
    loss: str = "exponential",
    until: str | None = None,
    seed: int = 0,
    max_steps: int | None = None,
    step_size: float = _STEP_SIZE,
    out: Path | None = None,
    resume: Path | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run gradient flow of a ReLU network with a linear tail to its limit, on real images.

    Args:
        loss: exponential or logistic.
        until: log_loss=X, growth=S, steps=N, separated or flip (default: log_loss=-1e6).
        seed: of the initial weights, and of the examples that --n draws.
        max_steps: stop after this many steps in any case (default: 10000).
        step_size: largest relative change of the weights in one step.
        out: folder for the run.
        resume: go on with the run in this folder; --until and --max-steps set it another goal.
        json: one JSON object as the last line of standard output.
        quiet: no progress line.
    """
    goal = None if until is None else _goal(until)
    require_seed(seed)
    require_writable(out, "--out", folder=True)
    if resume is not None:
        given = _given(examples, Examples()) | _given(network, Network())
        given |= {"--loss": loss != "exponential", "--seed": seed != 0, "--step-size": step_size != _STEP_SIZE}
        refuse_ignored("--resume", given | {"--out": out is not None})
    with ProgressLine(quiet or not stderr.is_terminal) as callback:
        if resume is not None:
            run = eq.resume(resume, callback=callback, until=goal, max_steps=max_steps)
        else:
            stepper = eq.steppers.EntropicMidpoint(step_size=step_size)
            asked = {"loss": loss, "until": goal or eq.LogLoss(-1e6), "stepper": stepper, "out": out}
            asked["max_steps"] = 10_000 if max_steps is None else max_steps
            run = _trained(examples.load(seed), network, seed, callback, **asked)
    return _tell_run(run, eq.certify(run), json)


def demo(*, page: Path = Path("report.html"), seed: int = 0, json: Json = False, quiet: Quiet = False) -> int:
    """Train a network on the embedded digits to log R ≤ -1e12, certify it, and write the page that shows it.

    Its weights start small (N(0, 1/fan_in) times 0.03), so that they grow more than a thousandfold on the way: enough
    for the linear layers to be rank one to six digits.

    Args:
        page: where the page goes.
        seed: of the initial weights.
    """
    require_seed(seed)
    require_writable(page, "--page")
    require_libraries()
    with ProgressLine(quiet or not stderr.is_terminal) as callback:
        run = _trained(Examples().load(seed), Network(scale=0.03), seed, callback, until=eq.LogLoss(-1e12))
    certificate = eq.certify(run)
    where = eq.report(run, page, certificate=certificate)
    code = _tell_run(run, certificate, json)
    if not json:
        say(certificate)
        say(f"\nThe page: {where.resolve().as_uri()}")
    return code


def _goal(text: str) -> Goal:
    """A goal that lies ahead of the start."""
    goal = parse_goal(text)
    start = Instant(log_loss=math.inf, growth=0.0, steps=0, separation=math.inf)
    if goal.distance(start, start) <= 0:
        raise InputError(
            expected="--until to lie ahead of the start, where growth and steps are 0",
            found=text,
            remedy="type --until growth=3 or --until steps=100",
        )
    return goal


def _given(options: object, defaults: object) -> dict[str, bool]:
    """By option, whether it differs from its default."""
    return {f"--{name.replace('_', '-')}": value != vars(defaults)[name] for name, value in vars(options).items()}


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
