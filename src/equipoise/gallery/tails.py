"""Residual and misalignment of a linear tail over their certified bounds, as several experiments measure them."""

import math
from itertools import pairwise

from equipoise.gallery.case import Case, Moment, Recipe, Trail
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.graph.capture import capture
from equipoise.graph.chain import Layer, read_tail
from equipoise.laws import invariances
from equipoise.measure.alignment import alignment
from equipoise.measure.spectrum import spectrum
from equipoise.theorems.linear_tail import LinearTail, deficit_bounds
from equipoise.theorems.spectral_bounds import (
    certainly,
    conserved_matrix,
    excess,
    gram_rounding,
    matrix,
    spread,
)

STATISTIC = "the largest of (1 - σ₁²/‖W‖²) / its bound and (1 - cos²) / its bound, over tail layers and time"
WITHIN = 1 + 1e-9
WHY = (
    "The bounds rest on laws as they were at the start, exact for the flow. Rounding moves these by 1e-16 of "
    "‖w‖² a step, 1e-13 of the residuals seen here; 1e-9 leaves room for that, and none for an integrator that drifts."
)


def claim_of_tail(
    recipe: Recipe,
    name: str,
    title: str,
    statement: str,
    theorem: str,
    sources: tuple[str, ...] = ("le2022training",),
) -> Experiment:
    """A claim that the linear tail of one kind of network stays within its certified bounds, all the way."""

    def measure(case: Case) -> Measurement:
        """Residual and misalignment of the tail over their certified bounds, the worst of the whole flow."""
        return within_bounds(case.train(recipe))

    return Experiment(
        name=name,
        title=title,
        statement=statement,
        theorem=theorem,
        sources=sources,
        statistic=STATISTIC,
        threshold=WITHIN,
        why=WHY,
        measure=measure,
        picture=Picture("growth s", "worst 1 − σ₁²/‖W‖² of the tail"),
    )


def within_bounds(trail: Trail) -> Measurement:
    """The worst of (residual / its bound of T3.1, misalignment / its bound of T3.2) over layers and time.

    The bounds come from the conserved matrices at initialisation and nothing since: a drift of the laws would show. The
    curve is the worst `1 - Σ_{i≤ρ} σ_i²/‖W‖²` of the tail, `ρ` the rank that each layer tends to.
    """
    run, tail, worst, curve = trail.run, _tail(trail), 0.0, []
    deficits, ranks, pairs = deficit_bounds(tail, run.initial), tail.ranks(run.initial), list(pairwise(tail.layers))
    top = {low.weight: tail.directions(low, up, run.initial) for low, up in pairs}
    spreads = {low.weight: spread(conserved_matrix(low, up, run.initial), top[low.weight]) for low, up in pairs}
    bound = sines = math.nan
    for moment in trail.moments:
        squares = {name: float(moment.parameters[name].square().sum()) for name in deficits}
        seen = {name: _residual(moment, name, ranks[name]) for name in deficits}
        angles = {low.weight: _sines(moment, low, up, top[low.weight]) for low, up in pairs}
        gaps = {low.weight: _gap(moment, up.weight, top[low.weight]) for low, up in pairs}
        over = [_over(seen[name], deficits[name] / squares[name]) for name in deficits]
        over += [_over(angles[name], (spreads[name] / gaps[name]) ** 2) for name in angles]
        worst, sines = max(worst, *over), max(angles.values(), default=0.0)
        bound = max(deficits[name] / squares[name] for name in deficits)
        curve.append((moment.growth, max(seen.values())))
    rank = "1 - σ₁²/‖W‖²" if tail.rank == 1 else f"beyond rank {tail.rank}"
    remark = f"at the end {curve[-1][1]:.1e} {rank}, certified below {bound:.1e}; misalignment sin² = {sines:.1e}"
    return Measurement(worst, curve, remark, trail.unfinished)


def within_predicted_bounds(trail: Trail) -> Measurement:
    """The same at the end of gradient descent: of the laws at initialisation and their predicted defects (T2.2).

    Nothing of how the laws did move enters, so a drift that was not predicted would show.
    """
    run, tail, last = trail.run, _tail(trail), trail.moments[-1]
    names = {(law.producers, law.consumers): law.name for law in invariances(run.model, run.data.X[:2])}
    worst = deficit = bound = 0.0
    for lower, upper in reversed(list(pairwise(tail.layers))):
        start, defect = (
            conserved_matrix(lower, upper, run.initial),
            run.defects[names[(lower.weight,), (upper.weight,)]],
        )
        rounding = sum(gram_rounding(matrix(last.parameters[layer.weight])) for layer in (lower, upper))
        at_most = [certainly(measure, tail.rank, start, -defect, rounding) for measure in (excess, spread)]
        deficit += at_most[0]
        bound = deficit / float(last.parameters[lower.weight].square().sum())
        sines = (at_most[1] / _gap(last, upper.weight, tail.rank)) ** 2
        seen = _residual(last, lower.weight, tail.rank), _sines(last, lower, upper, tail.rank)
        worst = max(worst, _over(seen[0], bound), _over(seen[1], sines))
    lowest = tail.layers[0].weight
    curve = [(moment.growth, _residual(moment, lowest, tail.rank)) for moment in trail.moments]
    return Measurement(worst, curve, f"at the end {curve[-1][1]:.1e} 1 - σ₁²/‖W‖², certified below {bound:.1e}")


def _tail(trail: Trail) -> LinearTail:
    return LinearTail.of(read_tail(capture(trail.run.model, trail.run.data.X[:2])), trail.run.initial)


def _gap(moment: Moment, name: str, rank: int) -> float:
    """`σ_r² - σ_{r+1}²`, which is `σ_r²` for a matrix of no more rows."""
    values = [*spectrum(matrix(moment.parameters[name])).values.tolist(), 0.0]
    return values[rank - 1] ** 2 - values[rank] ** 2


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
