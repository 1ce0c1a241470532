"""Fewer vectors whose non-negative combinations are given ones (docs/theory.md, T10)."""

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.optimize import linprog

POINTED = 1e-4  # least inner product of unit vectors with an axis, above which they span a well-conditioned cone


def positive_factors(
    vectors: Float64[ndarray, "n columns"], eps: float = float(np.finfo(np.float64).eps)
) -> tuple[Float64[ndarray, "n k"], Float64[ndarray, "k columns"]]:
    """Factors `V = V' P` with `P ≥ 0` and as few columns of `V'` as can be promised: `r` or `r + 1` for rank `r`.

    `r` suffice if the columns lie in an open half-space: their cone fits into a simplicial one. Otherwise the `r + 1`
    vertices of a simplex around the origin span everything positively.

    Args:
        vectors: `V`, one vector a column.
        eps: unit of rounding below which singular values count as zero, relative to the largest, times the larger
            dimension.

    Returns:
        `V'` and `P`.

    >>> generators, weights = positive_factors(np.array([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]))
    >>> generators.shape, bool((weights >= 0).all()), bool(np.allclose(generators @ weights, [[1, 2, -1], [0, 0, 0]]))
    ((2, 2), True, True)
    """
    left, values, right = np.linalg.svd(vectors, full_matrices=False)
    rank = int((values > eps * max(vectors.shape) * values.max(initial=0.0)).sum())
    basis, coordinates = left[:, :rank] * values[:rank], right[:rank]
    if rank == 0:
        return basis, coordinates
    axis = _inner_axis(coordinates)
    generators, weights = _around_origin(coordinates) if axis is None else _around_axis(coordinates, axis)
    return basis @ generators, weights


def _inner_axis(vectors: Float64[ndarray, "r columns"]) -> Float64[ndarray, " r"] | None:
    """A unit vector on whose side all columns lie, as far from its boundary as can be; None if there is none."""
    lengths = np.linalg.norm(vectors, axis=0)
    units = (vectors[:, lengths > 0] / lengths[lengths > 0]).T
    rank = vectors.shape[0]
    cost = np.zeros(rank + 1)
    cost[-1] = -1.0
    below = np.column_stack([-units, np.ones(len(units))])
    found = linprog(cost, A_ub=below, b_ub=np.zeros(len(units)), bounds=[(-1, 1)] * rank + [(None, 1)])
    if found.status != 0:
        return None
    axis = found.x[:-1] / max(float(np.linalg.norm(found.x[:-1])), 1e-300)
    return axis if float((units @ axis).min(initial=1.0)) > POINTED else None


def _around_axis(
    vectors: Float64[ndarray, "r columns"], axis: Float64[ndarray, " r"]
) -> tuple[Float64[ndarray, "r r"], Float64[ndarray, "r columns"]]:
    """A simplicial cone around columns with a positive component along an axis.

    Cut by the plane of component one, the columns are points; the corner of their bounding box and the face opposite
    to it make a simplex.
    """
    along = axis @ vectors
    plane = np.linalg.svd(axis[None])[2][1:]
    inside = along > 0
    points = plane @ vectors[:, inside] / along[inside]
    corner = points.min(axis=1)
    size = max(float((points.sum(axis=0) - corner.sum()).max(initial=0.0)), np.finfo(np.float64).tiny)
    vertices = np.column_stack([corner, corner[:, None] + size * np.eye(len(corner))])
    generators = axis[:, None] + plane.T @ vertices
    shares = np.maximum(points - corner[:, None], 0.0) / size
    weights = np.zeros((len(axis), vectors.shape[1]))
    weights[1:, inside] = shares * along[inside]
    weights[0, inside] = np.maximum(1.0 - shares.sum(axis=0), 0.0) * along[inside]
    return generators, weights


def _around_origin(
    vectors: Float64[ndarray, "r columns"],
) -> tuple[Float64[ndarray, "r k"], Float64[ndarray, "k columns"]]:
    """The vertices of a regular simplex, whose sum is zero: a common amount may be added to all weights."""
    rank = vectors.shape[0]
    centred = np.eye(rank + 1) - 1.0 / (rank + 1)
    simplex = np.linalg.svd(centred)[2][:rank] * np.sqrt((rank + 1) / rank)
    weights = rank / (rank + 1) * simplex.T @ vectors
    return simplex, weights - weights.min(axis=0)
