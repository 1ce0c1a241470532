"""The change of every conserved quantity by one optimizer step, before it is taken (T2.2)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.laws.evaluate import LawPlan
from equipoise.laws.law import Law, gradients_of, named


@dataclass(frozen=True, eq=False)
class Prediction:
    """The change of a conserved quantity under the next step.

    `exact`: by the formula of T2.2, from the gradient alone, so that a mismatch is a bug or rounding. Otherwise the
    update was computed on a copy of the optimizer: plain algebra, on which no alarm can rest.
    """

    change: Tensor
    exact: bool


def predict_drift(
    laws: Sequence[Law], model: nn.Module, optimizer: torch.optim.Optimizer, aliases: Mapping[str, str]
) -> dict[str, Prediction]:
    """The change of every law under `optimizer.step()`, which is not taken."""
    weights, gradients = named(model), gradients_of(model, aliases)
    plain = plain_steps(optimizer)
    settings = {name: plain.get(id(parameter), (0.0, 0.0)) for name, parameter in model.named_parameters()}
    rates = [_common_rate(law, settings) if law.exact else None for law in laws]
    covered = [(law, rate) for law, rate in zip(laws, rates, strict=True) if rate is not None]
    readings = LawPlan([law for law, _ in covered])(weights, gradients)
    changes = readings.layout.tensors(readings.predicted([rate for _, rate in covered]), weights)
    found = {name: Prediction(change, exact=True) for name, change in changes.items()}
    if len(covered) < len(laws):
        updates = _updates(model, optimizer)
        others = [law for law in laws if law.name not in found]
        found |= {law.name: Prediction(law.change(weights, updates), exact=False) for law in others}
    return {law.name: found[law.name] for law in laws}


def _common_rate(law: Law, settings: Mapping[str, tuple[float, float] | None]) -> tuple[float, float] | None:
    """Learning rate and decay, where they are the same for all weights of a law."""
    rates = {settings[name] for name in law.parameters}
    return rates.pop() if len(rates) == 1 else None


def plain_steps(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, float] | None]:
    """By the `id` of each parameter, learning rate and weight decay of a plain gradient step; None: another update."""
    found: dict[int, tuple[float, float] | None] = {}
    for group in optimizer.param_groups:
        plain = type(optimizer) is torch.optim.SGD and not group["momentum"]
        rate = (float(group["lr"]), float(group["weight_decay"])) if plain else None
        found |= {id(parameter): rate for parameter in group["params"]}
    return found


def _updates(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The update of each parameter, found by taking the step on copies."""
    copies = {id(parameter): _copy(parameter) for parameter in model.parameters()}
    twin = copy.deepcopy(optimizer, memo=dict[int, object](copies))
    twin.step()
    return {name: copies[id(parameter)].detach() - parameter.detach() for name, parameter in model.named_parameters()}


def _copy(parameter: nn.Parameter) -> nn.Parameter:
    twin = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    twin.grad = None if parameter.grad is None else parameter.grad.clone()
    return twin
