"""Which element of the Clarke subdifferential a discrete method takes at a kink (T4.5)."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from equipoise.arguments import require_real
from equipoise.errors import InputError
from equipoise.integrate.margins.protocol import Slopes
from equipoise.integrate.objective import Objective
from equipoise.integrate.state import State, velocity_at

MINIMUM_NORM = "minimum_norm"
_SWEEPS = 20
_MOST = 200  # pairs that may sit on their kinks
_STILL = 1e-12


def check_selection(at_kinks: float | str) -> None:
    """Refuse what is neither a share from 0 to 1 nor `"minimum_norm"`."""
    if at_kinks == MINIMUM_NORM:
        return
    remedy = 'pass at_kinks=0.0, 0.5, 1.0 or "minimum_norm"'
    require_real("at_kinks", at_kinks, remedy, most=1)
    if float(at_kinks) < 0:
        raise InputError(expected="at_kinks to be at least 0", found=repr(at_kinks), remedy=remedy)


def selected_slopes(objective: Objective, state: State, at_kinks: float | str) -> Slopes:
    """The slopes of the state, with those of pairs at exactly `z = 0` chosen.

    Raises `InputError` where more than two hundred pairs sit on their kinks, for the element of least norm.
    """
    kinks = zip(objective.margins.kinks, state.evaluation.preactivations, state.slopes, strict=True)
    bends = [None if kink.negative_slope is None else (z == 0, kink.negative_slope) for kink, z, _ in kinks]
    if at_kinks == 0 or not any(bend is not None and bool(bend[0].any()) for bend in bends):
        return state.slopes
    share = 0.5 if isinstance(at_kinks, str) else at_kinks
    slopes = tuple(
        slope if bend is None else torch.where(bend[0], bend[1] + share * (1 - bend[1]), slope)
        for slope, bend in zip(state.slopes, bends, strict=True)
    )
    return _least(objective, state, slopes, bends) if isinstance(at_kinks, str) else slopes


def _least(objective: Objective, state: State, slopes: Slopes, bends: Sequence[tuple[Tensor, float] | None]) -> Slopes:
    """The slopes within their bounds whose gradient is shortest, by bounded least squares.

    The gradient is affine in the slopes of one layer, and the first solution final; with kinks in several it is
    repeated for as long as the gradient becomes shorter.

    Raises:
        InputError: for more pairs on their kink than are solved for.
    """
    places = [
        (k, place, bend[1])
        for k, bend in enumerate(bends)
        if bend is not None
        for place in bend[0].flatten().nonzero().squeeze(1).tolist()
    ]
    if len(places) > _MOST:
        raise InputError(
            expected=f"at most {_MOST} pairs of a neuron and an example at exactly z = 0, for the least norm",
            found=str(len(places)),
            remedy="pass at_kinks=0.5, or start elsewhere",
        )

    def gradient(shares: np.ndarray) -> np.ndarray:
        chosen = [slope.clone() for slope in slopes]
        for (k, place, negative), share in zip(places, shares, strict=True):
            chosen[k].view(-1)[place] = negative + float(share) * (1 - negative)
        found.append(tuple(chosen))
        return velocity_at(objective, state.weights, found[-1], state.evaluation).double().cpu().numpy()

    found: list[Slopes] = []
    shares = np.full(len(places), 0.5)
    shortest, best = gradient(shares), slopes
    for _ in range(_SWEEPS):
        units = np.eye(len(places))
        ways = [gradient(np.where(unit > 0, 1.0, shares)) - gradient(np.where(unit > 0, 0.0, shares)) for unit in units]
        adds = np.stack(ways, 1)
        shares = lsq_linear(adds, adds @ shares - shortest, bounds=(0, 1), method="bvls", tol=1e-14).x
        trial = gradient(shares)
        if np.linalg.norm(trial) >= np.linalg.norm(shortest) * (1 - _STILL):
            break
        shortest, best = trial, found[-1]
        found.clear()
    return best
