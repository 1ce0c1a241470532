"""The potentials that enter an implicit step: which weigh, whose kernel is formed, and what that costs (THEORY T6.1).

Potentials that hardly weigh do not enter. Of those that do, the heaviest are coupled by their kernel; what the others
do to them and to each other is left to the iteration that settles the step, which converges where that is little.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.objective import Objective
from equipoise.integrate.readout import Rows
from equipoise.integrate.steppers.passes import Outlook

_NEGLIGIBLE = 25.0  # an example whose u exceeds the least by this weighs under e^-25 of the heaviest
_SUPPORTS = 1e-6  # share of the heaviest above which an example of the last step enters the next: it rests on it
_ENTERING = 8  # missed examples that may enter at once, or half as many as there are: the worst hold up the others
_UNSEEN = 1e-3  # relative margin by which an example outside the active set may fall below the others in a step
_LARGEST = 4000  # rows of a kernel
_UNCOUPLED = 0.1  # how far potentials without a kernel may move one another in a step, at most
_LIGHT = 1e-5  # share of the weights that Newton's method does not factorise
_VERIFIED = 0.1  # passes over all examples for each over the active ones


def entering(outlook: Outlook, dual: Tensor, span: float) -> Rows:
    """The potentials that a step begins with: those that may weigh in it, and the support of the last one."""
    support = (dual > _SUPPORTS * dual.max()).nonzero().squeeze(1)
    return torch.cat([active(outlook, span), support]).unique()


def missed(after: Tensor, rows: Rows) -> Rows:
    """The worst outside these rows of those that weigh at the end of the step, beyond what its error explains."""
    level = after[rows].min()
    outside = torch.ones_like(after, dtype=torch.bool)
    outside[rows] = False
    below = (outside & (after < level + _NEGLIGIBLE - _UNSEEN * level.abs())).nonzero().squeeze(1)
    return below[after[below].argsort(stable=True)[: max(_ENTERING, len(rows) // 2)]]


def coupled(objective: Objective, outlook: Outlook, dual: Tensor, span: float, rows: Rows) -> Rows | None:
    """The places among `rows` of the potentials whose kernel is formed; `None`: of all.

    Those that must be, and as many as a pass pays for.
    """
    weights = _expected(outlook, dual, span, rows)
    count = min(_LARGEST, max(_needed(outlook, span, weights), _affordable(objective)))
    return None if count >= len(rows) else weights.topk(count).indices.sort().values


def implicit_operations(objective: Objective, outlook: Outlook, dual: Tensor, span: float) -> float:
    """About what a pass of an implicit step costs: the active examples, and a factor of their kernel.

    Infinite where the kernel that the step needs is too large.
    """
    rows = active(outlook, span)
    weights = _expected(outlook, dual, span, rows)
    needed = _needed(outlook, span, weights)
    if needed > _LARGEST:
        return math.inf
    factored = min(covering(weights, _LIGHT), max(needed, _affordable(objective)))
    share = len(objective.examples(rows)) / objective.count
    return (share + _VERIFIED) * objective.operations + factored**3 / 3


def covering(weights: Float[Tensor, " rows"], uncovered: float) -> int:
    """How many of the heaviest leave at most this share of the weights to the others.

    >>> covering(torch.tensor([0.1, 0.6, 0.3]), 0.2)
    2
    """
    covered = weights.sort(descending=True).values.cumsum(0) / weights.sum()
    return min(int((covered < 1 - uncovered).sum()) + 1, len(weights))


def active(outlook: Outlook, span: float) -> Rows:
    """Potentials that weigh at the start of the step, or would at its end."""
    after = outlook.potential + span * outlook.rates
    travelled = span * outlook.fastest
    near = (outlook.potential - outlook.potential.min() < _NEGLIGIBLE) | (
        after - after.min() < _NEGLIGIBLE + 0.01 * travelled
    )
    return near.nonzero().squeeze(1)


def _expected(outlook: Outlook, dual: Tensor, span: float, rows: Rows) -> Float[Tensor, " rows"]:
    """About the weights of the step: those of the last one and those that the middle of this one would have."""
    return (dual + torch.softmax(-(outlook.potential + span / 2 * outlook.rates), 0))[rows]


def _needed(outlook: Outlook, span: float, weights: Tensor) -> int:
    """Rows without which a step may not settle: a potential moves others by its weight times the way of the fastest."""
    travelled = span * outlook.fastest
    return covering(weights, min(1.0, _UNCOUPLED / travelled) if travelled > 0 else 1.0)


def _affordable(objective: Objective) -> int:
    """Rows of a kernel whose factor costs what a pass does."""
    return min(_LARGEST, int((3 * objective.operations) ** (1 / 3)))
