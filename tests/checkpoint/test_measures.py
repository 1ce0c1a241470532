"""Every figure of a row beside its slow twin, its bound or its definition."""

import math
from typing import Any

import numpy as np
import powerlaw
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.checkpoint import analysis
from equipoise.checkpoint.spectra import power_law
from equipoise.checkpoint.spectra.gaussian_null import gaussian_singular_values, random_cosine
from equipoise.checkpoint.spectra.gram import accuracy, gram_singular_values, rank_one_residual
from equipoise.checkpoint.spectra.marchenko_pastur import noise_bulk
from equipoise.checkpoint.spectra.matrix_stream import MatrixStream
from equipoise.checkpoint.spectra.measures import Settings, null_row
from equipoise.checkpoint.spectra.measures import measure as measure_streamed
from equipoise.checkpoint.spectra.randomised import randomised
from reference import spectrum_measures


def measure(matrix, settings):
    return measure_streamed(MatrixStream.of(matrix), settings)


SIDES = st.integers(1, 40)
EXACT = Settings(heavy_tail=False)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(values, rows=60, columns=40, seed=0):
    left = torch.linalg.qr(random(rows, len(values), seed=seed).double()).Q
    right = torch.linalg.qr(random(columns, len(values), seed=seed + 1).double()).Q
    return left * torch.tensor(values, dtype=torch.float64) @ right.T


