"""The active set of an implicit step: its potentials, the landmarks of their kernel, and the cost (T6.1).

Potentials of negligible weight are left out. The kernel of few potentials is formed whole; that of many is of low rank,
through the columns of some of them, the landmarks. The rest of it is left to the fixed-point iteration of the step,
which converges where no potential without a column moves others much by itself.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.integrate.implicit.operators import cholesky_operations, gram_operations
from equipoise.integrate.implicit.step_problem import StepPredictor
from equipoise.integrate.margins.readout import Rows
from equipoise.integrate.objective import Objective
from equipoise.integrate.state import State

_NEGLIGIBLE = 25.0  # an example whose u exceeds the least by this weighs under e^-25 of the heaviest
_ASTRAY = 0.03  # of the longest way of a potential over a step, by which its end may be predicted wrong
_SUPPORTS = 1e-6  # share of the heaviest above which an example of the last step enters the next
_ENTERING = 8  # violations that may enter at once, or half as many as there are rows: the worst hold up the others
_UNSEEN = 1e-3  # relative margin by which an example outside the active set may fall below the others in a step
_LARGEST = 4000  # columns of a kernel
_FEWEST = 64  # landmarks
_ALONE = 0.1  # how far a potential that is no landmark may move others in a step
_LIGHT = 1e-5  # share of the weights that Newton's method does not factorise
_DECOMPOSED = 9.0  # operations of eigenvalues and eigenvectors over the cube of their number
_FORMED = 0.5  # kernels for each iteration: later ones reuse the last
_VERIFIED = 0.1  # passes over all examples for each over the active ones


def initial_active_set(predictor: StepPredictor, dual: Tensor, span: float) -> Rows:
    """The active set at the start of a step: potentials that may weigh in it, and the support of the last one."""
    support = (dual > _SUPPORTS * dual.max()).nonzero().squeeze(1)
    return torch.cat([predicted_active_set(predictor, span), support]).unique()


def violations(after: Tensor, rows: Rows) -> Rows:
    """The worst potentials outside these rows that weigh at the end of the step, beyond its error."""
    level = after[rows].min()
    outside = torch.ones_like(after, dtype=torch.bool)
    outside[rows] = False
    below = (outside & (after < level + _NEGLIGIBLE - _UNSEEN * level.abs())).nonzero().squeeze(1)
    return below[after[below].argsort(stable=True)[: max(_ENTERING, len(rows) // 2)]]


def landmarks(objective: Objective, predictor: StepPredictor, dual: Tensor, span: float, rows: Rows) -> Rows | None:
    """The places among `rows` of the potentials whose columns of the kernel are formed; `None` for all of them.

    Heavy ones always, and of the others as many as cost one pass, by systematic sampling: at equal distances in the
    cumulative sum of their weights.
    """
    weights = _expected(predictor, dual, span, rows)
    must = weights > _ALONE * weights.sum() / max(span * predictor.fastest, _ALONE)
    count = max(_FEWEST, int(math.sqrt(objective.margins.layout.size) / 2))
    filled = torch.where(must, 0.0, weights).cumsum(0)
    marks = (torch.arange(count, device=filled.device) + 0.5) / count * filled[-1]
    chosen = must.index_fill(0, torch.searchsorted(filled, marks).clamp(max=len(rows) - 1), True)
    places = chosen.nonzero().squeeze(1)
    return None if 2 * len(places) > len(rows) else places


def implicit_operations(objective: Objective, predictor: StepPredictor, dual: Tensor, span: float) -> float:
    """Operations of one iteration of an implicit step: a pass over its examples, kernel, and one factor of that.

    Infinite where the kernel is too large.
    """
    rows = predicted_active_set(predictor, span)
    places = landmarks(objective, predictor, dual, span, rows)
    columns = len(rows if places is None else places)
    passes = (len(objective.examples(rows)) / objective.count + _VERIFIED) * objective.operations
    if columns > _LARGEST:
        return math.inf
    if places is None:
        factored = cholesky_operations(covering_count(_expected(predictor, dual, span, rows), _LIGHT))
    else:
        factored = gram_operations(len(rows), columns) + cholesky_operations(columns)
    return passes + factored + _FORMED * forming_operations(objective, len(rows), places)


def least_operations(objective: Objective, state: State) -> float:
    """The same from below, without a pass to predict them: of the examples that weigh now, and without a kernel."""
    potential = objective.potential(state.evaluation)
    near = (potential - potential.min() < _NEGLIGIBLE).nonzero().squeeze(1)
    share = len(objective.examples(near)) / objective.count + _VERIFIED if objective.loss.exponential_tail else 1.0
    return share * objective.operations


def forming_operations(objective: Objective, rows: int, places: Rows | None) -> float:
    """Operations of forming the kernel of this number of rows, through the columns at `places` where these are some."""
    layout, columns = objective.margins.layout, rows if places is None else len(places)
    through = 0.0 if places is None else gram_operations(rows, columns) + _DECOMPOSED * columns**3
    return 2.0 * rows * (columns * layout.widths + layout.size) + through


def covering_count(weights: Float[Tensor, " rows"], uncovered: float) -> int:
    """The number of heaviest weights that leave at most this share to the others.

    >>> covering_count(torch.tensor([0.1, 0.6, 0.3]), 0.2)
    2
    """
    covered = weights.sort(descending=True).values.cumsum(0) / weights.sum()
    return min(int((covered < 1 - uncovered).sum()) + 1, len(weights))


def predicted_active_set(predictor: StepPredictor, span: float) -> Rows:
    """Potentials that weigh at the start of the step, or at its predicted end."""
    after = predictor.potential + span * predictor.rates
    travelled = span * predictor.fastest
    near = (predictor.potential - predictor.potential.min() < _NEGLIGIBLE) | (
        after - after.min() < _NEGLIGIBLE + _ASTRAY * travelled
    )
    return near.nonzero().squeeze(1)


def _expected(predictor: StepPredictor, dual: Tensor, span: float, rows: Rows) -> Float[Tensor, " rows"]:
    """Expected weights of the step: those of the last one, and those at the predicted middle of this one."""
    return (dual + torch.softmax(-(predictor.potential + span / 2 * predictor.rates), 0))[rows]
