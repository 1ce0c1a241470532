"""Deep ReLU networks: ‖W‖_F/‖W‖₂ of the middle layers is at most √2 in the limit (Timor, Vardi & Shamir 2022).

A network of largest margin has layers of equal norm `F`. On inputs of length one a margin of one takes
`Π ‖W_k‖₂ ≥ 1`. A fixed network of depth `k` with layers of norm `B` that fits the data becomes one of depth `L` when
two ReLU neurons pass its score on, whatever its sign, by layers of norm `√2`; so `F^L ≤ B^k √2^{L-k}`, and the
geometric mean of `‖W‖_F/‖W‖₂` is at most `√2 (B/√2)^{k/L}`: as `L` grows only `√2` stays. (The paper says so of another
mean.) On two points of opposite labels both neurons are needed, so the `√2` is attained: each point has a path of its
own, the two with equal norms, and every middle layer has two equal singular values.
"""

import math

import torch
from torch import Tensor, nn

from equipoise.gallery.case import Case, Moment, Recipe
from equipoise.gallery.claim import Claim, Finding, Picture
from equipoise.gallery.experiments.two_points import obtuse_pair
from equipoise.gallery.recipes import WIDTH
from equipoise.integrate.goals import LogLoss
from equipoise.measure.spectrum import spectrum
from equipoise.networks import mlp

DEPTH = 5


def _deep(example: Tensor, seed: int) -> nn.Module:
    return mlp([example.numel(), *[WIDTH] * (DEPTH - 1), 1], init="kaiming", seed=seed)


DEEP = Recipe(_deep, data=obtuse_pair, until=LogLoss(-1e6))


def ratios(moment: Moment) -> list[float]:
    """`‖W‖_F/‖W‖₂` of every layer between two hidden ones."""
    return [spectrum(weight).stable_rank ** 0.5 for weight in [*moment.parameters.values()][1:-1]]


def measure(case: Case) -> Finding:
    """The geometric mean of `‖W‖_F/‖W‖₂` over the middle layers."""
    trail = case.train(DEEP)
    curve = [(s.growth, torch.tensor(ratios(s)).log().mean().exp().item()) for s in trail.moments]
    each = ", ".join(f"{ratio:.3f}" for ratio in ratios(trail.moments[-1]))
    return Finding(curve[-1][1], curve, f"‖W‖_F/‖W‖₂ of the middle layers: {each}", trail.unfinished)


CLAIM = Claim(
    name="deep-ratio",
    title="Deep ReLU networks: ‖W‖_F/‖W‖₂ tends to at most √2",
    statement="In a deep ReLU network the layers' ‖W‖_F/‖W‖₂, the square root of the stable rank, is on average at "
    "most √2 in the limit of depth: low rank, but not one, for a score of either sign takes two ReLU neurons to pass "
    "on.",
    theorem="T4.3",
    sources=("timor2022implicit",),
    statistic="geometric mean of ‖W‖_F/‖W‖₂ over the layers between hidden ones, at the end",
    threshold=1.05 * math.sqrt(2),
    why="√2 is the limit; a layer keeps a share e^{-2s} of its square from its start, spread over its width: at a "
    "growth of 2.5 some ten percent of the square, five of its root. At the start the ratio is about 2.",
    measure=measure,
    picture=Picture("growth s", "mean ‖W‖_F / ‖W‖₂", logarithmic=False, level=math.sqrt(2)),
)
