"""Weights by parameter name, in float64, and the points of a run at which they are known."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from equipoise.errors import InputError

Weights: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Point:
    """The weights at one instant of a run, and its growth `s = log(‖w‖/‖w₀‖)`."""

    growth: float
    weights: Weights


def points_along(final: Weights, initial: Weights | None, saved: Mapping[str, Weights]) -> tuple[Point, ...]:
    """The initial weights, those saved on the way and the final ones, in order of growth.

    Args:
        final: the weights at the end.
        initial: those at initialisation; the final ones are the only point without them.
        saved: weights on the way, each under a name, in any precision.
    """
    if initial is None:
        return (Point(0.0, final),)
    base = weight_norm(initial)
    growth = lambda weights: math.log(weight_norm(weights) / base) if base > 0 else math.inf  # noqa: E731
    between = [finite_doubles(weights, f"weights saved as {name}") for name, weights in saved.items()]
    known = sorted((Point(growth(weights), weights) for weights in between), key=lambda point: point.growth)
    end = growth(final)
    return (Point(0.0, initial), *(point for point in known if 0 < point.growth < end), Point(end, final))


def finite_doubles(weights: Weights, description: str) -> dict[str, Tensor]:
    """Detached weights in float64.

    Raises:
        InputError: for NaN and infinity, with `description` and the first such parameter.
    """
    found = {name: tensor.detach().double() for name, tensor in weights.items()}
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                expected=f"finite {description}",
                found=f"NaN or infinite entries in {name}",
                remedy="find the step at which training diverged",
            )
    return found


def weight_norm(weights: Weights) -> float:
    """`‖w‖` over all parameters."""
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in weights.values()))


def flattened(weights: Weights) -> Tensor:
    """All parameters as one vector, in their order."""
    return torch.cat([tensor.flatten() for tensor in weights.values()])


def require_same_shapes(initial: Weights, final: Weights) -> None:
    """Check that two sets of weights have the same names and shapes.

    Raises:
        InputError: naming the first difference.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (initial, final)]
    differing = sorted(
        name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
    )
    if differing:
        first = differing[0]
        raise InputError(
            expected="initial weights with the names and shapes of the final ones",
            found=f"{first}: {shapes[0].get(first)} initially, {shapes[1].get(first)} now",
            remedy="pass initial=dict(model.named_parameters()), copied before training",
        )
