"""Two points on which gradient flow does not minimise rank (after Timor, Vardi & Shamir 2022).

They prove it for the square loss: with an obtuse angle between the inputs a first layer of rank one could fit both, but
gradient flow takes one of rank two. Here is its counterpart for two labels. Let `x₁, x₂` be unit vectors with
`c = ⟨x₁, x₂⟩ < 0`, labels `±1`, and one hidden ReLU layer. Among all networks with margins 1, the one of least norm has
every neuron on for one point only, along that point: `‖w‖²/2 = Σ_i 1/‖x_i‖ = 2`. Neurons along `±u`, which make the
matrix rank one, need `1/⟨u, x₁⟩ + 1/⟨-u, x₂⟩`, more unless `x₂ = -x₁`. So the rows of the limit lie along the two
points, with equal weight: singular values `1 ± c`, and `1 - σ₁²/‖W‖² = (1 - |c|)/2`, which is not zero.
"""

import math

import torch
from torch import Tensor

from equipoise.gallery.case import Case, Recipe
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.recipes import two_layers
from equipoise.integrate.goals import LogLoss
from equipoise.measure.spectrum import spectrum


def obtuse_pair(case: Case) -> tuple[Tensor, Tensor]:
    """Of the centred examples the opposite pair nearest to a right angle beyond 100°, at unit length."""
    X, y = case.pair()
    unit = X - X.mean(0)
    unit = unit / unit.norm(dim=1, keepdim=True)
    ones, others = unit[y > 0], unit[y < 0]
    cosines = ones @ others.T
    wanted = cosines.where(cosines < -0.17, cosines.min() - 1)  # cos 100°
    first, second = divmod(int(wanted.argmax()), wanted.shape[1])
    return torch.stack([ones[first], others[second]]), y.new_tensor([1.0, -1.0])


TWO_POINTS = Recipe(two_layers, data=obtuse_pair, until=LogLoss(-1e6))


def measure(case: Case) -> Measurement:
    """How far the residual of the first layer ends from `(1 - |c|)/2`."""
    trail = case.train(TWO_POINTS)
    X, _ = trail.run.data
    cosine = float(X[0] @ X[1])
    expected = (1 - abs(cosine)) / 2
    curve = [(s.growth, spectrum(s.parameters["layer1.weight"]).rank_one_residual) for s in trail.moments]
    degrees = math.degrees(math.acos(cosine))
    remark = f"at {degrees:.0f}° between the points: {curve[-1][1]:.4f}, expected {expected:.4f}"
    return Measurement(abs(curve[-1][1] / expected - 1), curve, remark, trail.unfinished)


EXPERIMENT = Experiment(
    name="two-points",
    title="Two points: gradient flow does not minimise rank",
    statement="For two points with opposite labels and more than a right angle between them, a hidden layer of rank "
    "one could classify both, but gradient flow takes it to rank two: one direction for each point, 1 - σ₁²/‖W‖² = (1 "
    "- |cos|)/2.",
    theorem="T4.3, T4.4",
    sources=("timor2022implicit",),
    statistic="relative distance of 1 - σ₁²/‖W‖² at the end from (1 - |cos|)/2",
    threshold=0.01,
    why="What the layer holds of its start is a share of e^{-2s} of its square, 1e-5 at the growth of 6 that these "
    "flows reach, times the width; one percent is far above that and far below rank one, where the distance is 1.",
    measure=measure,
    picture=Picture("growth s", "1 − σ₁²/‖W‖² of the hidden layer", logarithmic=False),
)
