"""What is worth a warning, and the sentence that says it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from equipoise.store import Record


class TrainingAlarm(UserWarning):
    """Something in a watched training that its owner should know."""


@dataclass(frozen=True)
class Alarm:
    """One alarm: when, where, of which kind, and what it says."""

    step: int
    kind: str
    place: str
    message: str

    def __str__(self) -> str:
        return f"step {self.step}, {self.place}: {self.message}"


Rule = Callable[[Record], Alarm | None]


def not_finite(record: Record) -> Alarm | None:
    """Weights that are no numbers any more."""
    if record.quantity == "frobenius_norm" and not math.isfinite(record.value):
        return _alarm(record, "nan", "the weights are NaN or infinite")
    return None


def broken_gradient(record: Record) -> Alarm | None:
    """A gradient that does not obey T1."""
    if (record.observer, record.quantity) == ("residual", "excess") and not record.value <= 1:
        said = (
            f"the gradient breaks this law {record.value:.1f} times beyond rounding: a wrong backward pass, gradients "
            "changed after it, or a penalty on the weights within the loss"
        )
        return _alarm(record, "gradient", said)
    return None


def broken_law(record: Record) -> Alarm | None:
    """A step of SGD that moved a conserved quantity otherwise than T2.2 says."""
    if (record.observer, record.quantity) == ("drift", "excess") and not record.value <= 1:
        said = f"the step moved this law {record.value:.1f} times further from its prediction than rounding explains"
        return _alarm(record, "law", said)
    return None


@dataclass(frozen=True)
class Collapse:
    """A matrix that is rank one but for a share of `below` of its squared norm."""

    below: float = 1e-3

    def __call__(self, record: Record) -> Alarm | None:
        """An alarm, or None."""
        if record.quantity == "rank_one_residual" and 0 < record.value < self.below:
            return _alarm(record, "collapse", f"rank one but for a share of {record.value:.1e} of its squared norm")
        return None


@dataclass(frozen=True)
class Dying:
    """A layer in which more than a `share` of the neurons are off for every probe example."""

    share: float = 0.5

    def __call__(self, record: Record) -> Alarm | None:
        """An alarm, or None."""
        if record.quantity == "dead_share" and record.value > self.share:
            return _alarm(record, "dying", f"{record.value:.0%} of the neurons are off for every probe example")
        return None


def default_rules() -> tuple[Rule, ...]:
    """NaN, broken gradients and laws, collapse to rank one, dying neurons."""
    return (not_finite, broken_gradient, broken_law, Collapse(), Dying())


def _alarm(record: Record, kind: str, message: str) -> Alarm:
    return Alarm(record.step, kind, record.place, message)
