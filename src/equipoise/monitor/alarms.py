"""Alarms of a watched training, and the rules that raise them."""

import math
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

from equipoise.errors import visible
from equipoise.store import Record


class TrainingAlarm(UserWarning):
    """Something in a watched training that its owner should know."""


def warn(message: str) -> None:
    """A `TrainingAlarm`; where warnings are errors, a line on standard error: it must not end the training.

    Control characters in names of layers and observers, which come from others, are escaped.
    """
    message = visible(message)
    try:
        warnings.warn(message, TrainingAlarm, stacklevel=2)
    except Warning:
        with suppress(Exception):  # closed
            print(message, file=sys.stderr)


@dataclass(frozen=True)
class Alarm:
    """One alarm: step, kind, place and message."""

    step: int
    kind: str
    place: str
    message: str

    def __str__(self) -> str:
        return f"step {self.step}, {self.place}: {self.message}"


Rule: TypeAlias = Callable[[Record], Alarm | None]  # about all records or, if it has a `quantity`, about those of that


@runtime_checkable
class QuantityRule(Protocol):
    """A rule about the records of one quantity only."""

    @property
    def quantity(self) -> str:
        """The quantity."""
        ...

    def __call__(self, record: Record) -> Alarm | None:
        """An alarm, or None."""
        ...


def concerns(rule: Rule, quantity: str) -> bool:
    """Whether a rule is to be asked about the records of a quantity.

    >>> concerns(NotFinite(), "frobenius_norm"), concerns(NotFinite(), "sigma_1")
    (True, False)
    """
    return not isinstance(rule, QuantityRule) or rule.quantity == quantity


class NotFinite:
    """Weights that are no numbers any more."""

    quantity: ClassVar[str] = "frobenius_norm"

    def __call__(self, record: Record) -> Alarm | None:
        """An alarm, or None."""
        if record.quantity == self.quantity and not math.isfinite(record.value):
            return _alarm(record, "nan", "the weights are NaN or infinite")
        return None


class Excess:
    """A gradient that does not obey T1, or a step of SGD that moved a conserved quantity otherwise than T2.2 says."""

    quantity: ClassVar[str] = "excess"

    def __call__(self, record: Record) -> Alarm | None:
        """An alarm, or None."""
        if record.quantity == self.quantity and record.observer in _MESSAGES and not record.value <= 1:
            kind, message = _MESSAGES[record.observer]
            return _alarm(record, kind, message.format(record.value))
        return None


_MESSAGES = {  # by the observer of an excess
    "residual": (
        "gradient",
        "the gradient breaks this law {:.1f} times beyond rounding: a wrong backward pass, gradients of other weights "
        "added to it, or a penalty on the weights within the loss",
    ),
    "drift": ("law", "the step moved this law {:.1f} times further from its prediction than rounding explains"),
}


@dataclass(frozen=True)
class Collapse:
    """A matrix that is rank one but for a share of `below` of its squared norm."""

    below: float = 1e-3
    quantity: ClassVar[str] = "rank_one_residual"

    def __call__(self, record: Record) -> Alarm | None:
        """An alarm, or None."""
        if record.quantity == self.quantity and 0 < record.value < self.below:
            return _alarm(record, "collapse", f"rank one but for a share of {record.value:.1e} of its squared norm")
        return None


@dataclass(frozen=True)
class Dying:
    """A layer in which more than a `share` of the neurons are off for every probe example."""

    share: float = 0.5
    quantity: ClassVar[str] = "dead_share"

    def __call__(self, record: Record) -> Alarm | None:
        """An alarm, or None."""
        if record.quantity == self.quantity and record.value > self.share:
            return _alarm(record, "dying", f"{record.value:.0%} of the neurons are off for every probe example")
        return None


def default_rules() -> tuple[Rule, ...]:
    """NaN, broken gradients and laws, collapse to rank one, dying neurons."""
    return (NotFinite(), Excess(), Collapse(), Dying())


def _alarm(record: Record, kind: str, message: str) -> Alarm:
    return Alarm(record.step, kind, record.place, message)
