"""What one optimizer step will do to every conserved quantity, before it is taken (T2.2)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
    updates: dict[str, Tensor] | None = None
    found = {}
    for law in laws:
        rates = {settings[name] for name in law.parameters}
        rate = next(iter(rates)) if len(rates) == 1 else None
        if rate is not None and law.exact:
            found[law.name] = Prediction(_by_formula(law, weights, gradients, *rate), exact=True)
        else:
            updates = _updates(model, optimizer) if updates is None else updates
            found[law.name] = Prediction(law.change(weights, updates), exact=False)
    return found


def _by_formula(
    law: Law, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], rate: float, decay: float
) -> Tensor:
    """`((1 - ηλ)² - 1) C + η² (Σ_p G_p G_pᵀ - Σ_c G_cᵀ G_c)`; for a law linear in the weights `-ηλ C`."""
    return plain_change(law, law.value(weights), law.value(gradients), rate, decay)


def plain_change(law: Law, value: Tensor, of_gradients: Tensor, rate: float, decay: float) -> Tensor:
    """The same from the law's value at the weights, and its value at the gradients in place of the weights."""
    of_value, of_square = plain_factors(law, rate, decay)
    return of_value * value + of_square * of_gradients


def plain_factors(law: Law, rate: float, decay: float) -> tuple[float, float]:
    """By which the two of them come into it."""
    shrunk = -rate * decay
    return (shrunk, 0.0) if law.kind == "shift" else (shrunk * (2 + shrunk), rate**2)


def plain_steps(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, float] | None]:
    """By the `id` of each parameter, learning rate and weight decay of a plain gradient step; None: another update."""
    found: dict[int, tuple[float, float] | None] = {}
    for group in optimizer.param_groups:
        plain = type(optimizer) is torch.optim.SGD and not group["momentum"]
        rate = (float(group["lr"]), float(group["weight_decay"])) if plain else None
        found |= {id(parameter): rate for parameter in group["params"]}
    return found


def _updates(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the step adds to each parameter, found by taking it on copies."""
    copies: dict[int, Any] = {id(parameter): _copy(parameter) for parameter in model.parameters()}
    twin = copy.deepcopy(optimizer, memo=dict(copies))
    twin.step()
    return {name: copies[id(parameter)].detach() - parameter.detach() for name, parameter in model.named_parameters()}


def _copy(parameter: nn.Parameter) -> nn.Parameter:
    twin = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    twin.grad = None if parameter.grad is None else parameter.grad.clone()
    return twin
