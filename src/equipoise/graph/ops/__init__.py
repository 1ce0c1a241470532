"""One small matcher per operation: what it demands of the generators of its arguments, and how its result moves.

A matcher takes the algebra and the operation's own arguments, tensors replaced by `Signal`s, and returns a signal (or
a tuple). An operation without a matcher demands that nothing it reads moves, which is always sound, and is listed by
the coverage.
"""

from equipoise.graph.ops import (
    attention,
    contraction,
    movement,
    normalisation,
    placement,
    pointwise,
    recurrent,
    reduction,
)
from equipoise.graph.ops.operator import MATCHERS, Matcher

__all__ = [
    "MATCHERS",
    "Matcher",
    "attention",
    "contraction",
    "movement",
    "normalisation",
    "placement",
    "pointwise",
    "recurrent",
    "reduction",
]
