"""For other people's test suites: a gradient must satisfy the laws of the function it belongs to."""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from equipoise.arguments import checked
from equipoise.graph.capture import Inputs
from equipoise.laws import Audit, invariances
from equipoise.modes import default_modes


@checked
@default_modes(autocast=True)
def assert_laws(
    model: nn.Module,
    x: Inputs,
    loss: str | Callable[..., Any] | None = None,
    *,
    target: Any = None,
    backward: Callable[[nn.Module], object] | None = None,
) -> Audit:
    """Fail unless the gradient of `model` satisfies every law that its forward pass implies (T1).

    One backward pass runs on a copy of the model, in its own dtype, and the residual of every law is compared with
    rounding. Without a `loss` a fixed random combination of the outputs is differentiated; with one,
    `loss(model(x))` or `loss(model(x), target)`. `backward(model)` may instead fill `.grad` in its own way, such as
    an all-reduce over processes. Detached branches count as part of the function.

    Laws that the `eps` of a normalisation breaks are judged too, by what it adds to them: exactly, or after a
    `backward` of one's own up to a factor of 100. What is returned (and printed) names the laws for which that is not
    known, and the parameters that are in no law.

    Errors that respect every symmetry cannot be seen: a gradient scaled as a whole, or that of another loss or batch.

    Raises:
        AssertionError: that names the failing laws and the parameters whose gradient to suspect, the likeliest first;
            also when the model has no law at all, for then nothing was checked.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> print(str(assert_laws(model, torch.ones(2, 3)))[:12])
    1 laws hold;
    """
    twin = copy.deepcopy(model)
    twin.zero_grad()
    laws = invariances(model, x, loss, through_detach=True)
    if not laws:
        raise AssertionError(f"no law to check the gradient by ({laws.coverage})")
    found = laws.check_in_place(twin, (x, target) if target is not None else x, loss, backward)
    if not found.passed:
        raise AssertionError(str(found))
    return found
