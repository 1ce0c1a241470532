"""Newton's method for the least norm along several symmetries at once.

Along `e^{tA}` with `A` symmetric, `½‖w‖²` is convex; its gradient is the conserved quantity of every law, and its
second derivative `2 ‖dw/dt‖²` (docs/theory.md, T8). So a product with the Hessian costs two passes over the weights,
and conjugate gradients find the step.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from equipoise.laws import Law
from equipoise.transform.symmetry_action import Weights, add_velocity, advance, moments, squared_norm

LONGEST = 1.0  # of a step, in the logarithm of a scale
HALVINGS = 20
Generators = list[Tensor]  # one for each law


def newton_step(laws: Sequence[Law], weights: Weights) -> bool:
    """Move the weights by one damped Newton step; returns whether there was one that does not raise the norm."""
    gradient = [moments(law, weights, weights) for law in laws]
    diagonal = _diagonal(laws, weights)
    direction = conjugate_gradients(
        lambda each: _hessian(laws, weights, each), gradient, lambda each: _over(each, diagonal)
    )
    longest = max(float(each.abs().max()) for each in direction)
    if not 0 < longest < float("inf"):
        return False
    length = min(1.0, LONGEST / longest)
    members = {name: weights[name] for law in laws for name in law.parameters}
    start = squared_norm(members)
    for _ in range(HALVINGS):
        trial = {name: weight.clone() for name, weight in members.items()}
        for law, each in zip(laws, direction, strict=True):
            advance(law, trial, -length * each)
        if squared_norm(trial) <= start * (1 + 1e-15):
            for name, weight in trial.items():
                weights[name].copy_(weight)
            return True
        length /= 2
    return False


def _hessian(laws: Sequence[Law], weights: Weights, direction: Generators) -> Generators:
    velocity = {name: torch.zeros_like(weights[name]) for law in laws for name in law.parameters}
    for law, generator in zip(laws, direction, strict=True):
        add_velocity(law, law.slices(weights), generator, velocity)
    return [2 * moments(law, velocity, weights) for law in laws]


def _diagonal(laws: Sequence[Law], weights: Weights) -> Generators:
    """The entries of the Hessian that couple a component to itself; one where there is none."""
    found = []
    for law in laws:
        pairs = zip(law.degrees, law.slices(weights), strict=True)
        sizes = torch.stack([degree**2 * slices.square().sum((1, 3)) for degree, slices in pairs]).sum(0)
        diagonal = sizes[:, :, None] + sizes[:, None, :]
        found.append(torch.where(diagonal > 0, diagonal, 1.0))
    return found


def conjugate_gradients(
    product: Callable[[Generators], Generators],
    target: Generators,
    precondition: Callable[[Generators], Generators],
    tolerance: float = 1e-2,
) -> Generators:
    """Solve `H x = target` for a positive semidefinite `H`, to a residual of `tolerance` relative to the target."""
    solution, residual = [torch.zeros_like(each) for each in target], target
    wanted = tolerance**2 * _dot(target, target)
    direction: Generators = []
    before = 1.0
    for _ in range(sum(each.numel() for each in target)):
        if _dot(residual, residual) <= wanted:
            break
        steered = precondition(residual)
        now = _dot(residual, steered)
        direction = _plus(steered, now / before, direction) if direction else steered
        image = product(direction)
        curvature = _dot(direction, image)
        if curvature <= 0:
            break
        solution = _plus(solution, now / curvature, direction)
        residual = _plus(residual, -now / curvature, image)
        before = now
    return solution


def _over(generators: Generators, diagonal: Generators) -> Generators:
    return [each / scale for each, scale in zip(generators, diagonal, strict=True)]


def _dot(left: Generators, right: Generators) -> float:
    return float(sum((a * b).sum() for a, b in zip(left, right, strict=True)))


def _plus(left: Generators, factor: float, right: Generators) -> Generators:
    return [a + factor * b for a, b in zip(left, right, strict=True)]
