"""`equipoise flow` and `equipoise demo`: a network trained to its limit."""

from pathlib import Path

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import equipoise as eq
from equipoise.cli.app import Json, Quiet, app, integers, line, stderr, typed
from equipoise.errors import InputError
from equipoise.graph.tail import linear_tail
from equipoise.integrate.goals import parse_goal
from equipoise.theorems.tail import Tail, certified_bounds


@app.command
def flow(
    *,
    data: str = "digits",
    classes: str = "0,1",
    n: int | None = None,
    widths: str = "64,64,64,64",
    linear_tail: int = 3,
    bias: bool = False,
    init: str = "fan_in",
    scale: float = 1.0,
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

    Parameters
    ----------
    data: digits, mnist, fashion_mnist or separable.
    classes: two labels, the first of which becomes -1.
    n: examples (default: all).
    widths: hidden widths; the output is one score.
    linear_tail: the last so many weight matrices are linear.
    init: how weights start (fan_in is N(0, 1/fan_in)).
    scale: of the weights at the start, a factor on init.
    loss: exponential or logistic.
    until: log_loss=X, growth=S or steps=N.
    step_size: largest relative change of the weights in one step.
    out: folder for the run.
    resume: go on with the run in this folder.
    json: one JSON object as the last line of standard output.
    """
    with ProgressLine(quiet or not stderr.is_terminal) as watcher:
        if resume is not None:
            run = eq.resume(resume, watcher=watcher)
        else:
            hidden = integers("--widths", widths)
            parse_goal(until)
            dataset = eq.data.load(data, _classes(data, classes), n=n, seed=seed)
            network = {
                "widths": [dataset.X[0].numel(), *hidden, 1],
                "linear_tail": linear_tail,
                "bias": bias,
                "init": init,
                "scale": scale,
                "seed": seed,
            }
            run = eq.flow(
                eq.networks.mlp(**network),
                dataset,
                loss=loss,
                until=until,
                out=out,
                stepper=eq.steppers.EntropicMidpoint(step_size=step_size),
                max_steps=max_steps,
                arguments={"network": network, "seed": seed, "command": typed()},
                watcher=watcher,
            )
    return _tell_run(run, json)


@app.command
def demo(*, page: Path = Path("report.html"), seed: int = 0, json: Json = False, quiet: Quiet = False) -> int:
    """Train a network on the embedded digits to log R ≤ -1e12, certify it, and write the page that shows it.

    Its weights start small (N(0, 1/fan_in) times 0.03), so that they grow more than a thousandfold on the way: enough
    for the linear layers to be rank one to six digits.

    Parameters
    ----------
    page: where the page goes.
    seed: of the weights and of the choice of examples.
    """
    network = {"widths": [64, 64, 64, 64, 64, 1], "linear_tail": 3, "scale": 0.03, "seed": seed}
    dataset = eq.data.load("digits", classes=(0, 1), seed=seed)
    with ProgressLine(quiet or not stderr.is_terminal) as watcher:
        run = eq.flow(
            eq.networks.mlp(**network),
            dataset,
            until=eq.LogLoss(-1e12),
            arguments={"network": network, "seed": seed, "command": typed()},
            watcher=watcher,
        )
    certificate = eq.certify(run)
    where = eq.report(run, page, certificate=certificate)
    code = _tell_run(run, json)
    if not json:
        print(certificate)
        print(f"\nThe page: {where.resolve().as_uri()}")
    return code


def _classes(data: str, text: str) -> tuple[int, ...] | None:
    if data == "separable":
        return None
    classes = tuple(integers("--classes", text))
    if len(classes) != 2:
        raise InputError(expected="two classes", found=f"{len(classes)} ({text})", remedy="type --classes 0,1")
    return classes


def _tell_run(run: "eq.Run", as_json: bool) -> int:
    """The run and its certificate, as one JSON object or in words."""
    certificate = eq.certify(run)
    summary = run.summary()
    bounds = certified_bounds(Tail.of(linear_tail(run.chain), run.final), run.initial, run.final) if run.chain else {}
    for layer in summary["layers"]:
        layer["certified_bound"] = bounds.get(layer["name"])
    summary["certificate"] = certificate.to_json()
    if as_json:
        print(line(summary))
    else:
        print(run.status, *([f"({run.reason})"] if run.reason else []))
        print(f"log R = {run.log_loss:.6g} after {run.steps} steps and {run.seconds:.1f} s, growth {run.growth:.3f}")
        for layer in summary["layers"]:
            bound = layer["certified_bound"]
            promise = "" if bound is None else f", certified below {bound:.2e}"
            print(f"  {layer['name']:16} {layer['kind']:6}  1 - σ₁²/‖W‖² = {layer['rank_one_residual']:.2e}{promise}")
        print(f"the certificate {'holds' if certificate.holds else 'does NOT hold'}: equipoise certify DIR prints it")
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
        """Say where the run stands."""
        residual = "" if tail_residual is None else f"  tail 1 - σ₁²/‖W‖² = {tail_residual:.1e}"
        self.progress.update(self.task, description=f"step {step}  log R = {log_loss:.5g}  s = {growth:.3f}{residual}")
