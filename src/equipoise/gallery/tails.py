"""What several claims measure of a linear tail: residual and misalignment, over their certified bounds."""

import math
from itertools import pairwise

from equipoise.gallery.case import Moment, Trail
from equipoise.gallery.claim import Finding
from equipoise.graph.capture import capture
from equipoise.graph.chain import Layer
from equipoise.graph.tail import read_tail
from equipoise.measure.alignment import alignment
from equipoise.measure.spectrum import spectrum
from equipoise.theorems.tail import Tail, certified_bounds, matrix, misalignment_bounds

STATISTIC = "the largest of (1 - σ₁²/‖W‖²) / its bound and (1 - cos²) / its bound, over tail layers and time"
WHY = "A bound is a bound: nothing may exceed it by anything, rounding is part of it."


def within_bounds(trail: Trail) -> Finding:
    """The worst of (residual / its bound of T3.1, misalignment / its bound of T3.2) over layers and time.

    The bounds come from the conserved matrices at initialisation, drift and rounding added. The curve is the worst
    `1 - Σ_{i≤r} σ_i²/‖W‖²` of the tail.
    """
    run, worst, curve = trail.run, 0.0, []
    tail = Tail.of(read_tail(capture(run.model, run.data.X[:2])), run.initial)
    bound = sines = math.nan
    for moment in trail.moments:
        bounds = certified_bounds(tail, run.initial, moment.parameters)
        turned = misalignment_bounds(tail, run.initial, moment.parameters)
        seen = {name: _residual(moment, name, tail.rank) for name in bounds}
        angles = {low.weight: _sines(moment, low, up, tail.rank) for low, up in pairwise(tail.layers)}
        over = [_over(seen[name], bounds[name]) for name in bounds]
        over += [_over(angles[name], turned[name]) for name in turned]
        worst, bound, sines = max(worst, *over), max(bounds.values()), max(angles.values(), default=0.0)
        curve.append((moment.growth, max(seen.values())))
    rank = "1 - σ₁²/‖W‖²" if tail.rank == 1 else f"beyond rank {tail.rank}"
    remark = f"at the end {curve[-1][1]:.1e} {rank}, certified below {bound:.1e}; misalignment sin² = {sines:.1e}"
    return Finding(worst, curve, remark, trail.unfinished)


def _residual(moment: Moment, name: str, rank: int) -> float:
    return spectrum(matrix(moment.parameters[name])).rank_residual(rank)


def _sines(moment: Moment, lower: Layer, upper: Layer, rank: int) -> float:
    """`Σ sin² θ_i` between the top spaces of a layer and the next."""
    tensors = moment.parameters
    bias = tensors[lower.bias] if lower.bias else None
    found = alignment(matrix(tensors[lower.weight]), matrix(tensors[upper.weight]), rank, bias=bias)
    return float(found.angles.sin().square().sum())


def _over(measured: float, bound: float) -> float:
    return measured / bound if bound > 0 else (0.0 if measured == 0 else math.inf)
