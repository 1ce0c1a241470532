"""Deep ReLU networks: ‖W‖_F/‖W‖₂ is on average at most √2 (after Timor, Vardi & Shamir 2022).

In a network of largest margin all layers have one norm `F` (T3.3). On inputs of length at most one, a margin of one
takes `Π ‖W_k‖₂ ≥ 1`. A network of depth `k` with layers of norm `B` that fits the data becomes one of depth `L` when
two ReLU neurons pass its score on, of either sign, by layers of norm `√2`: so `F^L ≤ B^k √2^{L-k}`, and the
geometric mean of `‖W‖_F/‖W‖₂` over the layers is at most `√2 (B/√2)^{k/L}`, which is `√2` in the limit of depth. (The
paper says so of the harmonic mean, which is no larger.) On two unit vectors of opposite labels and an obtuse angle, two
layers of norm `B = √2` fit: there the bound is `√2` at every depth. Both neurons are needed, so every middle layer
attains it in the limit: each point has a path of its own, the two with equal norms.

The theorem is about the largest margin; gradient flow promises a point of first order only (Lyu & Li 2020).
"""

import math

import torch
from torch import Tensor, nn

from equipoise.gallery.case import Case, Moment, Recipe
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.experiments.two_points import obtuse_pair
from equipoise.gallery.recipes import WIDTH
from equipoise.integrate.goals import LogLoss
from equipoise.measure.spectrum import spectrum
from equipoise.networks import mlp

DEPTH = 5


def _deep(example: Tensor, seed: int) -> nn.Module:
    return mlp([example.numel(), *[WIDTH] * (DEPTH - 1), 1], init="kaiming", seed=seed)


DEEP = Recipe(_deep, data=obtuse_pair, until=LogLoss(-1e6))


def ratios(moment: Moment) -> torch.Tensor:
    """`‖W‖_F/‖W‖₂` of every layer."""
    return torch.tensor([spectrum(weight).stable_rank ** 0.5 for weight in moment.parameters.values()])


def measure(case: Case) -> Measurement:
    """The geometric mean of `‖W‖_F/‖W‖₂` over all layers."""
    trail = case.train(DEEP)
    curve = [(s.growth, float(ratios(s).log().mean().exp())) for s in trail.moments]
    last = ratios(trail.moments[-1])
    each, harmonic = ", ".join(f"{ratio:.3f}" for ratio in last[1:-1]), float(1 / (1 / last).mean())
    remark = f"harmonic mean {harmonic:.3f}; the layers between hidden ones: {each}"
    return Measurement(curve[-1][1], curve, remark, trail.unfinished)


EXPERIMENT = Experiment(
    name="deep-ratio",
    title="Deep ReLU networks: ‖W‖_F/‖W‖₂ is on average at most √2",
    statement="In a deep ReLU network of largest margin the layers' ‖W‖_F/‖W‖₂, the square root of the stable rank, is "
    "on average at most √2 in the limit of depth, and on two points of opposite labels at every depth: low rank, but "
    "not one, for a score of either sign takes two ReLU neurons to pass on.",
    theorem="T3.3, T4.3",
    sources=("timor2022implicit", "lyu2020gradient"),
    statistic="geometric mean of ‖W‖_F/‖W‖₂ over all layers, at the end",
    threshold=math.sqrt(2),
    why="The bound itself, nothing allowed: the first and the last layer lie below it, which outweighs what the others "
    "hold of their start. At the start the mean is about 1.8.",
    measure=measure,
    picture=Picture("growth s", "mean ‖W‖_F / ‖W‖₂", logarithmic=False, level=math.sqrt(2)),
)
