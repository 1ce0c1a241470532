import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from equipoise.errors import InputError
from equipoise.measure.spectrum import circular_spectrum, spectra, spectrum

MEASURES = ["frobenius_norm", "rank_one_residual", "stable_rank", "effective_rank", "participation_ratio"]


def random_matrix(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def planted(size, values, dtype):
    """A size × size matrix with the given leading singular values and zeros below, rounded once to `dtype`."""
    u, v = (torch.linalg.qr(random_matrix(size, len(values), seed=seed)).Q for seed in (1, 2))
    return ((u * torch.tensor(values, dtype=torch.float64)) @ v.T).to(dtype)


@given(rows=st.integers(1, 9), columns=st.integers(2, 9), seed=st.integers(0, 2**32))
def test_every_measure_is_its_formula(rows, columns, seed):
    matrix = random_matrix(rows, columns, seed=seed)
    found, expected = spectrum(matrix), reference.spectrum_measures(matrix)
    for name in MEASURES:
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(
    ("dtype", "tail"), [(torch.float64, 1e-8), (torch.float64, 1e-12), (torch.float32, 1e-4), (torch.float32, 1e-5)]
)
def test_the_residual_keeps_its_digits_where_subtraction_has_none(dtype, tail):
    found = spectrum(planted(64, [1.0, tail], dtype)).rank_one_residual
    rounding = 64 * torch.finfo(dtype).eps ** 2
    assert found == pytest.approx(tail**2, rel=0.02, abs=rounding)
    assert rounding < 0.5 * tail**2


def test_residuals_of_higher_rank():
    found = spectrum(planted(12, [4.0, 2.0, 1.0], torch.float64))
    assert found.rank_residual(0) == 1
    assert found.rank_residual(1) == pytest.approx(5 / 21)
    assert found.rank_residual(2) == pytest.approx(1 / 21)
    assert found.rank_residual(3) < 1e-28


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_matrix_has_rank_zero_and_residual_zero(dtype):
    found = spectrum(torch.zeros(3, 5, dtype=dtype))
    assert [getattr(found, name) for name in MEASURES] == [0, 0, 0, 0, 0]
    assert found.numerical_rank() == 0
    assert found.rank_residual(0) == 0


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
def test_a_vector_has_rank_one(shape):
    found = spectrum(random_matrix(*shape), r=4)
    assert found.rank_one_residual == 0
    assert found.stable_rank == found.effective_rank == found.participation_ratio == found.numerical_rank() == 1
    assert found.singular_values.shape == (1,)


@pytest.mark.parametrize("scale", [1e-160, 1e160])
def test_no_measure_overflows_or_underflows(scale):
    matrix = random_matrix(4, 6)
    small, plain = spectrum(scale * matrix), spectrum(matrix)
    for name in MEASURES[1:]:
        assert getattr(small, name) == pytest.approx(getattr(plain, name), rel=1e-12)
    assert small.frobenius_norm == pytest.approx(scale * plain.frobenius_norm, rel=1e-12)


def test_numerical_rank_at_a_tolerance():
    found = spectrum(planted(20, [1.0, 1e-3, 1e-6], torch.float64))
    assert [found.numerical_rank(t) for t in (1e-2, 1e-4, 1e-9)] == [1, 2, 3]
    assert found.numerical_rank() == 3


def test_a_kernel_is_its_out_by_in_times_taps_matrix():
    kernel = random_matrix(4, 3, 2, 2)
    assert torch.equal(spectrum(kernel).values, spectrum(kernel.reshape(4, 12)).values)


def test_batched_by_shape_equals_one_by_one():
    matrices = {"a": random_matrix(4, 3), "b": random_matrix(5, 2), "c": random_matrix(4, 3, seed=1)}
    found = spectra(matrices, r=2)
    assert list(found) == ["a", "b", "c"]
    for name, matrix in matrices.items():
        torch.testing.assert_close(found[name].values, spectrum(matrix).values)


@pytest.mark.parametrize(("shape", "size"), [((2, 3, 3, 3), (4, 5)), ((3, 1, 1, 2), (2, 2)), ((2, 2, 2, 2), (3, 3))])
def test_the_circular_operator_has_the_values_of_its_dense_matrix(shape, size):
    kernel = random_matrix(*shape)
    dense = reference.circular_convolution_matrix(kernel, size)
    found = circular_spectrum(kernel, size)
    assert (found.rows, found.columns) == dense.shape
    torch.testing.assert_close(found.values, torch.linalg.svdvals(dense))


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match="finite numbers; found 1 of 4 entries NaN or infinite"):
        spectrum(torch.tensor([[1.0, 2.0], [float("inf"), 0.0]]))
    with pytest.raises(InputError, match=r"at least one row and one column; found shape \(0, 3\)"):
        spectrum(torch.zeros(0, 3))
    with pytest.raises(InputError, match=r"float32 or float64; found torch\.bfloat16"):
        spectrum(torch.zeros(2, 3, dtype=torch.bfloat16))
    with pytest.raises(InputError, match="at least one singular value; found r=0"):
        spectrum(torch.eye(2), r=0)
    with pytest.raises(InputError, match="images of at least 3 × 3"):
        circular_spectrum(torch.ones(1, 1, 3, 3), size=(2, 5))
