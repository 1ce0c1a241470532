"""Triplets that are followed: right where the spectrum decays, and within the stated bound everywhere."""

import statistics
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.linalg import sum_of_squares
from equipoise.linalg.blocks import MatrixBlock
from equipoise.linalg.krylov import COLD_SWEEPS, start, sweep


def squares(pieces):
    return [(0.0 if p.bias is None else float(sum_of_squares(p.bias)), float(sum_of_squares(p.weight))) for p in pieces]


def track(matrices, r=4, sweeps=COLD_SWEEPS, bias=None):
    """The figures after some sweeps over matrices that stand still, or move as `matrices` does."""
    generator, groups, seen = torch.Generator().manual_seed(0), None, []
    for matrix in [matrices] * sweeps if isinstance(matrices, torch.Tensor) else matrices:
        now = [MatrixBlock.whole(matrix, bias)]
        if groups is None:
            groups = start(now, r, generator)
        seen = sweep(now, squares(now), groups, r)
    return seen[0][0] if bias is None else seen[0]


def planted(sigma, rows, columns, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(sigma), generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(sigma), generator=generator, dtype=torch.float64)).Q
    return (left * sigma.double() @ right.T).to(dtype)


def test_a_trained_like_spectrum_is_right_to_one_part_in_ten_thousand_at_every_look():
    """A power law under a few outliers, moving by a thousandth a look, as between looks of a training."""
    sigma = torch.cat([torch.tensor([5.0, 3.0, 2.5]), torch.arange(1, 190).double() ** -0.5])
    first, drift = planted(sigma, 256, 192), planted(sigma, 256, 192, seed=1)
    path = [first] * COLD_SWEEPS + [first + 1e-3 * look * drift for look in range(1, 12)]
    for looks in range(COLD_SWEEPS, len(path)):
        exact = torch.linalg.svdvals(path[looks].double())
        found = track(path[: looks + 1])
        assert found.values[0] == pytest.approx(float(exact[0]), rel=1e-4)
        assert found.values[3] == pytest.approx(float(exact[3]), rel=1e-3)
    assert found.residuals[0] < 1e-3 * found.values[0]


def test_a_flat_spectrum_converges_over_the_looks_and_says_so_until_then():
    matrix = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    exact = float(torch.linalg.svdvals(matrix.double())[0])
    errors = {sweeps: abs(track(matrix, sweeps=sweeps).values[0] / exact - 1) for sweeps in (2, 8, 30)}
    assert errors[2] > 1e-2 > errors[8] > errors[30]
    assert errors[30] < 1e-5
    assert track(matrix, sweeps=2).residuals[0] > 0.02 * exact


def test_a_warm_start_follows_a_moving_matrix_that_one_cold_sweep_does_not():
    generator = torch.Generator().manual_seed(0)
    noise, drift = (torch.randn(120, 80, generator=generator, dtype=torch.float64) for _ in range(2))
    first = noise * torch.arange(1, 81).double() ** -0.5
    path = [first + 1e-3 * moved * drift for moved in range(1, 16)]
    exact = torch.linalg.svdvals(path[-1])[:2]
    assert track(path, r=2).values == pytest.approx(exact.tolist(), rel=1e-4)
    assert track(path[-1:], r=2).values[0] < 0.9 * float(exact[0])


def test_a_direction_that_all_others_are_orthogonal_to_returns():
    matrix = torch.diag(torch.tensor([1.0] * 39 + [100.0], dtype=torch.float64))
    rows, generator = [MatrixBlock.whole(matrix)], torch.Generator().manual_seed(0)
    groups = start(rows, 1, generator)
    groups[0].slots[0].directions[1:] = torch.eye(40, dtype=torch.float64)[: len(groups[0].slots[0].directions) - 1]
    for _ in range(4):
        ((found, _),) = sweep(rows, squares(rows), groups, 1)
    assert found.values[0] == pytest.approx(100)


