"""Blocks of a ReLU layer: the rows of neurons that are co-active, and their bound (T4.2)."""

from torch import Tensor

from equipoise.gallery.case import Moment
from equipoise.graph.chain import Layer
from equipoise.measure.spectrum import spectrum
from equipoise.theorems.spectral_bounds import bounded, excess


def together_since(moments: tuple[Moment, ...], position: int, members: Tensor) -> int:
    """The first point from which these neurons had equal slopes on every example, up to the last one."""
    for t in range(len(moments) - 1, 0, -1):
        slopes = moments[t].slopes[position][:, members]
        if not (slopes == slopes[:, :1]).all():
            return t
    return 0


def beyond(matrix: Tensor, r: int) -> float:
    """`Σ_{i>r} σ_i²`."""
    return spectrum(matrix).beyond(r)


def block_bound(lower: str, upper: str, members: Tensor, then: Moment, now: Moment, r: int = 1) -> float:
    """The bound of T4.2 on `Σ_{i>r} σ_i²` of the rows `members` of a layer, co-active since `then`.

    `Σ_{i>r} σ_i([W₊]_{:,S})² + Σ_{i≤r} λ_i(C) - tr C`: the first term now, `C` the law of the block as it was then.
    """
    start = {lower: then.parameters[lower][members], upper: then.parameters[upper][:, members]}
    law = bounded(excess, r, Layer(lower, None, None), Layer(upper, None, None), start)
    return beyond(now.parameters[upper][:, members], r) + law