@settings(max_examples=40)
@given(SIDES, SIDES, st.integers(0, 5), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_the_exact_measures_are_those_of_the_printed_formulas(rows, columns, seed, dtype):
    matrix = random(rows, columns, seed=seed).to(dtype)
    row = measure(matrix, EXACT)
    for name, value in spectrum_measures(matrix).items():
        assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@settings(max_examples=30)
@given(st.integers(1, 700), SIDES, st.booleans(), st.integers(0, 9))
def test_gram_values_are_within_the_stated_accuracy(longer, rank, wide, seed):
    matrix = (random(longer, rank, seed=seed) @ random(rank, 30, seed=seed + 1)) * 10.0 ** (seed - 5)
    matrix = matrix.T if wide else matrix
    values, exact = gram_singular_values(MatrixStream.of(matrix)), torch.linalg.svdvals(matrix.double())
    assert float((values - exact).abs().max()) <= accuracy(MatrixStream.of(matrix)) * float(exact[0])
    assert float(values[0]) == pytest.approx(float(exact[0]), rel=1e-12)


@pytest.mark.parametrize("chunk", [64, 1 << 18])
def test_chunks_change_nothing(chunk, monkeypatch):
    monkeypatch.setattr("equipoise.checkpoint.spectra.matrix_stream.CHUNK", chunk)
    monkeypatch.setattr("equipoise.checkpoint.spectra.matrix_stream._LINES", 3)
    for matrix in (random(101, 17), random(17, 101), random(101, 17).T, random(40, 40), random(40, 40).T):
        assert torch.allclose(
            gram_singular_values(MatrixStream.of(matrix)), torch.linalg.svdvals(matrix.double()), atol=1e-12
        )


@pytest.mark.parametrize("second", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_residuals_far_below_the_rounding_of_the_gram_matrix_are_right(second, shape, monkeypatch):
    monkeypatch.setattr("equipoise.checkpoint.spectra.matrix_stream.CHUNK", 100)
    matrix = planted([3.0, 3.0 * second, 2.0 * second], *shape)  # float64: exact to 1e-16, as no float32 matrix can be
    exact = torch.linalg.svdvals(matrix)[1:].square().sum() / matrix.square().sum()
    assert rank_one_residual(MatrixStream.of(matrix), gram_singular_values(MatrixStream.of(matrix))) == pytest.approx(
        float(exact), rel=1e-6
    )


def test_float64_overflows_and_underflows_nothing():
    for scale in (1e200, 1e-200):
        row = measure(random(30, 20).double() * scale, EXACT)
        assert row["method"] == "svd"
        assert row["stable_rank"] == pytest.approx(measure(random(30, 20), EXACT)["stable_rank"], rel=1e-6)
        assert row["frobenius_norm"] == pytest.approx(float(random(30, 20).norm()) * scale, rel=1e-6)


def test_squares_that_overflow_say_so():
    assert measure(random(3, 3).double() * 1e200, Settings("gram")) == "its squares overflow: pass method='svd'"


def test_zero_one_row_and_one_number():
    zero = measure(torch.zeros(5, 3), Settings())
    assert [zero[name] for name in ("stable_rank", "numerical_rank", "rank_one_residual", "outliers")] == [0, 0, 0, 0]
    assert zero["heavy_tail_exponent"] is None
    assert null_row(zero, 5, 3, Settings())["null_spectral_norm"] == 0
    single = measure(torch.tensor([[3.0, 4.0]]), Settings())
    assert (single["spectral_norm"], single["stable_rank"], single["outliers"]) == (5.0, 1.0, 0)
    assert measure(torch.tensor([[-2.0]]), Settings())["frobenius_norm"] == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nan_and_infinity_are_counted(dtype):
    matrix = random(30, 20).to(dtype)
    matrix[3, 4], matrix[5, 5] = math.nan, math.inf
    assert measure(matrix, EXACT) == "2 of 600 entries are NaN or infinite"


def test_the_tolerance_of_the_rank_is_stated_and_kept():
    matrix = planted([1.0, 0.1, 1e-3]).float()
    assert [measure(matrix, Settings(tolerance=t))["numerical_rank"] for t in (0.5, 0.05, 5e-4)] == [1, 2, 3]
    row = measure(matrix, EXACT)
    assert row["rank_tolerance"] == pytest.approx(60 * 2**-23)
    assert row["numerical_rank"] == 3


# --- the null ---


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (200, 8), (9, 1), (1, 1), (50, 50)])
def test_the_null_has_the_distribution_of_a_real_random_matrix(shape):
    rows, columns = shape
    drawn = torch.stack([gaussian_singular_values(rows, columns, draw) for draw in range(200)])
    built = torch.stack([torch.linalg.svdvals(random(rows, columns, seed=seed).double()) for seed in range(200)])
    for place in {0, min(shape) // 2, min(shape) - 1}:
        a, b = drawn[:, place], built[:, place]
        error = math.sqrt(float(a.var() + b.var()) / 200)
        assert abs(float(a.mean() - b.mean())) < 4 * error
        assert 0.7 < float(a.std() / b.std()) < 1.4


def test_a_random_matrix_measures_as_its_null():
    row = measure(random(300, 200), Settings())
    null = null_row(row, 300, 200, Settings())
    for name in ("stable_rank", "effective_rank", "participation_ratio", "spectral_norm", "rank_one_residual"):
        assert row[name] == pytest.approx(null[f"null_{name}"], rel=0.05), name
    assert row["outliers"] == null["null_outliers"] == 0


@pytest.mark.parametrize("dimension", [1, 2, 5, 60])
def test_the_cosine_of_random_directions(dimension):
    directions = torch.nn.functional.normalize(random(40_000, dimension), dim=1)
    mean = float(directions[:, 0].abs().mean())
    assert random_cosine(dimension) == pytest.approx(mean, rel=0.02)


# --- outliers and tails ---


def test_noise_has_an_outlier_once_in_a_hundred():
    counts = [
        noise_bulk(float(v.norm()), 120, 80).outliers(v)
        for v in (gaussian_singular_values(120, 80, d) for d in range(600))
    ]
    assert 0 <= sum(count > 0 for count in counts) <= 18  # 6 expected; 18 or more has probability 5e-5


def test_planted_directions_are_the_outliers():
    matrix = random(200, 100) + planted([60.0, 50.0, 45.0], 200, 100).float()
    row = measure(matrix, EXACT)
    assert row["outliers"] == 3
    assert row["mp_edge"] == pytest.approx(
        float(matrix.norm()) / math.sqrt(200 * 100) * (200**0.5 + 100**0.5), rel=1e-6
    )


@pytest.mark.parametrize("exponent", [1.8, 3.0, 6.0])
@pytest.mark.filterwarnings("ignore:Standard error for the MLE:DeprecationWarning")  # powerlaw reads its own old name
def test_the_tail_is_the_one_that_powerlaw_finds_by_itself(exponent):
    values = np.sort(np.sqrt(np.random.default_rng(3).pareto(exponent - 1, 120) + 1))[::-1].copy()
    eigenvalues = values**2
    found = power_law.heavy_tail(torch.from_numpy(values))
    own = powerlaw.Fit(eigenvalues, verbose=False, parameter_ranges={"alpha": (1, None)})
    assert found.start == pytest.approx(own.xmin, rel=1e-12)
    assert found.exponent == pytest.approx(own.power_law.alpha, rel=1e-9)
    assert found.distance == pytest.approx(own.power_law.D, rel=1e-9)


def test_too_few_eigenvalues_have_no_tail():
    assert power_law.heavy_tail(torch.arange(9, 0, -1.0)) is None
    assert power_law.heavy_tail(torch.ones(50)) is None


def test_without_powerlaw_the_column_is_empty(monkeypatch):
    monkeypatch.setattr(power_law, "available", lambda: False)
    assert measure(random(40, 30), Settings())["heavy_tail_exponent"] is None


# --- fast ---

SPECTRA = {
    "flat": lambda: random(80, 60),
    "orthogonal": lambda: torch.linalg.qr(random(60, 60)).Q,
    "planted": lambda: planted([9.0, 1.0, 0.5], 80, 60).float(),
    "rank one": lambda: torch.outer(random(80), random(60)),
    "decaying": lambda: planted([0.9**k for k in range(50)], 80, 60).float(),
    "wide": lambda: random(20, 300),
    "one row": lambda: random(1, 50),
}


def certain_of(matrix):
    names = ("spectral_norm", "stable_rank", "rank_one_residual")
    return {name: its for name, its in randomised(matrix, 3)[2].items() if name in names}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_certain_bounds_of_the_fast_way_hold(name, scale):
    matrix = SPECTRA[name]() * scale
    exact = spectrum_measures(matrix) | {"spectral_norm": float(torch.linalg.svdvals(matrix.double())[0])}
    for measured, found in certain_of(matrix).items():
        slack = 1e-12 * exact[measured] if measured != "rank_one_residual" else 1e-5 * max(exact[measured], 1e-2)
        assert found.low - slack <= exact[measured] <= found.high + slack, measured
        assert found.low <= found.value <= found.high


@pytest.mark.parametrize(
    ("name", "scale"), [("flat", 1.0), ("planted", 1e-6), ("decaying", 1e6), ("wide", 1.0), ("planted", 1.0)]
)
def test_estimated_bounds_of_the_fast_way_hold_here(name, scale):
    matrix = SPECTRA[name]() * scale
    exact = spectrum_measures(matrix) | {"nuclear_norm": float(torch.linalg.svdvals(matrix.double()).sum())}
    for measured, found in randomised(matrix, 3)[2].items():
        if measured in certain_of(matrix):
            continue
        bar = max(found.high - found.low, 0.02 * exact[measured])  # two bars: sixteen probes are few
        assert abs(found.value - exact[measured]) <= bar, measured


def test_small_matrices_are_exact_in_fast_mode_too():
    assert measure(random(80, 60), Settings("fast"))["method"] == "gram"
    fast = measure(random(1100, 1030).bfloat16(), Settings("fast"))
    exact = torch.linalg.svdvals(random(1100, 1030).bfloat16().double())
    assert fast["method"] == "fast"
    assert fast["spectral_norm_low"] <= float(exact[0]) <= fast["spectral_norm_high"]
    assert fast.get("numerical_rank") is None


def test_bad_settings_are_refused():
    wrongs: list[dict[str, Any]] = [{"method": "guess"}, {"r": 0}, {"tolerance": 1.0}, {"tolerance": -1e-3}]
    for wrong in wrongs:
        with pytest.raises(analysis.InputError, match="a method among"):
            analysis.analyze({"w": torch.ones(2, 2)}, **wrong)
