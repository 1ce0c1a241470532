"""Two points under the square loss, the setting of Timor, Vardi & Shamir 2022: gradient flow does not minimise rank.

A hidden ReLU layer with two outputs fits the labels `(1, 0)` and `(0, 1)` of two unit vectors, `c = ⟨x₁, x₂⟩ < 0`. A
first layer of rank one could: neurons along `u` and `-u`, for any `u` with `⟨u, x₁⟩ > 0 > ⟨u, x₂⟩`. From a small start
gradient flow does something else. A neuron that is on for one point alone moves along that point, and so stays off for
the other. One that is on for both grows along the gradient of `⟨w, x₁⟩² + ⟨w, x₂⟩²`, which drives it off the bisector
until it is on for one only. So the rows end along the two points, and `‖w_j‖ = ‖v_j‖` (T2) makes both weigh the same:
singular values `1 ± c` once more, and `1 - σ₁²/‖W‖² = (1 - |c|)/2`. A neuron that was too near the bisector to leave it
in time adds to the smaller singular value: the matrix is then farther still from rank one.

No margins grow here, so this is no flow to a limit direction: the midpoint rule until the loss is zero.
"""

import torch
from torch import Tensor

from equipoise.gallery.case import Case
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.experiments.two_points import obtuse_pair
from equipoise.gallery.recipes import WIDTH
from equipoise.measure.spectrum import spectrum

START, STEP, STEPS = 1e-5, 0.02, 3000
Layers = tuple[Tensor, Tensor]


def forces(layers: Layers, X: Tensor) -> Layers:
    """`-∇ ½ Σ_i ‖V σ(W x_i) - e_i‖²`."""
    W, V = layers
    z = X @ W.T
    hidden = z.relu()
    error = torch.eye(len(X), dtype=X.dtype) - hidden @ V.T
    return ((error @ V) * (z > 0)).T @ X, error.T @ hidden


def step(layers: Layers, X: Tensor) -> Layers:
    """The explicit midpoint rule."""
    half = [w + STEP / 2 * f for w, f in zip(layers, forces(layers, X), strict=True)]
    W, V = (w + STEP * f for w, f in zip(layers, forces((half[0], half[1]), X), strict=True))
    return W, V


def measure(case: Case) -> Measurement:
    """The residual of the first layer at the end, over `(1 - |c|)/2`."""
    X, _ = obtuse_pair(case)
    random = torch.Generator().manual_seed(case.seed)
    shapes = ((WIDTH, X.shape[1]), (len(X), WIDTH))
    W, V = (START / shape[1] ** 0.5 * torch.randn(shape, generator=random, dtype=X.dtype) for shape in shapes)
    curve = []
    for k in range(STEPS):
        if k % (STEPS // 100) == 0:
            curve.append((k * STEP, spectrum(W).rank_one_residual))
        W, V = step((W, V), X)
    loss = float((torch.eye(len(X), dtype=X.dtype) - (X @ W.T).relu() @ V.T).square().sum()) / 2
    expected, found = (1 - abs(float(X[0] @ X[1]))) / 2, spectrum(W).rank_one_residual
    premise = "" if loss < 1e-12 else f"no neuron is on for one of the points: the loss ends at {loss:.2g}"
    return Measurement(found / expected, curve, f"{found:.4f}, expected {expected:.4f}", premise)


EXPERIMENT = Experiment(
    name="two-points-square",
    title="Two points, square loss: gradient flow does not minimise rank",
    statement="For two points with more than a right angle between them, orthogonal labels and the square loss, a "
    "hidden layer of rank one could fit both; from a small start gradient flow takes it to rank two, 1 - σ₁²/‖W‖² at "
    "least (1 - |cos|)/2.",
    theorem="T2, T4.4",
    sources=("timor2022implicit",),
    statistic="1 - σ₁²/‖W‖² at the end, over (1 - |cos|)/2",
    relation="≥",
    threshold=0.99,
    why="With the rows along the points the ratio is 1, and what lies between the points adds to it. What a start of "
    "1e-5 leaves is of order 1e-5; one percent is far above that, and rank one is at 0.",
    measure=measure,
    picture=Picture("time", "1 − σ₁²/‖W‖² of the hidden layer", logarithmic=False),
)
