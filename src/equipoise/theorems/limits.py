"""The limit of a run: where the direction of its weights is going, and which pairs that leaves undecided (T4.1)."""

import pandas as pd

from equipoise.errors import InputError
from equipoise.theorems.directional import LimitDirection, Undecided, extrapolate
from equipoise.theorems.gather import FinishedRun, gather_run, run_points
from equipoise.theorems.stability import preactivations_of


def limit_direction(run: FinishedRun) -> LimitDirection | None:
    """Rate and extrapolated limit of `w/‖w‖` along a run, with an uncertainty; None from fewer than three points.

    From the weights kept on the way (`save_at=` of `eq.flow`; every quarter of growth by default).

    >>> from equipoise import data, flow, networks
    >>> run = flow(networks.mlp([5, 4, 1]), data.load("separable", n=20, d=5), until="growth=1.5")
    >>> found = limit_direction(run)
    >>> found.rate > 0, found.uncertainty < 1
    (True, True)
    """
    return extrapolate(run_points(run))


def undecided_pairs(run: FinishedRun) -> pd.DataFrame:
    """The neuron-example pairs that are on their kink at the limit, `z(x; w̄) = 0` within the uncertainty (T4.1).

    Columns layer, example, neuron, value and error; at the scale of `‖w‖ = 1`. All pairs where no limit is seen yet.
    None of a run with too few points. Raises `InputError` for a network that is not homogeneous: its patterns at
    `w/‖w‖` are not those at `w`.
    """
    evidence = gather_run(run)
    if evidence.homogeneity.degree is None:
        raise InputError(
            expected="a homogeneous network, whose patterns are those of the direction of its weights",
            found=evidence.homogeneity.obstacle,
            remedy="leave out skips, and biases above the first layer",
        )
    direction = extrapolate(evidence.points)
    listed = [] if direction is None else list(direction.undecided(preactivations_of(evidence)))
    return pd.DataFrame(listed, columns=list(Undecided._fields))
