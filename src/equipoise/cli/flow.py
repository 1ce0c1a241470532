"""`equipoise flow` and `equipoise demo`: a network trained to its limit."""

import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cyclopts import Parameter

import equipoise as eq
from equipoise.cli.app import (
    Json,
    Quiet,
    Whole,
    WholeOrNone,
    integers,
    line,
    network_widths,
    refuse_ignored,
    require_seed,
    require_writable,
    say,
    typed,
)
from equipoise.cli.config import Config
from equipoise.data import Dataset
from equipoise.errors import InputError
from equipoise.graph.chain import linear_tail
from equipoise.integrate.goals import Goal, Instant, parse_goal
from equipoise.integrate.loop import Callback, run_flow
from equipoise.integrate.manifest import Origin
from equipoise.page.render import require_libraries
from equipoise.stages import show_progress, stage
from equipoise.theorems.linear_tail import LinearTail, certified_bounds

_STEP_SIZE, _MAX_STEPS, _UNTIL = 0.05, 10_000, "log_loss=-1e6"


@Parameter(name="*")
@dataclass(frozen=True)
class Examples:
    """The training set.

    Attributes:
        data: data set: digits, mnist, fashion_mnist or separable.
        classes: two labels; the first becomes -1, the second 1 (default: 0,1; separable has none).
        n: number of examples (default: all).
    """

    data: str = "digits"
    classes: str | None = None
    n: WholeOrNone = None

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
        linear_tail: number of linear layers at the end.
        bias: give every layer a bias.
        init: distribution of the initial weights (fan_in is N(0, 1/fan_in)).
        scale: factor on the initial weights.
    """

    widths: str = "64,64,64,64"
    linear_tail: Whole = 3
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
    seed: Whole = 0,
    max_steps: WholeOrNone = None,
    step_size: float = _STEP_SIZE,
    out: Path | None = None,
    resume: Path | None = None,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run gradient flow of a ReLU network with a linear tail to its limit, on real images.

    The folder of --out keeps the options in config.toml, which --config takes.

    Args:
        loss: loss of the margins: exponential or logistic.
        until: goal: log_loss=X, growth=S, steps=N, separated or flip (default: log_loss=-1e6).
        seed: seed of the initial weights, and of the examples that --n draws.
        max_steps: largest number of steps (default: 10000).
        step_size: largest relative change of the weights in one step.
        out: folder to keep the run in.
        resume: go on with the run in this folder; --until and --max-steps set it another goal.
    """
    goal = None if until is None else _goal(until)
    require_seed(seed)
    require_writable(out, "--out", folder=True)
    if resume is not None:
        given = _given(examples, Examples()) | _given(network, Network())
        given |= {"--loss": loss != "exponential", "--seed": seed != 0, "--step-size": step_size != _STEP_SIZE}
        refuse_ignored("--resume", given | {"--out": out is not None})
    with show_progress(quiet=quiet):
        if resume is not None:
            with _progress_of_steps() as callback:
                run = eq.resume(resume, callback=callback, until=goal, max_steps=max_steps)
        else:
            steps = _MAX_STEPS if max_steps is None else max_steps
            asked = {"loss": loss, "until": until or _UNTIL, "max_steps": steps}
            options = vars(examples) | vars(network) | {"seed": seed, "step_size": step_size} | asked
            origin = Origin(None, seed, _command("flow", options, config, out), options)
            stepper = eq.steppers.EntropicMidpoint(step_size=step_size)
            run = _trained(examples.load(seed), network, origin, **asked, stepper=stepper, out=out)
        certificate = eq.certify(run)
    return _tell_run(run, certificate, json)


def demo(
    *,
    page: Path = Path("report.html"),
    seed: Whole = 0,
    out: Path | None = None,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Train a network on the embedded digits to log R ≤ -1e12, certify it, and write the page that shows it.

    Its weights start small (N(0, 1/fan_in) times 0.03), so that they grow more than a thousandfold on the way: enough
    for the linear layers to be rank one to six digits.

    Args:
        page: file of the page.
        seed: seed of the initial weights.
        out: folder to keep the run in (default: the run is not kept).
    """
    require_seed(seed)
    require_writable(page, "--page")
    require_writable(out, "--out", folder=True)
    require_libraries()
    options = {"seed": seed}
    origin = Origin(None, seed, _command("demo", options, config, out), options)
    with show_progress(quiet=quiet):
        run = _trained(Examples().load(seed), Network(scale=0.03), origin, until=eq.LogLoss(-1e12), out=out)
        certificate = eq.certify(run)
        with stage("drawing the page"):
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


def _command(verb: str, options: Mapping[str, object], config: Path | None, out: Path | None) -> str:
    """The command as it was typed; where a file had a part in it, with what the file said in its place."""
    if config is None:
        return typed()
    words = [
        f"--{name.replace('_', '-')}{'' if value is True else f'={value}'}"
        for name, value in {**options, "out": out}.items()
        if value is not None and value is not False
    ]
    return shlex.join(["equipoise", verb, *words])


def _trained(dataset: Dataset, network: Network, origin: Origin, **asked: Any) -> "eq.Run":
    recipe = network.recipe(dataset.X[0].numel(), origin.seed or 0)
    with _progress_of_steps() as callback:
        origin = replace(origin, network=recipe)
        return run_flow(eq.networks.mlp(**recipe), dataset, origin=origin, callback=callback, **asked)


@contextmanager
def _progress_of_steps() -> Iterator[Callback]:
    """A callback of a flow that says on the progress line where it is: log-loss, growth, rank of the linear tail."""
    with stage("reading the network") as current:

        def callback(step: int, log_loss: float, growth: float, tail_residual: float | None) -> None:
            residual = "" if tail_residual is None else f"  tail 1 - σ₁²/‖W‖² = {tail_residual:.1e}"
            current.update(description=f"step {step}  log R = {log_loss:.5g}  s = {growth:.3f}{residual}")

        yield callback


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
