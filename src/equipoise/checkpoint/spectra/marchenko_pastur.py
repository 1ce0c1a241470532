"""The edge of the spectrum of noise (Marchenko & Pastur 1967), and the singular values above it."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

_TRACY_WIDOM = 2.0234  # the 99% quantile of the Tracy–Widom law of order 1


@dataclass(frozen=True)
class MarchenkoPastur:
    """The bulk that noise of the matrix's own norm would fill: up to `edge = s (√m + √n)`, `s² = ‖W‖_F² / mn`.

    `limit² = s² (μ + 2.02 w)`, with `μ` and `w` the centre and width of the largest eigenvalue of noise of that size
    (Johnstone 2001): a random matrix has a singular value above `limit` with probability 1%.
    """

    edge: float
    limit: float

    def outliers(self, values: Float[Tensor, " k"]) -> int:
        """The number of singular values above `limit`. Large ones widen the edge as well: some are not counted."""
        return int((values > self.limit).sum())


def noise_bulk(norm: float, rows: int, columns: int) -> MarchenkoPastur:
    """Edge and limit for a `rows × columns` matrix of Frobenius norm `norm`.

    >>> import torch
    >>> noise = torch.linalg.svdvals(torch.randn(200, 100, generator=torch.Generator().manual_seed(0)))
    >>> values = torch.cat([torch.tensor([60.0, 40.0]), noise])
    >>> found = noise_bulk(float(values.norm()), 200, 100)
    >>> round(found.edge), found.outliers(values), found.outliers(noise)
    (27, 2, 0)
    """
    scale = norm / math.sqrt(rows * columns)
    m, n = math.sqrt(rows - 0.5), math.sqrt(columns - 0.5)
    largest = (m + n) ** 2 + _TRACY_WIDOM * (m + n) * (1 / m + 1 / n) ** (1 / 3)
    return MarchenkoPastur(scale * (math.sqrt(rows) + math.sqrt(columns)), scale * math.sqrt(largest))
