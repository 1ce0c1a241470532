"""When a flow has gone far enough."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from equipoise.errors import InputError


@runtime_checkable
class Goal(Protocol):
    """A condition on where the flow stands."""

    def reached(self, *, log_loss: float, growth: float, steps: int) -> bool:
        """Whether the flow may stop here."""
        ...

    def describe(self) -> str:
        """As it is written on the command line, every digit kept."""
        ...


@dataclass(frozen=True)
class LogLoss:
    """Until `log R` is at most `value`: natural logarithm of the mean loss.

    >>> LogLoss(-1e6).reached(log_loss=-2e6, growth=1.0, steps=10)
    True
    """

    value: float | int

    def reached(self, *, log_loss: float, growth: float, steps: int) -> bool:
        """`log R ≤ value`."""
        return log_loss <= self.value

    def describe(self) -> str:
        """`log_loss=…`."""
        return f"log_loss={_exactly(self.value)}"


@dataclass(frozen=True)
class Growth:
    """Until `s = log(‖w‖/‖w₀‖)` is at least `value`."""

    value: float | int

    def reached(self, *, log_loss: float, growth: float, steps: int) -> bool:
        """`s ≥ value`."""
        return growth >= self.value

    def describe(self) -> str:
        """`growth=…`."""
        return f"growth={_exactly(self.value)}"


EVERY_QUARTER = tuple(Growth(quarters / 4) for quarters in range(1, 41))
"""`s = 0.25, 0.5, …, 10`: where a flow keeps its weights unless told otherwise."""


@dataclass(frozen=True)
class Steps:
    """For `value` accepted steps."""

    value: int

    def reached(self, *, log_loss: float, growth: float, steps: int) -> bool:
        """`steps ≥ value`."""
        return steps >= self.value

    def describe(self) -> str:
        """`steps=…`."""
        return f"steps={self.value}"


def parse_goal(text: str) -> Goal:
    """A goal as written: `log_loss=-1e6`, `growth=3` or `steps=100`.

    >>> parse_goal("growth=3")
    Growth(value=3.0)
    """
    name, _, value = text.partition("=")
    try:
        number = float(value)
        return {"log_loss": LogLoss, "growth": Growth, "steps": lambda n: Steps(int(n))}[name.strip()](number)
    except (KeyError, ValueError, OverflowError):
        raise InputError(
            expected="a goal like log_loss=-1e6, growth=3 or steps=100",
            found=repr(text),
            remedy="type --until log_loss=-1e6",
        ) from None


def _exactly(value: float | int) -> str:
    """As short as may be, but the same number when read again."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))