@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    kind=st.sampled_from(["random", "rank one", "repeated", "zero", "decaying", "tiny", "huge"]),
    double=st.booleans(),
    sweeps=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_the_stated_bound_is_never_below_the_true_error(rows, columns, kind, double, sweeps, seed):
    dtype, size = torch.float64 if double else torch.float32, min(rows, columns)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    spectra = {
        "rank one": torch.eye(size)[0],
        "repeated": torch.ones(size),
        "decaying": 2.0 ** -torch.arange(size),
        "zero": torch.zeros(size),
    }
    scale = {"tiny": 1e-12, "huge": 1e12}.get(kind, 1.0)
    matrix = planted(spectra[kind], rows, columns, seed, dtype) if kind in spectra else (scale * noise).to(dtype)
    exact = torch.linalg.svdvals(matrix.double())
    found = track(matrix, r=2, sweeps=sweeps)
    assert abs(found.values[0] - float(exact[0])) <= found.error_bound
    assert found.upper >= float(exact[0])
    slack = 20 * torch.finfo(dtype).eps * float(exact[0])  # of the product W v itself
    nearest = (exact - found.values[0]).abs().min()
    assert min(float(nearest), found.values[0]) <= found.residuals[0] + slack  # zero is one, where rows ≠ columns
    tail = float(exact[1:].square().sum())
    assert found.tail >= tail * (1 - 1e-3) - (slack * float(exact[0])) ** 1 * 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tail_far_below_rounding_of_the_norm_is_seen(dtype):
    """By subtraction, 1e-9 of the squared norm would be noise in float32 (docs/theory.md §6)."""
    small = 3e-5
    matrix = planted(torch.tensor([1.0, small]), 60, 40, dtype=dtype)
    assert track(matrix).rank_one_residual == pytest.approx(small**2, rel=1e-2)


