"""The command line: thin verbs over the library. Exit 0 on success, 1 when something falls short, 2 on bad input."""

import json
import shlex
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import equipoise as eq
from equipoise.errors import EquipoiseError, InputError
from equipoise.integrate.goals import parse_goal
from equipoise.theorems.tail import certified_bounds

app = App(
    name="equipoise",
    help="What training does to your weights: derived, measured, certified, and put to use.",
    version=eq.__version__,
    result_action="return_value",
)
_err = Console(stderr=True)

Json = Annotated[bool, Parameter(name="--json", negative="")]
Quiet = Annotated[bool, Parameter(negative="")]


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
    loss: exponential or logistic.
    until: log_loss=X, growth=S or steps=N.
    step_size: largest relative change of the weights in one step.
    out: folder for the run.
    resume: go on with the run in this folder.
    json: one JSON object as the last line of standard output.
    """
    with _Watcher(quiet or not _err.is_terminal) as watcher:
        if resume is not None:
            run = eq.resume(resume, watcher=watcher)
        else:
            hidden = _integers("--widths", widths)
            parse_goal(until)
            dataset = eq.data.load(data, _classes(data, classes), n=n, seed=seed)
            network = {
                "widths": [dataset.X[0].numel(), *hidden, 1],
                "linear_tail": linear_tail,
                "bias": bias,
                "init": init,
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
                arguments={"network": network, "seed": seed, "command": _command()},
                watcher=watcher,
            )
    return _tell_run(run, json)


@app.command
def demo(*, page: Path = Path("report.html"), seed: int = 0, json: Json = False, quiet: Quiet = False) -> int:
    """Train a network on the embedded digits to log R ≤ -1e6, certify it, and write the page that shows it.

    Parameters
    ----------
    page: where the page goes.
    seed: of the weights and of the choice of examples.
    """
    network = {"widths": [64, 64, 64, 64, 64, 1], "linear_tail": 3, "bias": False, "init": "fan_in", "seed": seed}
    dataset = eq.data.load("digits", classes=(0, 1), seed=seed)
    with _Watcher(quiet or not _err.is_terminal) as watcher:
        run = eq.flow(
            eq.networks.mlp(**network),
            dataset,
            until=eq.LogLoss(-1e6),
            arguments={"network": network, "seed": seed, "command": _command()},
            watcher=watcher,
        )
    certificate = eq.certify(run)
    where = eq.report(run, page, certificate=certificate)
    code = _tell_run(run, json)
    if not json:
        print(certificate)
        print(f"\nThe page: {where.resolve().as_uri()}")
    return code


@app.command
def certify(folder: Path, *, json: Json = False) -> int:
    """Say which theorem holds for a finished run: assumptions, bounds, measurements.

    Parameters
    ----------
    folder: of a finished run.
    """
    certificate = eq.certify(eq.Run.load(folder))
    print(_line(certificate.to_json()) if json else str(certificate))
    return 0 if certificate.holds else 1


@app.command
def report(
    folder: Path,
    *,
    page: Path | None = None,
    open_page: Annotated[bool, Parameter(name="--open", negative="")] = False,
    json: Json = False,
) -> int:
    """Write the self-contained page of a finished run.

    Parameters
    ----------
    folder: of a finished run.
    page: where it goes (default: report.html in the folder).
    open_page: show it in the browser.
    """
    run = eq.Run.load(folder)
    where = eq.report(run, page or folder / "report.html", certificate=eq.certify(run))
    print(_line({"page": str(where)}) if json else f"The page: {where.resolve().as_uri()}")
    if open_page:
        webbrowser.open(where.resolve().as_uri())
    return 0


@app.command
def invariances(
    *, widths: str = "64,64,64,64", inputs: int = 64, linear_tail: int = 3, bias: bool = False, json: Json = False
) -> int:
    """List every law that gradient flow keeps in a reference network.

    Parameters
    ----------
    widths: hidden widths.
    inputs: width of the input.
    """
    model = eq.networks.mlp([inputs, *_integers("--widths", widths), 1], linear_tail=linear_tail, bias=bias)
    laws = eq.invariances(model, next(model.parameters()).new_ones(2, inputs))
    rows = [{"name": law.name, "kind": law.kind, "count": law.count} for law in laws]
    print(_line({"laws": rows}) if json else str(laws))
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb. Whatever is wrong with the input is one line on standard error, and exit code 2."""
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except EquipoiseError as error:
        sys.exit(_complain(str(error)))
    except CycloptsError as error:
        first = " ".join(str(error).split())
        sys.exit(_complain(f"expected a command as in equipoise --help; found {first}; type equipoise --help"))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> int:
    print(" ".join(f"equipoise: {message}".split()), file=sys.stderr)
    return 2


def _command() -> str:
    return shlex.join(["equipoise", *sys.argv[1:]])


def _integers(option: str, text: str) -> list[int]:
    """A list written as `64,64`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            expected=f"{option} as integers separated by commas", found=repr(text), remedy=f"type {option} 64,64"
        ) from None


def _classes(data: str, text: str) -> tuple[int, ...] | None:
    if data == "separable":
        return None
    classes = tuple(_integers("--classes", text))
    if len(classes) != 2:
        raise InputError(expected="two classes", found=f"{len(classes)} ({text})", remedy="type --classes 0,1")
    return classes


def _line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, allow_nan=False, default=str)


def _tell_run(run: "eq.Run", as_json: bool) -> int:
    """The run and its certificate, as one JSON object or in words."""
    certificate = eq.certify(run)
    summary = run.summary()
    bounds = certified_bounds(run.chain, run.initial, run.final) if run.chain else {}
    for layer in summary["layers"]:
        layer["certified_bound"] = bounds.get(layer["name"])
    summary["certificate"] = certificate.to_json()
    if as_json:
        print(_line(_finite(summary)))
    else:
        print(run.status)
        print(f"log R = {run.log_loss:.6g} after {run.steps} steps and {run.seconds:.1f} s, growth {run.growth:.3f}")
        for layer in summary["layers"]:
            bound = layer["certified_bound"]
            promise = "" if bound is None else f", certified below {bound:.2e}"
            print(f"  {layer['name']:16} {layer['kind']:6}  1 - σ₁²/‖W‖² = {layer['rank_one_residual']:.2e}{promise}")
        print(f"the certificate {'holds' if certificate.holds else 'does NOT hold'}: equipoise certify DIR prints it")
    return 0 if run.status in ("reached", "precision_floor") else 1


def _finite(value: Any) -> Any:
    """JSON has no NaN: `null` in its place."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


class _Watcher:
    """A progress line on standard error: log-loss, growth, step size."""

    def __init__(self, quiet: bool):
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self.progress = Progress(*columns, console=_err, disable=quiet, transient=True)
        self.task = self.progress.add_task("reading the network")

    def __enter__(self) -> "_Watcher":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, step: int, log_loss: float, growth: float, tail_residual: float | None) -> None:
        residual = "" if tail_residual is None else f"  tail 1 - σ₁²/‖W‖² = {tail_residual:.1e}"
        self.progress.update(self.task, description=f"step {step}  log R = {log_loss:.5g}  s = {growth:.3f}{residual}")
