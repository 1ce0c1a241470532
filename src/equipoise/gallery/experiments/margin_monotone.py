"""The smoothed normalised margin never decreases once the data is separated (Lyu & Li 2020; docs/theory.md §0)."""

import math

from equipoise.gallery.case import Case
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import RELU
from equipoise.measure.margins import smoothed_normalised_margin


def measure(case: Case) -> Measurement:
    """The deepest fall of the smoothed margin below its highest value so far, relative to that value."""
    trail = case.train(RELU)
    run, n = trail.run, len(trail.run.data.y)
    if run.homogeneity is None:
        return Measurement.without("the network is not homogeneous")
    curve = [
        (s.growth, smoothed_normalised_margin(s.log_loss, n, s.norm, run.homogeneity))
        for s in trail.moments
        if s.log_loss < -math.log(n)
    ]
    if len(curve) < 2:
        return Measurement.without("the flow did not separate the data")
    highest, fall = -math.inf, 0.0
    for _, margin in curve:
        highest = max(highest, margin)
        fall = max(fall, (highest - margin) / highest)
    return Measurement(fall, curve, f"from {curve[0][1]:.2e} to {curve[-1][1]:.2e} in {len(curve)} steps")


EXPERIMENT = Experiment(
    name="margin-monotone",
    title="The smoothed normalised margin never decreases",
    statement="For a homogeneous network, ℓ⁻¹(nR)/‖w‖^L never decreases along gradient flow once R < ℓ(0)/n.",
    theorem="docs/theory.md §0",
    sources=("lyu2020gradient",),
    statistic="the deepest fall below the highest value so far, relative to it",
    threshold=1e-9,
    why="The theorem allows no fall at all; 1e-9 leaves room for the rounding of log R and of ‖w‖^L, far below what a "
    "flow that is integrated with visible errors would show.",
    measure=measure,
    picture=Picture("growth s", "smoothed normalised margin", logarithmic=False),
)
