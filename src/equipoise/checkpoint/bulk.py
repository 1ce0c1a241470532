"""Where the spectrum of noise would end (Marchenko & Pastur 1967), and what stands out of it."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

_TRACY_WIDOM = 2.0234  # the 99% quantile of the Tracy–Widom law of order 1
_ROUNDS = 50


@dataclass(frozen=True)
class Bulk:
    """The bulk of a spectrum: `edge = s (√m + √n)` for noise of standard deviation `scale = s`, and the outliers above.

    `outliers` counts `σ_i² > s² (μ + 2.02 w)`: `μ` and `w` are the centre and width of the largest eigenvalue of noise
    of that size (Johnstone 2001), so that a random matrix has one with probability 1%.
    """

    scale: float
    edge: float
    outliers: int


def bulk(values: Float[Tensor, " k"], rows: int, columns: int) -> Bulk:
    """Edge and outliers, from all singular values; the noise is what is left once the outliers are taken out.

    The scale starts from `‖W‖_F² / mn` and is refitted without the outliers, `Σ_{i>k} σ_i² / (m-k)(n-k)`, until their
    number `k` stands. A first guess with outliers in it is too wide, so `k` only grows.

    >>> import torch
    >>> noise = torch.linalg.svdvals(torch.randn(200, 100, generator=torch.Generator().manual_seed(0)))
    >>> found = bulk(torch.cat([torch.tensor([60.0, 40.0]), noise]), 200, 100)
    >>> found.outliers, round(found.scale, 1), round(found.edge)
    (2, 1.0, 24)
    """
    squares = values.double().square()
    tails = squares.flip(0).cumsum(0).flip(0)
    outliers, scale = 0, 0.0
    for _ in range(_ROUNDS):
        freedom = (rows - outliers) * (columns - outliers)
        scale = math.sqrt(float(tails[outliers]) / freedom)
        found = int((squares > scale**2 * _largest(rows, columns)).sum())
        found = min(max(found, outliers), len(values) - 1)
        if found == outliers:
            break
        outliers = found
    return Bulk(scale, scale * (math.sqrt(rows) + math.sqrt(columns)), outliers)


def _largest(rows: int, columns: int) -> float:
    """The 99% quantile of `σ_1²` of standard normal entries."""
    m, n = math.sqrt(rows - 0.5), math.sqrt(columns - 0.5)
    return (m + n) ** 2 + _TRACY_WIDOM * (m + n) * (1 / m + 1 / n) ** (1 / 3)
