"""`equipoise invariances`: the laws of a network, and the check of its gradient that they make."""

import sys
from typing import Annotated

import torch
from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

import equipoise as eq
from equipoise.cli.app import Fields, Json, Quiet, Whole, cell, line, network_widths, refuse_ignored, say, shown
from equipoise.cli.factory import Subject, as_input, made_by, own_output
from equipoise.laws import Audit, Laws
from equipoise.laws.formatting import plain
from equipoise.stages import show_progress, stage


def invariances(
    *,
    module: str | None = None,
    check: Annotated[bool, Parameter(negative="")] = False,
    widths: str = "64,64,64,64",
    inputs: Whole = 64,
    linear_tail: Whole = 3,
    bias: bool = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """List every law that gradient flow keeps; with --check, test a gradient by them.

    Exit code 1 says that a law fails, or that there is none to check by.

    Args:
        module: `package.module:factory`; the factory returns (model, example_inputs), (model, example_inputs, loss) or
            (model, example_inputs, target, loss), where the loss is a callable or a name. Without it, a reference
            network.
        check: run one backward pass in float64 on a copy of the model and compare the residual of every law with
            rounding.
        widths: hidden widths of the reference network.
        inputs: width of the input of the reference network.
        linear_tail: number of its linear layers at the end.
        bias: give each of its layers a bias.
    """
    if module:
        shape = {"--widths": widths != "64,64,64,64", "--inputs": inputs != 64, "--linear-tail": linear_tail != 3}
        refuse_ignored("--module", shape | {"--bias": bias})
    subject = made_by(module) if module else _reference(widths, inputs, linear_tail, bias)
    with (
        show_progress(quiet=quiet),
        own_output(),
        as_input("a model and a loss that run forward and backward in float64", "run them by themselves"),
    ):
        laws = eq.invariances(subject.model, subject.inputs, subject.loss, through_detach=check)
        with stage("checking a gradient"):
            audit = laws.check(subject.model, subject.data, subject.loss) if check else None
    if json:
        say(line(_fields(laws, audit)))
    else:
        _show(laws, audit)
    return 0 if audit is None or (audit.passed and len(laws)) else 1


def _reference(widths: str, inputs: int, linear_tail: int, bias: bool) -> Subject:
    model = eq.networks.mlp(network_widths(inputs, widths), linear_tail=linear_tail, bias=bias)
    like = next(model.parameters())
    return Subject(model, torch.randn(2, inputs, generator=torch.Generator().manual_seed(0)).to(like))


def _fields(laws: Laws, audit: Audit | None) -> Fields:
    coverage = laws.coverage
    fields: Fields = {
        "laws": [_row(plain(law), place, audit) for place, law in enumerate(laws)],
        "conserved": laws.conserved,
        "coverage": {
            "complete": coverage.complete,
            "unmatched": [vars(unmatched) for unmatched in coverage.unmatched],
            "unused": coverage.unused,
            "frozen": coverage.frozen,
            "lawless": coverage.lawless,
        },
        "dropped": laws.dropped,
    }
    if audit is not None:
        fields["check"] = {"passed": audit.passed and len(laws) > 0, "suspects": audit.suspects}
    return fields


def _row(law: Fields, place: int, audit: Audit | None) -> Fields:
    if audit is None:
        return law
    finding = audit.findings[place]
    return law | {"residual": finding.residual, "tolerance": finding.tolerance, "passed": finding.passed}


def _show(laws: Laws, audit: Audit | None) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    checked = ["residual", ""] if audit else []
    table = Table("law", "kind", "conserved", *checked, box=box.SIMPLE)
    for place, law in enumerate(laws):
        table.add_row(cell(law.name), law.kind, str(law.count), *_verdict(audit, place))
    console.print(table)
    console.print(shown(str(laws.coverage)), markup=False, highlight=False)
    if audit is not None:
        verdict = str(audit) if len(laws) else "no law to check the gradient by"
        console.print(shown(verdict), markup=False, highlight=False)


def _verdict(audit: Audit | None, place: int) -> list[str]:
    if audit is None:
        return []
    finding = audit.findings[place]
    words = ("holds" if finding.exact else "broken by eps") if finding.passed else "FAILS"
    return [f"{finding.residual:.1e}", words]
