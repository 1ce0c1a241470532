"""Checks that the optimizers share: positive numbers, and gradients that are dense."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import cast

import torch
from torch import Tensor

from equipoise.errors import InputError


def require_positive(name: str, value: float, remedy: str) -> float:
    """The value, which must be a positive, finite number.

    Args:
        name: of the argument.
        value: of it.
        remedy: what to pass instead.

    Returns:
        The value as a float.

    Raises:
        InputError: for anything else.

    >>> require_positive("lr", 1, "pass lr=0.1")
    1.0
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
        raise InputError(expected=f"{name} to be a positive number", found=repr(value), remedy=remedy)
    return float(value)


def require_dense(gradient: Tensor, group: Mapping[str, object], place: int) -> None:
    """Refuse a sparse gradient of the parameter at a place of its group.

    Args:
        gradient: of the parameter.
        group: of an optimizer, with the names of its parameters where it was given any.
        place: of the parameter in the group.

    Raises:
        InputError: for a sparse gradient, naming the parameter.
    """
    if gradient.layout != torch.strided:
        names = cast("Sequence[str] | None", group.get("param_names"))
        found = names[place] if names else f"a parameter of shape {tuple(gradient.shape)}"
        raise InputError(
            expected="dense gradients", found=f"a sparse one of {found}", remedy="make the embedding with sparse=False"
        )
