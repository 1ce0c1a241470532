"""The heavy-tail exponent: a power law fitted to the largest eigenvalues, by the powerlaw package."""

import math
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.checkpoint.warnings_lock import warnings_ignored

_FEWEST = 10  # eigenvalues below which no exponent is worth stating
_STARTS = 1000  # places tried for the start of the tail,
_TOGETHER = 16  # of them at a time


@dataclass(frozen=True)
class PowerLaw:
    """`p(λ) ∝ λ^-exponent` for `λ ≥ start`, with its standard error and the Kolmogorov–Smirnov distance of the fit.

    A fit, not a finding: every spectrum gets one, the random ones too, and only a small distance over a long tail
    speaks for a power law (Clauset, Shalizi & Newman 2009).
    """

    exponent: float
    error: float
    distance: float
    start: float


def heavy_tail(values: Float[Tensor, " k"]) -> PowerLaw | None:
    """The fit to `λ_i = σ_i²`; None without the powerlaw package, or with fewer than ten distinct eigenvalues.

    The start of the tail is the one with the smallest distance, as in powerlaw (which takes seconds to find it among
    thousands of eigenvalues); the exponent at that start is powerlaw's.
    """
    if len(values) < _FEWEST or not available():
        return None
    import powerlaw  # an extra

    eigenvalues = np.sort(values.double().numpy() ** 2)
    eigenvalues = eigenvalues[eigenvalues > 0]
    start = tail_start(eigenvalues)
    if start is None:
        return None
    tail = eigenvalues[eigenvalues >= start]
    with warnings_ignored():  # of exponents above 3, where powerlaw's own range ends
        fitted = powerlaw.Fit(tail, xmin=start, verbose=False, parameter_ranges={"alpha": (1, None)}).power_law
    exponent = float(fitted.alpha)
    return PowerLaw(exponent, (exponent - 1) / math.sqrt(len(tail)), float(fitted.D), start)


@cache
def available() -> bool:
    """Whether the powerlaw package is there."""
    return find_spec("powerlaw") is not None


def tail_start(ascending: np.ndarray) -> float | None:
    """The eigenvalue from which on a power law fits best: smallest distance of the two distributions.

    At most a thousand starts are tried, evenly spaced by rank; up to a thousand eigenvalues, that is all of them.
    """
    starts = np.unique(ascending, return_index=True)[1][:-2]
    if len(starts) + 2 < _FEWEST:
        return None
    starts = starts[np.linspace(0, len(starts) - 1, min(len(starts), _STARTS)).round().astype(int)]
    logs = torch.from_numpy(np.log(ascending))
    distances = torch.cat([_distances(logs, some) for some in torch.from_numpy(starts).split(_TOGETHER)])
    return float(ascending[starts[int(distances.argmin())]])


def _distances(logs: Tensor, starts: Tensor) -> Tensor:
    """The Kolmogorov–Smirnov distance between each tail and its maximum-likelihood power law."""
    first, logs = int(starts[0]), logs[int(starts[0]) :]
    ranks = torch.arange(len(logs)) - (starts - first)[:, None]
    steps = (logs - logs[starts - first, None]).clamp(min=0)
    counts = len(logs) - (starts - first)[:, None]
    gaps = ranks / counts + torch.expm1(-counts / steps.sum(1, keepdim=True) * steps)
    return gaps.abs().where(ranks >= 0, 0).amax(1)
