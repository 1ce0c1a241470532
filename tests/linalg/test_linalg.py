import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from equipoise.errors import InputError
from equipoise.linalg import (
    deflated_residual,
    krylov_triplets,
    leading_triplets,
    principal_angles,
    probable_norm_bound,
    require_matrix,
    singular_values,
)

DTYPES = st.sampled_from([torch.float32, torch.float64])


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthonormal(rows, columns, seed=0):
    return torch.linalg.qr(random(rows, columns, seed=seed)).Q


@st.composite
def matrices(draw, scales=(1e-6, 1.0, 1e6)):
    """Random initialisations, planted rank one, repeated and decaying values, zero, single rows and columns."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    seed, k = draw(st.integers(0, 2**32)), min(rows, columns)
    kind = draw(st.sampled_from(["random", "rank one", "repeated", "decaying", "zero", "row", "column"]))
    left, right = orthonormal(rows, k, seed), orthonormal(columns, k, seed + 1)
    match kind:
        case "random":
            matrix = random(rows, columns, seed=seed) / math.sqrt(columns)
        case "rank one":
            noise = draw(st.sampled_from([0.0, 1e-12, 1e-3, 0.3]))
            matrix = torch.outer(left[:, 0], right[:, 0]) + noise * random(rows, columns, seed=seed) / math.sqrt(
                columns
            )
        case "repeated":
            values = torch.where(torch.arange(k) < draw(st.integers(1, 40)), 1.0, 0.5).double()
            matrix = (left * values) @ right.T
        case "decaying":
            matrix = (left * torch.arange(1, k + 1) ** -draw(st.sampled_from([0.5, 1.0, 3.0]))) @ right.T
        case "zero":
            matrix = torch.zeros(rows, columns, dtype=torch.float64)
        case "row":
            matrix = random(1, columns, seed=seed)
        case _:
            matrix = random(rows, 1, seed=seed)
    return (matrix * draw(st.sampled_from(scales))).to(draw(DTYPES))


def exact_values(matrix):
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)


EVERY_SCALE = (1e-30, 1e-12, 1e-6, 1.0, 1e6, 1e12, 1e30)  # fourth powers of some are beyond float32


@given(matrix=matrices(EVERY_SCALE), r=st.integers(1, 4), sweeps=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=300)
def test_the_bound_is_never_below_the_true_error(matrix, r, sweeps, seed):
    found = krylov_triplets(matrix, r, sweeps=sweeps, generator=torch.Generator().manual_seed(seed))
    values, exact = np.array(found.values), exact_values(matrix)
    assert found.upper >= exact[0]
    assert found.error_bound >= abs(exact[0] - values[0])
    rounding, norm = 4 * math.sqrt(sum(matrix.shape)) * torch.finfo(matrix.dtype).eps, np.linalg.norm(exact)
    lost = norm * math.sqrt(4 * math.sqrt(sum(matrix.shape)) * np.finfo(float).eps)  # of what is squared in float64
    assert (values <= np.hypot(exact[: len(values)] + rounding * norm, lost)).all()
    for value, residual in zip(values, found.residuals, strict=True):
        nearest = np.append(exact, 0)[abs(np.append(exact, 0) - value).argmin()]
        assert value <= np.hypot(nearest + residual + rounding * norm, lost)
        assert np.hypot(value, lost) >= nearest - residual - rounding * norm


@given(matrix=matrices(EVERY_SCALE), steps=st.integers(1, 14), seed=st.integers(0, 2**32))
@settings(max_examples=300)
def test_the_probable_bound_is_above_the_norm(matrix, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    assert float(probable_norm_bound(matrix, steps=steps, generator=generator)) >= exact_values(matrix)[0]


def test_the_probable_bound_fails_as_rarely_as_stated():
    """One step on a rank-one matrix is the worst case: the bound fails exactly when the start misses `v_1`."""
    matrix = torch.zeros(60, 60, dtype=torch.float64)
    matrix[0, 0] = 1
    generator, trials = torch.Generator().manual_seed(0), 600
    bounds = [float(probable_norm_bound(matrix, steps=1, failure=0.2, generator=generator)) for _ in range(trials)]
    failed = sum(bound < 1 for bound in bounds) / trials
    assert failed == pytest.approx(0.2, abs=3 * math.sqrt(0.2 * 0.8 / trials))


def test_flat_spectra_are_bounded_closely_by_the_probable_bound_only():
    matrix = random(200, 200)
    exact = exact_values(matrix)[0]
    assert krylov_triplets(matrix, 4).upper > 3 * exact
    assert float(probable_norm_bound(matrix, steps=20)) < 1.2 * exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_a_gap_the_iteration_is_exact_to_rounding(dtype):
    values = torch.tensor([10.0, 5.0, 2.0, *torch.logspace(-2, -4, 37).tolist()], dtype=torch.float64)
    matrix = ((orthonormal(60, 40) * values) @ orthonormal(50, 40, seed=1).T).to(dtype)
    found, eps = krylov_triplets(matrix, 3), torch.finfo(dtype).eps
    assert found.values == pytest.approx([10, 5, 2], rel=20 * eps)
    assert found.error_bound < 1000 * eps
    exact = leading_triplets(matrix.double(), 3)
    overlap = (found.triplets.right.double().T @ exact.right).abs()
    torch.testing.assert_close(overlap, torch.eye(3).double(), atol=100 * eps, rtol=0)
    torch.testing.assert_close(matrix @ found.triplets.right, found.triplets.left * found.triplets.values)


@pytest.mark.parametrize("exponent", [-100, -40, 40, 100])
def test_a_power_of_two_changes_nothing_but_the_scale(exponent):
    matrix, scale = random(80, 60, dtype=torch.float32), 2.0**exponent
    matrix[:40] *= 3
    ours, theirs = krylov_triplets(matrix * scale, 3), krylov_triplets(matrix, 3)
    assert [value / scale for value in ours.values] == pytest.approx(theirs.values)
    torch.testing.assert_close(ours.triplets.right.T @ theirs.triplets.right, torch.eye(3), atol=1e-3, rtol=0)
    assert (ours.upper / scale, ours.rank_one_residual) == pytest.approx((theirs.upper, theirs.rank_one_residual))
    torch.testing.assert_close(probable_norm_bound(matrix * scale) / scale, probable_norm_bound(matrix))


def test_large_flat_and_planted_matrices_are_bounded_in_float32():
    flat = orthonormal(1200, 1000)
    for matrix in (flat, flat + 30 * torch.outer(flat[:, 0], flat[0])):
        matrix = matrix.float()
        assert krylov_triplets(matrix, 2, sweeps=2).upper >= exact_values(matrix)[0]


def test_the_probable_bound_of_a_batch_is_one_of_each_matrix():
    batch = random(3, 12, 9)
    assert (probable_norm_bound(batch) >= torch.linalg.svdvals(batch)[:, 0]).all()


@given(matrix=matrices())
def test_batched_singular_values_are_those_of_each(matrix):
    found = singular_values([matrix, torch.eye(2), 2 * matrix])
    rounding = 40 * _eps(matrix) * float(matrix.double().norm())
    np.testing.assert_allclose(found[0].double().numpy(), exact_values(matrix), atol=rounding)
    np.testing.assert_allclose(found[2].double().numpy(), 2 * exact_values(matrix), atol=2 * rounding)
    assert found[1].tolist() == [1, 1]


@given(matrix=matrices(), r=st.integers(1, 50))
def test_leading_triplets_are_the_matrix_up_to_its_tail(matrix, r):
    top, norm = leading_triplets(matrix, r), float(matrix.double().norm())
    exact = exact_values(matrix)
    for vectors in (top.left, top.right):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(min(r, len(exact)), dtype=matrix.dtype))
    np.testing.assert_allclose(top.values.double().numpy(), exact[:r], rtol=0, atol=40 * _eps(matrix) * norm)
    missing = float((matrix - top.left @ torch.diag(top.values) @ top.right.T).double().norm())
    assert missing == pytest.approx(np.linalg.norm(exact[r:]), abs=40 * _eps(matrix) * norm)


@given(matrix=matrices(), r=st.integers(1, 3))
def test_the_deflated_residual_is_the_tail(matrix, r):
    top = leading_triplets(matrix, r)
    found = float(deflated_residual(matrix, top.left, top.values, top.right))
    norm = float(matrix.double().norm())
    assert found == pytest.approx((exact_values(matrix)[r:] ** 2).sum(), rel=1e-4, abs=(20 * _eps(matrix) * norm) ** 2)


@given(matrix=matrices(), seed=st.integers(0, 99))
def test_deflating_anything_else_leaves_more(matrix, seed):
    u, v = (
        orthonormal(matrix.shape[0], 1, seed).to(matrix.dtype),
        orthonormal(matrix.shape[1], 1, seed).to(matrix.dtype),
    )
    value = (u.T @ matrix @ v).flatten()
    tail, norm = (exact_values(matrix)[1:] ** 2).sum(), float(matrix.double().norm())
    rounding = (20 * _eps(matrix) * norm) ** 2
    assert float(deflated_residual(matrix, u, value, v)) >= tail * (1 - 20 * _eps(matrix)) - rounding


@given(
    p=st.integers(1, 5), q=st.integers(1, 5), seed=st.integers(0, 999), tilt=st.sampled_from([1e-14, 1e-8, 1e-2, 1.0])
)
def test_principal_angles_are_scipys(p, q, seed, tilt):
    assume(p >= q)
    first = orthonormal(12, p, seed)
    second = torch.linalg.qr(first[:, :q] + tilt * random(12, q, seed=seed + 1)).Q
    found = principal_angles(first, second)
    expected = np.sort(subspace_angles(first.numpy(), second.numpy()))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=2e-15)
    np.testing.assert_allclose(principal_angles(second, first).numpy(), expected, rtol=1e-6, atol=2e-15)


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match=r"a weight of finite numbers; found 2 of 2 entries"):
        require_matrix(torch.tensor([[float("nan"), float("inf")]]), "weight")
    with pytest.raises(InputError, match=r"one row and one column; found shape \(3,\)"):
        require_matrix(torch.ones(3))
    with pytest.raises(InputError, match=r"one row and one column; found shape \(1, 0\)"):
        leading_triplets(torch.ones(1, 0))
    with pytest.raises(InputError, match=r"finite numbers; found 1 of 4 entries"):
        krylov_triplets(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(InputError, match=r"norm the dtype can hold; found entries up to 3e\+38 in torch\.float32"):
        krylov_triplets(torch.full((2, 2), 3e38))
    with pytest.raises(InputError, match=r"one row and one column; found shape \(0, 3\)"):
        probable_norm_bound(torch.ones(0, 3))
    with pytest.raises(InputError, match=r"float32 or float64; found torch\.float16"):
        krylov_triplets(torch.ones(2, 2, dtype=torch.float16))
    with pytest.raises(InputError, match="between 0 and 1; found steps=12, failure=0"):
        probable_norm_bound(torch.ones(2, 2), failure=0.0)
    with pytest.raises(InputError, match="at least one singular triplet; found r=0"):
        leading_triplets(torch.ones(2, 2), r=0)
    with pytest.raises(InputError, match="at least one singular triplet; found r=0"):
        krylov_triplets(torch.ones(2, 2), r=0)


def _eps(matrix):
    return torch.finfo(matrix.dtype).eps
