"""The step that ends where a goal lies: taken again with a shorter span, so that the laws stay exact."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

_TRIES = 16
_WHOLE = 0.9  # of the size asked for, below which a step was rejected and taken shorter

Taken = TypeVar("Taken")


class _Trial(NamedTuple):
    size: float
    distance: float


def landed(
    again: Callable[[float], "Taken | None"],
    sized: Callable[[Taken], float],
    distance: Callable[[Taken], float],
    whole: Taken,
    begun: float,
    tolerance: float,
) -> Taken:
    """Of the steps that `again(size)` takes, the shortest found that ends past the goal, by at most `tolerance`.

    `whole` is a step past the goal, `sized` tells how long a step was, `distance` how far short of the goal it ends
    (negative: past it), `begun` how far short it began. The root is enclosed by the Illinois variant of regula falsi,
    halved where that stands still. A step that could not be taken as long as asked, and ends short of the goal, is
    returned as it is: the next one starts nearer.

    >>> step = landed(lambda size: size, lambda step: step, lambda step: 2.0 - step**3, 3.0, 2.0, 1e-9)
    >>> 0 <= step**3 - 2 <= 1e-9
    True
    """
    best, short, past = whole, _Trial(0.0, begun), _Trial(sized(whole), distance(whole))
    weights, side = (1.0, 1.0), 0
    for tried in range(_TRIES):
        if -past.distance <= tolerance:
            break
        f, g = weights[0] * short.distance, weights[1] * (past.distance + tolerance / 2)
        share = 0.5 if tried % 5 == 4 or g >= 0 else f / (f - g)
        asked = short.size + share * (past.size - short.size)
        trial = again(asked)
        if trial is None:
            break
        ends = _Trial(sized(trial), distance(trial))
        if ends.size < _WHOLE * asked and ends.distance > 0:
            return trial
        if ends.distance > 0:
            short, weights, side = ends, (1.0, weights[1] / 2 if side > 0 else 1.0), 1
        else:
            best, past, weights, side = trial, ends, (weights[0] / 2 if side < 0 else 1.0, 1.0), -1
    return best
