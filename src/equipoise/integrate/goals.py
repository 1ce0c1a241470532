"""Goals of a flow, to stop or to keep its weights at: located to tolerance, not overshot."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from equipoise.arguments import require_integer, require_real
from equipoise.errors import InputError

_SLIDING = 1e-6  # share of the largest |z| of its layer below which a pair sits on its kink, and does not flip


class Instant(NamedTuple):
    """The figures of a flow at one instant."""

    log_loss: float
    growth: float
    steps: int
    separation: float  # log(ℓ(0)/n): below it every margin is positive
    preactivations: tuple[Tensor, ...] = ()


@runtime_checkable
class Goal(Protocol):
    """A condition on an instant of the flow."""

    tolerance: ClassVar[float | None]  # on its distance, when a step is cut to end there; None: steps stay whole

    def distance(self, start: Instant, now: Instant) -> float:
        """Positive until the goal is reached, zero there; `start` is where the step began."""
        ...

    def describe(self) -> str:
        """As it is written on the command line, every digit kept."""
        ...


@dataclass(frozen=True)
class LogLoss:
    """Until `log R` is at most `value`: natural logarithm of the mean loss. Hit to 1e-8 of the value.

    >>> round(LogLoss(-1e6).distance(None, Instant(log_loss=-2e6, growth=1.0, steps=10, separation=-3.0)), 6)
    -0.693147
    """

    value: float | int
    tolerance: ClassVar[float | None] = 1e-8

    def __post_init__(self):
        require_real("the loss of a goal", self.value, "pass eq.LogLoss(-1e6), or type --until log_loss=-1e6")

    def distance(self, start: Instant, now: Instant) -> float:
        """`arsinh(log R) - arsinh(value)`, nearly linear in the growth; near it `(log R - value) / max(1, |value|)`."""
        scale = math.hypot(1.0, self.value) / max(1.0, abs(self.value))
        return scale * (math.asinh(now.log_loss) - math.asinh(self.value))

    def describe(self) -> str:
        """`log_loss=…`."""
        return f"log_loss={_exactly(self.value)}"


@dataclass(frozen=True)
class Growth:
    """Until `s = log(‖w‖/‖w₀‖)` is at least `value`. Hit to 1e-9."""

    value: float | int
    tolerance: ClassVar[float | None] = 1e-9

    def __post_init__(self):
        require_real("the growth of a goal", self.value, "pass eq.Growth(3.0), or type --until growth=3")

    def distance(self, start: Instant, now: Instant) -> float:
        """`value - s`."""
        return self.value - now.growth

    def describe(self) -> str:
        """`growth=…`."""
        return f"growth={_exactly(self.value)}"


EVERY_QUARTER = tuple(Growth(quarters / 4) for quarters in range(1, 41))
"""`s = 0.25, 0.5, …, 10`: the default of `save_at`; weights are kept at the end of the step that passes."""


@dataclass(frozen=True)
class Steps:
    """For `value` accepted steps."""

    value: int
    tolerance: ClassVar[float | None] = None

    def __post_init__(self):
        require_integer("the steps of a goal", self.value, "pass eq.Steps(100), or type --until steps=100")

    def distance(self, start: Instant, now: Instant) -> float:
        """`value - steps`."""
        return float(self.value - now.steps)

    def describe(self) -> str:
        """`steps=…`."""
        return f"steps={self.value}"


@dataclass(frozen=True)
class Separated:
    """Until `R < ℓ(0) min w_i`: every example on its side; the theorems of the late phase apply (docs/theory.md §0).

    `w_i` are the shares of the examples, all `1/n` without weights.
    """

    tolerance: ClassVar[float | None] = 1e-8

    def distance(self, start: Instant, now: Instant) -> float:
        """`(log R - b) / max(1, |b|)`, `b = log(ℓ(0) min w_i)`."""
        return (now.log_loss - now.separation) / max(1.0, abs(now.separation))

    def describe(self) -> str:
        """`separated`."""
        return "separated"


@dataclass(frozen=True)
class Flip:
    """Until the next pair of a neuron and an example changes its state; pairs that sit on their kink do not count."""

    tolerance: ClassVar[float | None] = 1e-8

    def distance(self, start: Instant, now: Instant) -> float:
        """The least `z sign(z₀)` of all pairs, in units of the largest `|z₀|` of the layer; infinite without kinks."""
        return min(map(_nearest_to_flip, start.preactivations, now.preactivations), default=float("inf"))

    def describe(self) -> str:
        """`flip`."""
        return "flip"


def _nearest_to_flip(before: Tensor, after: Tensor) -> float:
    scale = before.abs().max()
    away = before.abs() > _SLIDING * scale
    return float((after * before.sign())[away].min() / scale) if bool(away.any()) else float("inf")


_WRITTEN = {"log_loss": LogLoss, "growth": Growth, "steps": lambda n: Steps(int(n) if n == round(n) else n)}
_NAMED = {"separated": Separated, "flip": Flip}


def parse_goal(text: str) -> Goal:
    """A goal as written: `log_loss=-1e6`, `growth=3`, `steps=100`, `separated` or `flip`.

    >>> parse_goal("growth=3")
    Growth(value=3.0)

    Raises:
        InputError: for any other text, and for a value that the goal refuses.
    """
    name, _, value = text.partition("=")
    if text.strip() in _NAMED:
        return _NAMED[text.strip()]()
    try:
        return _WRITTEN[name.strip()](float(value))
    except InputError:
        raise
    except (KeyError, ValueError, OverflowError):
        raise InputError(
            expected="a goal like log_loss=-1e6, growth=3, steps=100, separated or flip",
            found=repr(text),
            remedy="type --until log_loss=-1e6",
        ) from None


def _exactly(value: float | int) -> str:
    """The shortest text that reads back as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))
