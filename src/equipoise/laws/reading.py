"""Every law of a model: captured, derived, tested by a random backward pass."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from equipoise.arguments import checked
from equipoise.graph.capture import Captured, Inputs, capture
from equipoise.graph.coverage import Coverage
from equipoise.laws.check import LossLike, ignores_shift
from equipoise.laws.collection import Laws
from equipoise.laws.custom_ops import declared, functions_read_as_declared
from equipoise.laws.derive import Between, DerivationOptions, derive
from equipoise.laws.law import Law
from equipoise.laws.self_test import self_test
from equipoise.models import require_readable
from equipoise.modes import default_modes
from equipoise.stages import stage


class FalseLaw(UserWarning):
    """A law that was derived and is not true: a bug of equipoise; the law is dropped."""


@checked
@default_modes(autocast=True)
def invariances(
    model: nn.Module,
    example_inputs: Inputs,
    loss: LossLike = None,
    interfaces: Sequence[Between] | None = None,
    *,
    through_detach: bool = False,
    verify: bool | None = None,
) -> Laws:
    """Every law that gradient flow on `model` obeys, for every data set and every loss of the outputs (T1, T2).

    `example_inputs` is a tensor, a sequence of arguments or a mapping of keywords; only shapes matter. With
    `loss="cross_entropy"` (or `nn.CrossEntropyLoss`) the laws that need the softmax of the logits are given too.
    `interfaces`, stated by hand, are used instead of reading the model. What `detach` cuts off is taken as constant,
    unless `through_detach` asks for the laws of the function that the forward pass computes.

    The laws are tested at once, by one backward pass of the graph in float64 at random weights; model, buffers,
    gradients and random numbers stay as they are. A law that fails would be a bug of equipoise: it is dropped, with a
    `FalseLaw` warning, and listed in `laws.coverage.refuted`. `verify=False` skips the test; `None` does so above 33
    million parameters, and `coverage.untested` then says so.

    Raises `CaptureError` if the model cannot be read, `InputError` for complex parameters.

    >>> import torch
    >>> from equipoise.networks import mlp
    >>> print(invariances(mlp([4, 3, 2, 1], linear_tail=2), torch.ones(5, 4).double()))
    layer1.weight → layer2.weight: vertex, 3 conserved
    layer2.weight → layer3.weight: linear, 3 conserved
    """
    require_readable(model)
    if interfaces is not None:
        return Laws(tuple(interface.law(model) for interface in interfaces), Coverage({}))
    with functions_read_as_declared(), stage("capturing the model"):
        captured = capture(model, example_inputs)
    frozen = tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    options = DerivationOptions(frozen, ignores_shift(loss), references=declared(), through_detach=through_detach)
    laws, coverage = derive(captured, options)
    if laws and verify is not False:
        laws, coverage = _tested(model, laws, coverage, captured, options, insist=bool(verify))
    elif laws:
        coverage = replace(coverage, untested="verify=False")
    dropped = _dropped(laws, derive(captured, replace(options, frozen=()))[0]) if frozen else {}
    return Laws(tuple(laws), coverage, captured, dropped, options)


def _tested(
    model: nn.Module,
    laws: list[Law],
    coverage: Coverage,
    captured: Captured,
    options: DerivationOptions,
    *,
    insist: bool,
) -> tuple[list[Law], Coverage]:
    """The laws that the self-test leaves, and what it says of the others."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    with stage("testing the laws on a random backward pass"):
        refuted, untested = self_test(laws, captured, options, weights, insist=insist)
    if refuted:
        listed = "; ".join(map(str, refuted))
        warnings.warn(f"dropped as false, a bug of equipoise worth a report: {listed}", FalseLaw, stacklevel=4)
    false = {each.law for each in refuted}
    true = [law for law in laws if law.name not in false]
    named = {name for law in true for name in law.parameters}
    return true, replace(coverage.beside(named), refuted=refuted, untested=untested)


def _dropped(laws: Sequence[Law], trained: Sequence[Law]) -> dict[str, tuple[str, ...]]:
    """Laws that there would be if nothing were frozen, and the parameters they wait for."""
    kept = {law.statement for law in laws}
    known = {name for law in laws for name in law.parameters}
    missing = {law.name: law.parameters for law in trained if law.statement not in kept}
    return {name: tuple(parameter for parameter in names if parameter not in known) for name, names in missing.items()}