@pytest.mark.parametrize("columns", [5, 60])
def test_a_bias_is_one_more_column_beside_the_matrix_without_it(columns):
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(70, *shape, dtype=torch.float64, generator=generator) for shape in ((columns,), ()))
    bias *= 3  # enough to turn the top vectors
    whole = torch.cat([weight, bias[:, None]], dim=1)
    own, along = track(weight, bias=bias, sweeps=40)
    for found, matrix, count in ((own, weight, 4), (along, whole, 1)):
        expected = torch.linalg.svd(matrix)
        torch.testing.assert_close(torch.tensor(found.values), expected.S[:count].to(torch.get_default_dtype()))
        assert abs(float(found.triplets.left[:, 0] @ expected.U[:, 0])) == pytest.approx(1, abs=1e-9)
        assert abs(float(found.triplets.right[:, 0] @ expected.Vh[0])) == pytest.approx(1, abs=1e-9)
        assert found.frobenius_norm == pytest.approx(float(matrix.norm()))
        assert found.tail == pytest.approx(float(expected.S[1:].square().sum()))


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    bias=st.sampled_from(["none", "random", "large", "along"]),
    sweeps=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_bounds_with_a_bias_are_never_below_the_true_error(rows, columns, bias, sweeps, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    vector = torch.randn(rows, generator=generator)
    added = {"none": 0 * vector, "random": vector, "large": 1e4 * vector, "along": 5 * weight[:, 0]}[bias]
    whole = torch.cat([weight, added[:, None]], dim=1)
    for found, matrix in zip(track(weight, r=2, sweeps=sweeps, bias=added), (weight, whole), strict=True):
        exact = torch.linalg.svdvals(matrix.double())
        slack = 20 * torch.finfo(torch.float32).eps * float(exact[0])
        assert found.upper >= float(exact[0])
        assert found.values[0] <= float(exact[0]) + slack
        nearest = (exact - found.values[0]).abs().min()
        assert min(float(nearest), found.values[0]) <= found.residuals[0] + slack
        assert found.tail >= float(exact[1:].square().sum()) - slack * float(exact[0])


@pytest.mark.parametrize("size", [0.0, 0.03, 1.2])
def test_what_goes_along_converges_as_fast_as_by_itself(size):
    """Flat spectra: `W` with a bias, and `[W b]` as a matrix followed by 13 directions of its own."""
    apart, along = [], []
    for seed in range(1, 30):
        generator = torch.Generator().manual_seed(seed)
        weight, bias = torch.randn(300, 200, generator=generator), size * torch.randn(300, generator=generator)
        whole = torch.cat([weight, bias[:, None]], dim=1)
        exact = float(torch.linalg.svdvals(whole.double())[0])
        apart.append(abs(track(whole, r=3).values[0] / exact - 1))
        along.append(abs(track(weight, bias=bias)[1].values[0] / exact - 1))
    assert statistics.median(along) < 1.5 * statistics.median(apart) < 3e-3
    assert max(along) < 2 * max(apart)


ALL, NONE = slice(None), slice(0, 0)
SPLITS = {  # rows, columns, and entries of the bias that each process has
    "rows": [(slice(0, 13), ALL, slice(0, 13)), (slice(13, 40), ALL, slice(13, 40))],
    "columns": [(ALL, slice(0, 45), slice(0, 20)), (ALL, slice(45, 60), slice(20, 40))],
    "both": [
        (slice(0, 25), slice(0, 20), slice(0, 25)),
        (slice(25, 40), slice(0, 20), NONE),
        (slice(0, 25), slice(20, 60), slice(25, 40)),
        (slice(25, 40), slice(20, 60), NONE),
    ],
    "one has none": [(ALL, ALL, ALL), (slice(40, 40), ALL, slice(40, 40))],
    "rows of a turned one": [(slice(0, 2), ALL, NONE), (slice(2, 5), ALL, NONE)],
    "columns of a turned one": [(ALL, slice(0, 45), NONE), (ALL, slice(45, 60), NONE)],
}


@pytest.mark.parametrize("split", SPLITS)
def test_matrices_in_shards_give_the_same_figures(split):
    generator, turned = torch.Generator().manual_seed(0), "turned" in split
    matrix = torch.randn(5 if turned else 40, 60, generator=generator).double()
    bias = None if turned else torch.randn(40, generator=generator).double()
    blocks = [
        MatrixBlock(
            matrix[rows, columns],
            None if bias is None else bias[its],
            (len(matrix), 60),
            (rows.start or 0, columns.start or 0),
            its.start or 0,
            across=split in ("columns", "both", "columns of a turned one"),
        )
        for rows, columns, its in SPLITS[split]
    ]
    whole = [MatrixBlock.whole(matrix, bias)]
    known = squares(whole)
    for found, expected in zip(together(blocks, known)[0], alone(whole, known)[0], strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found.triplets.values, expected.triplets.values)
            torch.testing.assert_close(found.triplets.right, expected.triplets.right)
            assert found.upper == pytest.approx(expected.upper)
            assert found.residuals == pytest.approx(expected.residuals)
            assert found.tail == pytest.approx(expected.tail)


def alone(whole, known):
    groups = start(whole, 2, torch.Generator().manual_seed(0))
    for _ in range(2):
        found = sweep(whole, known, groups, 2)
    return found


def together(blocks, known):
    """Two sweeps of processes that have a block each, as threads that meet at every sum; the last one's findings."""
    meeting, sent = threading.Barrier(len(blocks)), {}

    def reduce_of(rank):
        def reduce(parts):
            sent[rank] = [part.clone() for part in parts]
            meeting.wait(30)
            total = [sum(each) for each in zip(*(sent[other] for other in range(len(blocks))), strict=True)]
            meeting.wait(30)
            return total

        return reduce

    def work(rank):
        groups = start([blocks[rank]], 2, torch.Generator().manual_seed(0))
        for _ in range(2):
            found = sweep([blocks[rank]], known, groups, 2, reduce_of(rank))
        return found

    with ThreadPoolExecutor(len(blocks)) as pool:
        return list(pool.map(work, range(len(blocks))))[-1]


def test_a_matrix_with_nan_leaves_the_others_alone():
    good = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bad = good.clone()
    bad[2, 3] = float("nan")
    alone, generator = track(good), torch.Generator().manual_seed(0)
    pieces = [MatrixBlock.whole(bad), MatrixBlock.whole(good)]
    groups = start(pieces, 4, generator)
    for _ in range(COLD_SWEEPS):
        (broken, _), (sound, _) = sweep(pieces, squares(pieces), groups, 4)
    assert broken.frobenius_norm != broken.frobenius_norm
    assert broken.values[0] != broken.values[0]
    assert sound.values[0] == pytest.approx(alone.values[0], rel=1e-9)


def test_long_sums_of_squares_keep_their_digits_in_float32():
    assert float(sum_of_squares(torch.full((3, 1 << 15), 0.1))) == pytest.approx(3 * (1 << 15) * 0.1**2, rel=1e-5)
