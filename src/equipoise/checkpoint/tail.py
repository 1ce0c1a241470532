"""The heavy-tail exponent: a power law fitted to the largest eigenvalues, by the powerlaw package."""

import math
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float
from torch import Tensor

_FEWEST = 10  # eigenvalues below which no exponent is worth stating
_STARTS = 1000  # places tried for the start of the tail


@dataclass(frozen=True)
class Tail:
    """`p(λ) ∝ λ^-exponent` for `λ ≥ start`, with its standard error and the Kolmogorov–Smirnov distance of the fit.

    A fit, not a finding: every spectrum gets one, the random ones too, and only a small distance over a long tail
    speaks for a power law (Clauset, Shalizi & Newman 2009).
    """

    exponent: float
    error: float
    distance: float
    start: float


def heavy_tail(values: Float[Tensor, " k"]) -> Tail | None:
    """The fit to `λ_i = σ_i²`; None without the powerlaw package, or with fewer than ten distinct eigenvalues.

    The start of the tail is the one with the smallest distance, as in powerlaw (which takes seconds to find it among
    thousands of eigenvalues); the exponent at that start is powerlaw's.
    """
    if not available():
        return None
    import powerlaw  # an extra

    eigenvalues = np.sort(values.double().numpy() ** 2)
    eigenvalues = eigenvalues[eigenvalues > 0]
    start = tail_start(eigenvalues)
    if start is None:
        return None
    tail = eigenvalues[eigenvalues >= start]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exponents above 3, where powerlaw's own range ends
        fitted = powerlaw.Fit(tail, xmin=start, verbose=False, parameter_ranges={"alpha": (1, None)}).power_law
    exponent = float(fitted.alpha)
    return Tail(exponent, (exponent - 1) / math.sqrt(len(tail)), float(fitted.D), start)


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
    logs = np.log(ascending)
    return float(ascending[min(starts, key=lambda start: _distance(logs[start:]))])


def _distance(logs: np.ndarray) -> float:
    """The Kolmogorov–Smirnov distance between a tail and its maximum-likelihood power law."""
    steps = logs - logs[0]
    rate = len(logs) / steps.sum()
    gaps = np.arange(len(logs)) / len(logs) + np.expm1(-rate * steps)
    return float(np.abs(gaps).max())
