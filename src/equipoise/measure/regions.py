"""Activation regions of a piecewise-linear network: exactly for one hidden layer, on a plane for any depth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linprog
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.graph.capture import capture
from equipoise.graph.evaluate import kinks, recorded, rectified
from equipoise.models import copied_model
from equipoise.modes import default_modes

_INSIDE = 1e-9  # relative distance from every plane by which a point is inside a region


@dataclass(frozen=True)
class Regions:
    """Activation regions of a layer in the whole input space.

    Attributes:
        signs: a row for each region, a column for each distinct hyperplane: the sign of `⟨w, x⟩ + b`.
        facets: by region the number of its facets.
    """

    signs: Int[Tensor, "regions planes"]
    facets: Int[Tensor, " regions"]

    @property
    def mean_facets(self) -> float:
        """Facets of a region in the mean."""
        return float(self.facets.double().mean())


@dataclass(frozen=True)
class PlaneRegions:
    """Activation regions on a rectangle of a plane through the input space.

    Attributes:
        polygons: the corners of each region in the coordinates of the plane, in order.
        facets: by region the number of its edges; those on the border of the rectangle do not count.
        inner: which regions do not touch the border.
    """

    polygons: tuple[Float[np.ndarray, "_ 2"], ...]
    facets: Int[Tensor, " regions"]
    inner: Tensor

    @property
    def mean_facets(self) -> float:
        """Edges of a region in the mean, over those that do not touch the border; NaN where there are none."""
        return float(self.facets[self.inner].double().mean())


@default_modes()
def layer_regions(
    weight: Float[Tensor, "neurons d"], bias: Float[Tensor, " neurons"] | None = None, most: int = 100_000
) -> Regions:
    """The activation regions of one hidden layer, and their facets, exactly (Fan et al. 2023).

    They are the cells of the arrangement of hyperplanes `⟨w_j, x⟩ + b_j = 0`. Hyperplanes are added in turn, and a cell
    is cut if a linear programme finds points inside both parts. Two cells share a facet if their signs differ in one
    hyperplane. In general position there are `Σ_{i≤d} C(n, i)` cells with `2n Σ_{i<d} C(n-1, i)` facets in all. Equal
    hyperplanes count once; neurons of weight zero have none.

    Args:
        weight: a row for each neuron.
        bias: of the neurons; without it all hyperplanes contain the origin.
        most: regions at most.

    Returns:
        Signs and facets of every region.

    Raises:
        InputError: for more regions than `most`.

    >>> found = layer_regions(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0.0, 0.0, -1.0]))
    >>> len(found.facets), sorted(found.facets.tolist())
    (7, [2, 2, 2, 3, 3, 3, 3])
    """
    planes = _distinct(weight.double().numpy(), None if bias is None else bias.double().numpy())
    cells: list[tuple[int, ...]] = [()]
    for count in range(1, len(planes) + 1):
        cells = [(*cell, side) for cell in cells for side in (-1, 1) if _has_inside(planes[:count], (*cell, side))]
        if len(cells) > most:
            raise InputError(
                expected=f"at most {most} regions",
                found=f"more, from {count} of {len(planes)} hyperplanes in {weight.shape[1]} dimensions",
                remedy="pass most=..., or measure a plane by plane_regions",
            )
    known = set(cells)
    facets = [sum((*cell[:j], -cell[j], *cell[j + 1 :]) in known for j in range(len(planes))) for cell in cells]
    signs = torch.tensor(cells, dtype=torch.int64).reshape(len(cells), len(planes))
    return Regions(signs, torch.tensor(facets, dtype=torch.int64))


@default_modes()
def plane_regions(
    model: nn.Module,
    corner: Float[Tensor, " *shape"],
    first: Float[Tensor, " *shape"],
    second: Float[Tensor, " *shape"],
    most: int = 100_000,
) -> PlaneRegions:
    """The activation regions on the rectangle `corner + s · first + t · second`, `0 ≤ s, t ≤ 1`, at any depth.

    Layer for layer, each polygon is cut along the lines where a pre-activation is zero: inside a region of the layers
    below it is an affine function, known by its values at the corners. So it works on any network whose activations
    bend each number at zero (ReLU, leaky ReLU, absolute value): with skips, convolutions, averages. Regions of the
    network that lie in the plane apart are counted apart; regions of equal patterns that touch are not merged.

    Args:
        model: a network in evaluation mode; read in float64.
        corner: an input.
        first: from there to the second corner.
        second: from there to the third.
        most: regions at most.

    Returns:
        The polygons and their edges.

    Raises:
        InputError: for other kinks, such as maxima, and for more regions than `most`.
        CaptureError: for a model that cannot be read.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2))
    >>> found = plane_regions(model, torch.tensor([-1.0, -1.0]), torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]))
    >>> len(found.polygons), found.facets.tolist()
    (4, [2, 2, 2, 2])
    """
    double = copied_model(model).double()
    points = torch.stack([corner, corner + first, corner + second]).double()
    captured = rectified(capture(double, points), double, points)
    bends = kinks(captured)
    if any(kink.negative_slope is None for kink in bends):
        raise InputError(
            expected="activations that bend each number at zero",
            found="a maximum over several numbers",
            remedy="replace max-pooling by a strided convolution or an average",
        )
    weights = {name: parameter.detach() for name, parameter in double.named_parameters()}
    polygons = [_Polygon(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), (-1, -1, -1, -1))]
    lines = 0
    for k in range(len(bends)):
        corners = torch.from_numpy(np.concatenate([polygon.corners for polygon in polygons]))
        inputs = points[0] + torch.einsum("ns,s...->n...", corners, points[1:] - points[0])
        with torch.no_grad():
            values = recorded(captured, bends, weights, inputs)[1][k].flatten(1).numpy()
        cut: list[_Polygon] = []
        start = 0
        for polygon in polygons:
            count = len(polygon.corners)
            cut += polygon.cut(values[start : start + count], lines)
            start += count
            if len(cut) > most:
                raise InputError(expected=f"at most {most} regions", found="more", remedy="pass a smaller rectangle")
        lines += values.shape[1]
        polygons = cut
    edges = [polygon.edges for polygon in polygons]
    facets = torch.tensor([sum(edge >= 0 for edge in each) for each in edges])
    inner = torch.tensor([all(edge >= 0 for edge in each) for each in edges])
    return PlaneRegions(tuple(polygon.corners for polygon in polygons), facets, inner)


@dataclass(frozen=True)
class _Polygon:
    """A convex polygon: its corners in order, and for the edge after each the line it lies on, -1 for the border."""

    corners: np.ndarray
    edges: tuple[int, ...]

    def cut(self, values: np.ndarray, first_line: int) -> list["_Polygon"]:
        """The parts between the zero lines of functions that are affine on it, from their values at its corners."""
        parts: list[_Polygon] = [self]
        seen = [values]
        scale = np.abs(values).max(0)
        for neuron in range(values.shape[1]):
            split: list[tuple[_Polygon, np.ndarray]] = []
            for part, at in zip(parts, seen, strict=True):
                split += part._halves(at, neuron, first_line + neuron, _INSIDE * scale[neuron])
            parts, seen = [part for part, _ in split], [at for _, at in split]
        return parts

    def _halves(self, values: np.ndarray, neuron: int, line: int, margin: float) -> list[tuple["_Polygon", np.ndarray]]:
        z = values[:, neuron]
        if not (z.max() > margin and z.min() < -margin):
            return [(self, values)]
        halves = []
        for side in (1, -1):
            kept: list[np.ndarray] = []
            at: list[np.ndarray] = []
            edges: list[int] = []
            for i in range(len(z)):
                j = (i + 1) % len(z)
                here, there = side * z[i], side * z[j]
                if here > 0:
                    kept.append(self.corners[i])
                    at.append(values[i])
                    edges.append(self.edges[i])
                if (here > 0) != (there > 0):
                    share = here / (here - there)
                    kept.append(self.corners[i] + share * (self.corners[j] - self.corners[i]))
                    at.append(values[i] + share * (values[j] - values[i]))
                    edges.append(line if here > 0 else self.edges[i])
            halves.append((_Polygon(np.array(kept), tuple(edges)), np.array(at)))
        return halves


def _distinct(weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Hyperplanes as unit normals and offsets, the first of several equal ones."""
    norms = np.linalg.norm(weight, axis=1)
    offsets = np.zeros(len(weight)) if bias is None else bias
    rows = np.column_stack([weight, offsets])[norms > 0] / norms[norms > 0, None]
    kept: list[np.ndarray] = []
    for row in rows:
        if not any(min(np.abs(row - other).max(), np.abs(row + other).max()) < 1e-12 for other in kept):
            kept.append(row)
    return np.array(kept).reshape(len(kept), weight.shape[1] + 1)


def _has_inside(planes: np.ndarray, signs: Sequence[int]) -> bool:
    """Whether a point has these signs strictly: the radius of the largest ball inside, up to one, by a programme."""
    signed = np.array(signs)[:, None] * planes
    bounds = [(None, None)] * (planes.shape[1] - 1) + [(0, 1)]
    cost = np.append(np.zeros(planes.shape[1] - 1), -1.0)
    rows = np.column_stack([-signed[:, :-1], np.ones(len(planes))])
    found = linprog(cost, rows, signed[:, -1], bounds=bounds)
    return bool(found.status == 0 and found.x[-1] > _INSIDE)
