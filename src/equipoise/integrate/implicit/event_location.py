"""Event location: the shorter step that ends where a goal lies."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

_TRIES = 16
_WHOLE = 0.9  # of the size asked for, below which a step was rejected and taken shorter

Taken = TypeVar("Taken")


class _Trial(NamedTuple):
    size: float
    distance: float


def locate_event(
    again: Callable[[float], "Taken | None"],
    sized: Callable[[Taken], float],
    distance: Callable[[Taken], float],
    whole: Taken,
    begun: float,
    tolerance: float,
) -> Taken:
    """Of the steps that `again(size)` takes, the shortest found that ends past the goal, by at most `tolerance`.

    The root stays enclosed. A step that could not be taken as long as asked, and ends short of the goal, is returned as
    it is: the next one starts nearer.

    Args:
        again: takes a step of a given size; None where it cannot.
        sized: the size of a step.
        distance: how far short of the goal a step ends; negative past it.
        whole: a step past the goal.
        begun: how far short of the goal the steps begin.
        tolerance: on the distance past the goal.

    >>> step = locate_event(lambda size: size, lambda step: step, lambda step: 2.0 - step**3, 3.0, 2.0, 1e-9)
    >>> 0 <= step**3 - 2 <= 1e-9
    True
    """
    best, newest, across, older = whole, _Trial(sized(whole), distance(whole)), _Trial(0.0, begun), None
    for _ in range(_TRIES):
        if -max(newest, across).distance <= tolerance:  # the longer of the two is past the goal
            break
        asked = newest.size + _share(newest, across, older, tolerance / 2) * (across.size - newest.size)
        trial = again(asked)
        if trial is None:
            break
        ends = _Trial(sized(trial), distance(trial))
        if ends.size < _WHOLE * asked and ends.distance > 0:
            return trial
        if ends.distance <= 0:
            best = trial
        same = (ends.distance > 0) == (newest.distance > 0)
        newest, across, older = (ends, across, newest) if same else (ends, newest, across)
    return best


def _share(newest: _Trial, across: _Trial, older: _Trial | None, past: float) -> float:
    """How far from the newest trial to the one across the goal a step would end `past` it.

    By inverse quadratic interpolation through three trials where that is monotone, else half way (Chandrupatla 1997);
    by the line through the first two.
    """
    f, g = newest.distance + past, across.distance + past
    if older is None:
        return f / (f - g)
    h, way, whole = older.distance + past, across.size - newest.size, across.size - older.size
    if h == g or whole == 0 or not 0 < way / whole < 1:
        return 0.5
    within, level = way / whole, (f - g) / (h - g)
    if not 1 - math.sqrt(1 - within) < level < math.sqrt(within):
        return 0.5
    return f * h / ((g - f) * (g - h)) + (older.size - newest.size) / way * f * g / ((h - f) * (h - g))
