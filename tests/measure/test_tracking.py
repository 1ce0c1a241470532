"""Triplets that are followed: right where the spectrum decays, and within the stated bound everywhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.measure.tracking import COLD, Piece, cold, follow, sums_of_squares


def track(matrices, r=4, sweeps=COLD, bias=None, pieces=None, reduce=list):
    """The figures after some sweeps over matrices that stand still, or move as `matrices` does."""
    generator, blocks, seen = torch.Generator().manual_seed(0), None, []
    for matrix in [matrices] * sweeps if isinstance(matrices, torch.Tensor) else matrices:
        now = [Piece.whole(matrix, bias)] if pieces is None else pieces
        if blocks is None:
            blocks = [cold(piece, r, generator) for piece in now]
        blocks, seen = follow(now, blocks, r, generator, reduce)
    return seen[0]


def planted(sigma, rows, columns, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(sigma), generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(sigma), generator=generator, dtype=torch.float64)).Q
    return (left * sigma.double() @ right.T).to(dtype)


def test_a_trained_like_spectrum_is_right_to_one_part_in_ten_thousand_at_every_look():
    """A power law under a few outliers, moving by a thousandth a look, as between looks of a training."""
    sigma = torch.cat([torch.tensor([5.0, 3.0, 2.5]), torch.arange(1, 190).double() ** -0.5])
    start, drift = planted(sigma, 256, 192), planted(sigma, 256, 192, seed=1)
    path = [start] * COLD + [start + 1e-3 * look * drift for look in range(1, 12)]
    for looks in range(COLD, len(path)):
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
    """By subtraction, 1e-9 of the squared norm would be noise in float32 (THEORY §6)."""
    small = 3e-5
    matrix = planted(torch.tensor([1.0, small]), 60, 40, dtype=dtype)
    assert track(matrix).rank_one_residual == pytest.approx(small**2, rel=1e-2)


def test_a_bias_is_one_more_column():
    weight, bias = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    whole = torch.cat([weight, bias[:, None]], dim=1)
    found, expected = track(weight, bias=bias, sweeps=12), torch.linalg.svd(whole)
    torch.testing.assert_close(torch.tensor(found.values), expected.S[:4].to(torch.get_default_dtype()))
    assert abs(float(found.triplets.left[:, 0] @ expected.U[:, 0])) == pytest.approx(1, abs=1e-9)
    assert abs(float(found.triplets.right[:, 0] @ expected.Vh[0])) == pytest.approx(1, abs=1e-9)


def test_rows_in_shards_give_the_same_figures():
    matrix = torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    halves = [Piece(matrix[:3], None, 0, 10), Piece(matrix[3:], None, 3, 10)]
    block, whole = cold(Piece.whole(matrix), 1, torch.Generator().manual_seed(0)), Piece.whole(matrix)
    image = torch.stack([half.push(block) for half in halves]).sum(0)
    torch.testing.assert_close(image, whole.push(block))
    torch.testing.assert_close(torch.stack([half.pull(half.push(block)) for half in halves]).sum(0), whole.pull(image))
    assert float(sums_of_squares(halves).sum()) == pytest.approx(float(matrix.square().sum()))


def test_a_matrix_with_nan_leaves_the_others_alone():
    good = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bad = good.clone()
    bad[2, 3] = float("nan")
    alone, generator = track(good), torch.Generator().manual_seed(0)
    blocks = [cold(Piece.whole(good), 4, generator) for _ in range(2)]
    for _ in range(COLD):
        blocks, (broken, sound) = follow([Piece.whole(bad), Piece.whole(good)], blocks, 4, generator)
    assert broken.frobenius_norm != broken.frobenius_norm
    assert broken.values[0] != broken.values[0]
    assert sound.values[0] == pytest.approx(alone.values[0], rel=1e-9)
