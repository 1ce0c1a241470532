"""Layers balance themselves: differences of squared norms stay, so ratios tend to one (Du, Hu & Lee 2018; T3.3)."""

from itertools import pairwise

from equipoise.gallery.case import Case, Moment
from equipoise.gallery.drifts import ROUNDING
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import RELU


def squares(moment: Moment) -> list[float]:
    """`‖W_k‖_F²` of every layer, from the input up."""
    return [float(weight.square().sum()) for weight in moment.parameters.values()]


def measure(case: Case) -> Measurement:
    """How far `‖W_k‖² - ‖W_{k+1}‖²` moves; the curve is how far the ratio of two neighbours is from one."""
    trail = case.train(RELU)
    start = [low - up for low, up in pairwise(squares(trail.moments[0]))]
    worst, curve = 0.0, []
    for moment in trail.moments:
        found = list(pairwise(squares(moment)))
        moved = max(abs(low - up - was) for (low, up), was in zip(found, start, strict=True))
        worst = max(worst, moved / moment.norm**2)
        curve.append((moment.growth, max(abs(low / up - 1) for low, up in found)))
    return Measurement(worst, curve, f"worst ratio of neighbouring squared norms: 1 ± {curve[-1][1]:.1e} at the end")


EXPERIMENT = Experiment(
    name="layers-balanced",
    title="Layers balance themselves",
    statement="The difference between the squared Frobenius norms of neighbouring layers never changes, ReLU between "
    "them or not; as all of them grow, their ratio tends to one.",
    theorem="T3.3",
    sources=("du2018algorithmic", "le2022training"),
    statistic="largest change of ‖W_k‖² - ‖W_{k+1}‖² over ‖w‖², over layers and time",
    threshold=ROUNDING,
    why="A law that is exact for the flow and for every step: what is left is rounding, 1e-16 a step.",
    measure=measure,
    picture=Picture("growth s", "|‖Wₖ‖² / ‖Wₖ₊₁‖² − 1|, the worst"),
)
