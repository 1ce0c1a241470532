"""Numbers that a user passes: real, of the right kind, and within their bounds, or refused in one line."""

import math
from numbers import Integral, Real
from typing import Any

from equipoise.errors import InputError


def require_real(
    name: str, value: Any, remedy: str, *, above: float = -math.inf, below: float = math.inf, most: float = math.inf
) -> None:
    """Refuse what is not a finite real number with `above < value < below` and `value ≤ most`.

    >>> require_real("rtol", float("nan"), "pass rtol=0.01", above=0)
    Traceback (most recent call last):
        ...
    equipoise.errors.InputError: expected rtol to be a finite number above 0; found nan; pass rtol=0.01
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    if real and math.isfinite(value) and above < float(value) < below and float(value) <= most:
        return
    raise InputError(
        expected=f"{name} to be a finite number{_bounds(above, below, most)}", found=repr(value), remedy=remedy
    )


def require_integer(name: str, value: Any, remedy: str, *, least: int = 0) -> None:
    """Refuse what is not a whole number of at least `least`.

    >>> require_integer("max_steps", 2.5, "pass max_steps=10_000", least=1)
    Traceback (most recent call last):
        ...
    equipoise.errors.InputError: expected max_steps to be a whole number, at least 1; found 2.5; pass max_steps=10_000
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise InputError(expected=f"{name} to be a whole number, at least {least}", found=repr(value), remedy=remedy)


def _bounds(above: float, below: float, most: float) -> str:
    bounds = [("above", above, -math.inf), ("below", below, math.inf), ("at most", most, math.inf)]
    told = [f"{word} {bound:g}" for word, bound, none in bounds if bound != none]
    return " " + " and ".join(told) if told else ""
