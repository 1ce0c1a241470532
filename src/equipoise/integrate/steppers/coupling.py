"""The potentials that enter an implicit step: which weigh, how their kernel is formed, what that costs (T6.1).

Potentials that hardly weigh do not enter. Where few do, their kernel is formed whole; where many do, it is of low rank,
through the columns of some of them, the landmarks. What it lacks is left to the iteration that settles the step, which
converges where no potential without a column moves others much by itself: what many do together the columns hold.
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
_LARGEST = 4000  # columns of a kernel
_FEWEST = 64  # landmarks
_ALONE = 0.1  # how far a potential that is no landmark may move others in a step
_LIGHT = 1e-5  # share of the weights that Newton's method does not factorise
_FORMED = 0.5  # kernels for each pass: later ones make do with the last
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


def landmarks(objective: Objective, outlook: Outlook, dual: Tensor, span: float, rows: Rows) -> Rows | None:
    """The places among `rows` of the potentials whose columns of the kernel are formed; `None`: of all.

    Those that must be, and of the others as many as a pass pays for, by systematic sampling: at equal distances in the
    sum of their weights.
    """
    weights = _expected(outlook, dual, span, rows)
    must = weights > _ALONE * weights.sum() / max(span * outlook.fastest, _ALONE)
    count = max(_FEWEST, int(math.sqrt(objective.margins.layout.size) / 2))
    filled = torch.where(must, 0.0, weights).cumsum(0)
    marks = (torch.arange(count, device=filled.device) + 0.5) / count * filled[-1]
    chosen = must.index_fill(0, torch.searchsorted(filled, marks).clamp(max=len(rows) - 1), True)
    places = chosen.nonzero().squeeze(1)
    return None if 2 * len(places) > len(rows) else places


def implicit_operations(objective: Objective, outlook: Outlook, dual: Tensor, span: float) -> float:
    """About what a pass of an implicit step costs: the active examples, and a kernel of theirs with its factor.

    Infinite where the kernel that the step needs is too large.
    """
    rows, layout = active(outlook, span), objective.margins.layout
    places = landmarks(objective, outlook, dual, span, rows)
    columns = len(rows if places is None else places)
    if columns > _LARGEST:
        return math.inf
    if places is None:
        factored = covering(_expected(outlook, dual, span, rows), _LIGHT) ** 3 / 3
    else:
        factored = 2.0 * len(rows) * columns**2
    formed = 2.0 * len(rows) * (columns * layout.widths + layout.size)
    share = len(objective.examples(rows)) / objective.count
    return (share + _VERIFIED) * objective.operations + factored + _FORMED * formed


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
