"""Where the direction of the weights is going: rate and limit of `w/‖w‖`, and what is undecided (docs/theory.md, T4.1).

Along gradient flow the direction of a homogeneous network converges (Ji & Telgarsky 2020), in the growth `s = log ‖w‖`
about as `w/‖w‖ = w̄ + a e^{-κ s}`: corrections are powers of `‖w‖`. Three instants give `κ` and `w̄`; three others,
nearer to the end, give them again, and the difference is the uncertainty. It is an estimate, never a bound.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from equipoise.theorems.weights import Point, flattened

_SPAN = 1.0  # of growth at the end, over which the direction is fitted


class Undecided(NamedTuple):
    """A neuron-example pair with `z(x; w̄) = 0` within `error`."""

    layer: str
    example: int
    neuron: int
    value: float
    error: float


@dataclass(frozen=True)
class LimitDirection:
    """An extrapolated limit `w̄` of `w/‖w‖`, by parameter name, with its uncertainty.

    Attributes:
        rate: `κ` in `w/‖w‖ = w̄ + a e^{-κ s}`; None where the direction does not settle yet, `limit` is then the last
            direction and every error infinite.
        turning: `‖Δ(w/‖w‖)‖ / Δs` at the end.
        limit: `w̄`.
        others: the last direction, and the limit as extrapolated from further back.
    """

    rate: float | None
    turning: float
    limit: dict[str, Tensor]
    others: tuple[dict[str, Tensor], ...]

    @property
    def uncertainty(self) -> float:
        """`‖error‖`."""
        return math.sqrt(sum(float(error.square().sum()) for error in self.error.values()))

    @property
    def error(self) -> dict[str, Tensor]:
        """The uncertainty of `w̄`, entry by entry."""
        return {
            name: self.spread_of([self.limit[name], *(other[name] for other in self.others)]) for name in self.limit
        }

    def decided(self) -> dict[str, Tensor]:
        """Entries whose sign at the limit is beyond the uncertainty."""
        return {name: self.limit[name].abs() > error for name, error in self.error.items()}

    def spread_of(self, values: Sequence[Tensor]) -> Tensor:
        """The uncertainty of a function of the direction, from its values at `limit` and at `others`."""
        if self.rate is None:
            return torch.full_like(values[0], torch.inf)
        return torch.stack([(other - values[0]).abs() for other in values[1:]]).sum(0)

    def undecided(self, preactivations: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Iterator[Undecided]:
        """The neuron-example pairs whose state at the limit is not settled, `z = 0` within the uncertainty (T4.1).

        `preactivations` maps weights to the input of every activation: rows for examples, by the name of the layer.
        """
        at = [preactivations(direction) for direction in (self.limit, *self.others)]
        for place, z in at[0].items():
            error = self.spread_of([values[place] for values in at])
            for example, neuron in (z.abs() <= error).nonzero().tolist():
                yield Undecided(place, example, neuron, float(z[example, neuron]), float(error[example, neuron]))


class _Estimate(NamedTuple):
    rate: float | None
    limit: Float[Tensor, " D"]


def extrapolate(points: Sequence[Point]) -> LimitDirection | None:
    """The limit of `w/‖w‖` from weights saved along a run, in order of growth; None from fewer than three.

    >>> turning = lambda s: {"w": math.exp(s) * torch.tensor([1.0, math.exp(-2 * s)], dtype=torch.float64)}
    >>> found = extrapolate([Point(s / 4, turning(s / 4)) for s in range(16)])
    >>> round(found.rate, 2), bool((found.limit["w"] - torch.tensor([1.0, 0.0])).norm() <= found.uncertainty < 1e-3)
    (2.0, True)
    """
    points = _forward(points)
    if len(points) < 3:
        return None
    last = points[-1]
    shapes = {name: tensor.shape for name, tensor in last.weights.items()}
    wide = _estimate(*_spaced(points, _SPAN / 2))
    near = _estimate(*_spaced(points, _SPAN / 4))
    end, before = _direction(last), points[-2]
    turning = float((end - _direction(before)).norm()) / (last.growth - before.growth)
    if wide.rate is None or near.rate is None:
        return LimitDirection(None, turning, _named(end, shapes), ())
    others = (_named(end, shapes), _named(wide.limit, shapes))
    return LimitDirection(near.rate, turning, _named(near.limit, shapes), others)


def _forward(points: Sequence[Point]) -> list[Point]:
    """The points from the last fall of the norm on: growth is a clock only where it grows."""
    kept: list[Point] = []
    for point in points:
        kept = [earlier for earlier in kept if earlier.growth < point.growth - 1e-9]
        kept.append(point)
    return kept


def _spaced(points: Sequence[Point], gap: float) -> tuple[Point, Point, Point]:
    """The last point and two before it, about so far apart."""
    last = len(points) - 1
    nearest = lambda growth, below: min(range(below), key=lambda i: abs(points[i].growth - growth))  # noqa: E731
    middle = nearest(points[last].growth - gap, last) or 1
    first = nearest(2 * points[middle].growth - points[last].growth, middle)
    return points[first], points[middle], points[last]


def _estimate(first: Point, middle: Point, last: Point) -> _Estimate:
    """`κ` from how the turning falls, `w̄ = d_3 + (d_3 - d_2) / (e^{κ b} - 1)`, `b` the last gap."""
    start, centre, end = map(_direction, (first, middle, last))
    a, b = middle.growth - first.growth, last.growth - middle.growth
    before, after = float((centre - start).norm()), float((end - centre).norm())
    if after == 0:
        return _Estimate(math.inf, end)
    excess = lambda rate: math.expm1(-rate * b) / -math.expm1(rate * a) - after / before  # noqa: E731
    low, high = 1e-6 / max(a, b), 50.0 / max(a, b)
    if before == 0 or excess(low) <= 0 or excess(high) >= 0:
        return _Estimate(None, end)
    rate = float(brentq(excess, low, high))  # pyright: ignore[reportArgumentType]
    way = (end - centre) / math.expm1(rate * b)
    return _Estimate(rate, end + way) if float(way.norm()) < 1 else _Estimate(None, end)  # a limit is a unit vector


def _direction(point: Point) -> Float[Tensor, " D"]:
    flat = flattened(point.weights).double()
    return flat / flat.norm()


def _named(flat: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    pieces = flat.split([shape.numel() for shape in shapes.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
