"""The null beside each figure: singular values of a random matrix of that shape, without building that matrix."""

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

DRAWS = 3


@lru_cache(maxsize=64)
def gaussian_singular_values(rows: int, columns: int, draw: int = 0) -> Float[Tensor, " k"]:
    """All singular values, descending, of a `rows × columns` matrix of independent standard normal entries.

    They are drawn from their exact joint distribution, in O(k²): such a matrix has the singular values of a bidiagonal
    one with independent entries `χ_m, χ_{m-1}, …` on its diagonal and `χ_{k-1}, …, χ_1` beside it (Dumitriu & Edelman
    2002). `draw` seeds them.

    >>> values = gaussian_singular_values(300, 200)
    >>> len(values), round(float(values[0]) / (300**0.5 + 200**0.5), 1)
    (200, 1.0)
    """
    longer, shorter = max(rows, columns), min(rows, columns)
    random = np.random.default_rng([longer, shorter, draw])
    diagonal = np.sqrt(random.chisquare(longer - np.arange(shorter)))
    beside = np.sqrt(random.chisquare(np.arange(shorter - 1, 0, -1))) if shorter > 1 else np.zeros(0)
    squares = diagonal**2
    squares[1:] += beside**2
    eigenvalues = eigvalsh_tridiagonal(squares, diagonal[:-1] * beside)
    return torch.from_numpy(np.sqrt(np.clip(eigenvalues[::-1], 0, None)).copy())


def random_cosine(dimension: int) -> float:
    """`E|⟨u, v⟩| = Γ(d/2) / (√π Γ((d+1)/2)) ≈ √(2 / πd)` of two independent directions in `R^d`.

    >>> round(random_cosine(1), 12), round(random_cosine(768), 4)
    (1.0, 0.0288)
    """
    ratio = math.exp(math.lgamma(dimension / 2) - math.lgamma((dimension + 1) / 2))
    return ratio / math.sqrt(math.pi)
