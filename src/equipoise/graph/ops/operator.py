"""Which matcher reads which operation."""

from collections.abc import Callable
from typing import Any

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.signal import Signal

Matcher = Callable[..., Any]


class Unreadable(ValueError):
    """What an operation is asked to do that its matcher does not read; nothing that it reads may then move."""


MATCHERS: dict[str, Matcher] = {}


def matches(*names: str) -> Callable[[Matcher], Matcher]:
    """Register a matcher for ATen operations, named without overload (`relu`) or with (`add.Tensor`)."""

    def register(matcher: Matcher) -> Matcher:
        for name in names:
            MATCHERS[name] = matcher
        return matcher

    return register


def moving(argument: Any) -> bool:
    """Whether an argument is a tensor under some role."""
    return isinstance(argument, Signal) and bool(argument.roles)


def rest(algebra: Algebra, shape: tuple[int, ...], *signals: Signal) -> Signal:
    """Demand that the signals do not move; the result of the given shape then does not either."""
    algebra.still(*signals)
    return Signal(shape)
