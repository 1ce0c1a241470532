import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from equipoise.integrate.implicit.dual_problem import DualStart, entropic_minimum, extrapolated_average
from equipoise.integrate.implicit.operators import DenseFactor, DenseOperator, LowRankOperator, heavy_rows


def problem(size, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(size, size + 10, generator=generator, dtype=torch.float64) + 0.5
    linear = torch.rand(size, generator=generator, dtype=torch.float64) * min(scale, 50.0)
    return scale * jacobian @ jacobian.T / size, linear, torch.full((size,), 1 / size, dtype=torch.float64)


@given(size=st.integers(1, 30), seed=st.integers(0, 99), exponent=st.integers(-3, 13))
def test_solution_is_the_fixed_point_of_the_softmax(size, seed, exponent):
    quadratic, linear, uniform = problem(size, seed, 10.0**exponent)
    found = entropic_minimum(DenseOperator(quadratic), linear, DualStart(uniform))
    assert found.converged
    expected = torch.softmax(-(linear + quadratic @ found.weights), 0)
    rounding = 100 * 2e-16 * float(quadratic.abs().max())
    assert float((found.weights - expected).abs().max()) <= 1e-7 + rounding


def test_warm_start_from_the_wrong_vertex_still_arrives():
    quadratic, linear, uniform = problem(12, 3, 1e9)
    right = entropic_minimum(DenseOperator(quadratic), linear, DualStart(uniform)).weights
    wrong = torch.zeros(12, dtype=torch.float64)
    wrong[right.argmin()] = 1.0
    assert torch.allclose(
        entropic_minimum(DenseOperator(quadratic), linear, DualStart(wrong)).weights, right, atol=1e-5
    )


def test_where_newton_fails_from_the_start_the_temperature_is_lowered():
    """A matrix of low rank, twelve potentials of which the start weighs one: more than a solution's sixty steps."""
    generator = torch.Generator().manual_seed(70)
    factor = 1e4 * torch.randn(12, 4, generator=generator, dtype=torch.float64)
    linear = 1e5 * torch.randn(12, generator=generator, dtype=torch.float64)
    start = torch.full((12,), 1e-13, dtype=torch.float64)
    start[1] = 1.0
    found = entropic_minimum(DenseOperator(factor @ factor.T), linear, DualStart(start))
    assert found.converged
    assert found.iterations > 60
    expected = torch.softmax(-(linear + factor @ (factor.T @ found.weights)), 0)
    assert float((found.weights - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize(("order", "pick"), [(1, lambda p: p[0]), (2, lambda p: p[1] + p[2] - p[0])])
def test_order_of_the_time_average(order, pick):
    quadratic, linear, uniform = problem(6, 1, 2.0)
    errors = []
    for span in (0.1, 0.05, 0.025):
        found = extrapolated_average(DenseOperator(span * quadratic), linear, 0 * linear, (DualStart(uniform),) * 3)
        parts = [part.weights for part in found]
        exact = (torch.tensor(reference.margins_by_radau(quadratic, linear, span)) - linear) / span
        errors.append(float((quadratic @ pick(parts) - exact).norm()))
    slopes = [(errors[k] / errors[k + 1]) for k in range(2)]
    assert all(2**order * 0.7 < ratio < 2**order * 1.5 for ratio in slopes), errors


def test_stiff_average_keeps_the_margins_together():
    """With `hK` of 1e10 the examples that weigh end at equal margins: the limit is a hard-margin SVM in the kernel."""
    quadratic, linear, uniform = problem(8, 5, 1e10)
    weights = entropic_minimum(DenseOperator(quadratic), linear, DualStart(uniform)).weights
    ends = linear + quadratic @ weights
    heavy = weights > 1e-6
    assert float(ends[heavy].max() - ends[heavy].min()) < 40
    assert float(ends[~heavy].min() - ends[heavy].min()) > 10 if (~heavy).any() else True


@pytest.mark.parametrize("scale", [0.3, 50.0, 1e8])
def test_a_matrix_of_low_rank_has_the_solution_of_the_whole_one(scale):
    _, linear, uniform = problem(12, 4, scale)
    root = torch.randn(12, 4, generator=torch.Generator().manual_seed(4)).double()
    quadratic, places = scale * root @ root.T, torch.tensor([1, 2, 4, 7])
    low = LowRankOperator.through(quadratic[:, places], places).scaled(0.5)
    whole = DenseOperator(quadratic, 0.5)
    assert torch.allclose(low.matmul(uniform), whole.matmul(uniform))
    assert torch.allclose(low.diagonal, whole.diagonal)
    sides = torch.stack([linear, uniform], 1)
    inverse = torch.linalg.inv(torch.eye(12) + uniform.sqrt()[:, None] * whole.matmul(uniform.sqrt().diag()))
    assert torch.allclose(low.factor(uniform, 1.0).solve(sides), inverse @ sides, rtol=1e-6, atol=1e-6)
    found, expected = (entropic_minimum(one, linear, DualStart(uniform)) for one in (low, whole))
    assert found.converged
    assert torch.allclose(found.weights, expected.weights, atol=1e-7)


def test_a_matrix_through_some_columns_has_them_and_is_below_the_whole():
    quadratic, *_ = problem(12, 9, 1.0)
    places = torch.tensor([0, 3, 8])
    low = LowRankOperator.through(quadratic[:, places], places).matmul(torch.eye(12).double())
    assert torch.allclose(low[:, places], quadratic[:, places])
    assert float(torch.linalg.eigvalsh(quadratic - low).min()) > -1e-12 * float(quadratic.max())
    repeated = torch.tensor([0, 3, 8, 8])  # a singular block
    assert torch.allclose(LowRankOperator.through(quadratic[:, repeated], repeated).matmul(torch.eye(12).double()), low)


def test_rows_that_hardly_weigh_are_left_out_of_the_factorisation_and_not_of_the_solution():
    """A thousand rows, of which few weigh: the factor is small, and the optimality condition holds on all."""
    quadratic, linear, uniform = problem(1000, 2, 1.0)
    linear = linear + torch.linspace(0, 60, 1000, dtype=torch.float64)
    found = entropic_minimum(DenseOperator(quadratic), linear, DualStart(uniform))
    assert isinstance(found.factor, DenseFactor)
    assert len(found.factor.cholesky) == len(heavy_rows(found.weights * quadratic.diagonal(), 1.0)) < 500
    expected = torch.softmax(-(linear + quadratic @ found.weights), 0)
    assert torch.allclose(found.weights, expected, rtol=1e-5, atol=1e-9)


def test_a_factor_of_a_nearby_problem_serves_and_one_of_a_far_one_is_made_again():
    quadratic, linear, uniform = problem(30, 6, 1e4)
    found = entropic_minimum(DenseOperator(quadratic), linear, DualStart(uniform))
    near = entropic_minimum(DenseOperator(1.001 * quadratic), linear, found.start)
    assert near.converged
    assert near.factor is found.factor
    far = entropic_minimum(DenseOperator(quadratic), linear.flip(0), found.start)
    assert far.converged
    assert far.factor is not found.factor
    expected = entropic_minimum(DenseOperator(quadratic), linear.flip(0), DualStart(uniform))
    assert torch.allclose(far.weights, expected.weights, atol=1e-6)


def test_factors_are_counted_and_a_solution_that_costs_more_is_given_up():
    quadratic, linear, uniform = problem(30, 6, 1e9)
    operator, factors = DenseOperator(quadratic), []

    class Counted(DenseOperator):
        def factor(self, weights, temperature):
            factors.append(super().factor(weights, temperature))
            return factors[-1]

    whole = entropic_minimum(Counted(operator.matrix), linear, DualStart(uniform))
    assert whole.converged
    assert len(factors) > 3
    assert whole.operations == sum(len(each.heavy) ** 3 / 3 for each in factors)
    most = sum(each.operations for each in factors[:2])
    half = entropic_minimum(operator, linear, DualStart(uniform), most=most)
    assert not half.converged
    assert most < half.operations == most + factors[2].operations
    average = extrapolated_average(operator, linear, 0 * linear, (DualStart(uniform),) * 3, most=most)
    assert not any(each.converged for each in average)
    assert sum(each.operations for each in average) < whole.operations
