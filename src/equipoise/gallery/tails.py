"""What several claims measure of a linear tail: rank-one residual and misalignment, over their certified bounds."""

from itertools import pairwise

from equipoise.gallery.case import Moment, Trail
from equipoise.gallery.claim import Finding
from equipoise.graph.chain import Layer
from equipoise.measure.alignment import alignment
from equipoise.measure.spectrum import spectrum
from equipoise.theorems import tail

Chain = tuple[Layer, ...]


def residuals(chain: Chain, moment: Moment) -> dict[str, float]:
    """`1 - σ₁²/‖W‖²` of every tail layer."""
    return {layer.weight: spectrum(moment.parameters[layer.weight]).rank_one_residual for layer in chain}


def within_bounds(trail: Trail) -> Finding:
    """The worst of (residual / its bound of T3.1, misalignment / its bound of T3.2) over layers and time.

    The bounds come from the conserved matrices at initialisation, drift and rounding added. The curve is the worst
    residual of the tail.
    """
    chain, start = trail.run.chain, trail.run.initial
    if chain is None:
        return Finding.without("the network is no chain")
    layers = tail.linear_tail(chain)
    worst, curve = 0.0, []
    for moment in trail.moments:
        seen = residuals(layers, moment)
        bounds = tail.certified_bounds(chain, start, moment.parameters)
        worst = max(worst, *(_over(seen[name], bound) for name, bound in bounds.items()), _turned(chain, moment, start))
        curve.append((moment.growth, max(seen.values())))
    last = trail.moments[-1]
    bound = max(tail.certified_bounds(chain, start, last.parameters).values())
    sine = max((_sine(lower, upper, last) for lower, upper in pairwise(layers)), default=0.0)
    remark = f"at the end 1 - σ₁²/‖W‖² = {curve[-1][1]:.1e}, certified below {bound:.1e}; 1 - cos² = {sine**2:.1e}"
    return Finding(worst, curve, remark, trail.unfinished)


def _turned(chain: Chain, moment: Moment, start) -> float:
    """The worst misalignment over its bound."""
    bounds = tail.misalignment_bounds(chain, start, moment.parameters)
    layers = tail.linear_tail(chain)
    pairs = pairwise(layers)
    return max((_over(_sine(low, up, moment) ** 2, bounds[low.weight]) for low, up in pairs), default=0.0)


def _sine(lower: Layer, upper: Layer, moment: Moment) -> float:
    tensors = moment.parameters
    return alignment(
        tensors[lower.weight], tensors[upper.weight], bias=tensors[lower.bias] if lower.bias else None
    ).sine


def _over(measured: float, bound: float) -> float:
    return measured / bound if bound > 0 else (0.0 if measured == 0 else float("inf"))
