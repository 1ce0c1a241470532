"""One matrix, measured: every figure of a row, exact or randomised, with its null."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise import linalg
from equipoise.checkpoint.spectra.gaussian_null import DRAWS, gaussian_singular_values
from equipoise.checkpoint.spectra.gram import accuracy, gram_singular_values, rank_one_residual
from equipoise.checkpoint.spectra.marchenko_pastur import noise_bulk
from equipoise.checkpoint.spectra.matrix_stream import MatrixStream
from equipoise.checkpoint.spectra.power_law import heavy_tail
from equipoise.checkpoint.spectra.randomised import randomised
from equipoise.measure.spectrum import SingularSpectrum

NULLED = (
    "stable_rank",
    "effective_rank",
    "participation_ratio",
    "numerical_rank",
    "rank_one_residual",
    "outliers",
    "heavy_tail_exponent",
)
FAST_FROM = 1024  # on the shorter side: up to here all singular values cost no more than a few
Row: TypeAlias = dict[str, Any]  # the columns of a table


@dataclass(frozen=True)
class Settings:
    """How to measure, as `analyze` says; `tolerance` None is `max(rows, columns) · eps` of float32."""

    method: str = "auto"
    r: int = 5
    tolerance: float | None = None
    heavy_tail: bool = True

    def rank_tolerance(self, rows: int, columns: int) -> float:
        """The share of `σ_1` above which a singular value counts."""
        return max(rows, columns) * torch.finfo(torch.float32).eps if self.tolerance is None else self.tolerance


def measure(matrix: MatrixStream, settings: Settings) -> Row | str:
    """The figures of an `out × in` matrix of any floating dtype, or why there are none: NaN or infinite entries."""
    way = _way(matrix, settings)
    if way == "gram":
        values = gram_singular_values(matrix)
        if values is None:
            return _spoilt(matrix.whole())
        return _by_gram(matrix, values, settings) if values[0] > 0 else _zero(matrix, way, settings)
    whole = matrix.whole()
    largest = _largest(whole)
    if not math.isfinite(largest):
        return _spoilt(whole)
    if largest == 0:
        return _zero(matrix, way, settings)
    return _by_svd(whole, settings) if way == "svd" else _fast(whole, settings)


def _way(matrix: MatrixStream, settings: Settings) -> str:
    """Gram, svd or fast: what is asked for, where it can be done and pays."""
    if settings.method == "fast":
        return "fast" if min(matrix.shape) > FAST_FROM else "gram"
    if settings.method == "auto":
        return "svd" if matrix.dtype == torch.float64 else "gram"
    return settings.method


def _largest(matrix: Tensor) -> float:
    """The largest magnitude, without a copy; NaN where an entry is."""
    low, high = map(float, torch.aminmax(matrix))
    return max(-low, high)


def _zero(matrix: MatrixStream, way: str, settings: Settings) -> Row:
    rows, columns = matrix.shape
    row = described(torch.zeros(min(rows, columns), dtype=torch.float64), rows, columns, settings)
    return row | {"method": "svd" if way == "svd" else "gram", "accuracy": 0.0}


def _by_gram(matrix: MatrixStream, values: Tensor, settings: Settings) -> Row:
    rows, columns = matrix.shape
    row = described(values, rows, columns, settings, rank_one_residual(matrix, values))
    return row | {"method": "gram", "accuracy": accuracy(matrix)}


def _by_svd(matrix: Tensor, settings: Settings) -> Row:
    """LAPACK's SVD in float64, of the matrix over its largest entry: squares of 1e200 would overflow."""
    scale = _largest(matrix)
    values = linalg.singular_values([matrix.double() / scale])[0].cpu()
    row = described(values * scale, matrix.shape[0], matrix.shape[1], settings)
    return row | {"method": "svd", "accuracy": min(matrix.shape) * torch.finfo(torch.float64).eps}


def _spoilt(matrix: Tensor) -> str:
    wrong = sum(int((~torch.isfinite(rows)).sum()) for rows in matrix.split(max((1 << 20) // matrix.shape[1], 1)))
    return (
        f"{wrong} of {matrix.numel()} entries are NaN or infinite"
        if wrong
        else "its squares overflow: pass method='svd'"
    )


def described(
    values: Float[Tensor, " k"], rows: int, columns: int, settings: Settings, residual: float | None = None
) -> Row:
    """Every measure of docs/theory.md §6 and of the bulk and tail of a spectrum, from all singular values."""
    spectrum = SingularSpectrum(values, rows, columns, r=settings.r)
    tolerance, around = settings.rank_tolerance(rows, columns), noise_bulk(spectrum.frobenius_norm, rows, columns)
    tail = heavy_tail(values) if settings.heavy_tail else None
    return {
        "frobenius_norm": spectrum.frobenius_norm,
        "spectral_norm": float(values[0]),
        "nuclear_norm": float(values.sum()),
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
        "participation_ratio": spectrum.participation_ratio,
        "numerical_rank": spectrum.numerical_rank(tolerance),
        "rank_tolerance": tolerance,
        "rank_one_residual": spectrum.rank_one_residual if residual is None else residual,
        "singular_values": spectrum.singular_values.tolist(),
        "mp_edge": around.edge,
        "outliers": around.outliers(values),
        "heavy_tail_exponent": tail and tail.exponent,
        "heavy_tail_error": tail and tail.error,
        "heavy_tail_distance": tail and tail.distance,
        "spectrum": values.float().numpy(),
    }


def _fast(matrix: Tensor, settings: Settings) -> Row:
    """The measures that take only a few products; those that need every singular value stay empty."""
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    values, norm, ranges = randomised(matrix, settings.r)
    edge = noise_bulk(norm, matrix.shape[0], matrix.shape[1]).edge
    row: Row = {"frobenius_norm": norm, "singular_values": values.tolist(), "mp_edge": edge}
    for name, found in ranges.items():
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return row | {"spectrum": values.float().cpu().numpy(), "method": "fast"}


def null_row(row: Row, rows: int, columns: int, settings: Settings) -> Row:
    """The measures of a Gaussian matrix of the same shape and Frobenius norm: the mean of a few draws."""
    mean = _null(max(rows, columns), min(rows, columns), settings)
    scale = row["frobenius_norm"] / (rows * columns) ** 0.5
    known = {f"null_{name}": mean[name] for name in NULLED if row.get(name) is not None}
    return known | {"null_spectral_norm": scale * mean["spectral_norm"]}


@lru_cache(maxsize=256)
def _null(rows: int, columns: int, settings: Settings) -> Row:
    drawn = [described(gaussian_singular_values(rows, columns, draw), rows, columns, settings) for draw in range(DRAWS)]
    return {name: _mean([row[name] for row in drawn]) for name in (*NULLED, "spectral_norm")}


def _mean(values: list[int | float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
