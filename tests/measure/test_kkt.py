import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from equipoise.errors import InputError
from equipoise.measure.kkt import (
    kkt_from_gram,
    kkt_from_jacobian,
    kkt_residuals,
    multipliers_from_gram,
    multipliers_from_jacobian,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hard_margin_svm(X):
    """`argmin ½‖w‖²` subject to `X w ≥ 1` by a general-purpose solver."""
    start = torch.linalg.lstsq(X, torch.ones(len(X), dtype=X.dtype)).solution.numpy()
    found = minimize(
        lambda w: 0.5 * w @ w,
        start,
        jac=lambda w: w,
        constraints={"type": "ineq", "fun": lambda w: X.numpy() @ w - 1, "jac": lambda w: X.numpy()},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return torch.from_numpy(found.x)


def separable(n=12, d=5, seed=0):
    X = random(n, d, seed=seed)
    return X * torch.sign(X @ random(d, seed=seed + 100))[:, None]


def quadratic_network(seed=0, a=6):
    """Margins `uᵀ x_i v` of a bilinear model (L = 2): J, w, m, all positive."""
    u, v, X = random(3, seed=seed), random(4, seed=seed + 1), random(a, 3, 4, seed=seed + 2)
    m = torch.einsum("aij,i,j->a", X, u, v)
    X = X * torch.sign(m)[:, None, None]
    J = torch.cat([torch.einsum("aij,j->ai", X, v), torch.einsum("aij,i->aj", X, u)], dim=1)
    return J, torch.cat([u, v]), m.abs()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_svm_solution_is_a_kkt_point(seed):
    X = separable(seed=seed)
    w = hard_margin_svm(X)
    found = kkt_from_jacobian(X, w, X @ w, degree=1)
    assert found.epsilon < 1e-6
    assert found.delta < 1e-6
    assert found.balance == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_other_directions_are_not(seed):
    X = separable(seed=seed)
    w = hard_margin_svm(X)
    turned = w + 0.05 * w.norm() * torch.nn.functional.normalize(random(5, seed=9), dim=0)
    turned = turned / (X @ turned).min().clamp(min=0.1)
    found = kkt_from_jacobian(X, turned, (X @ turned).clamp(min=1e-3), degree=1)
    assert max(found.epsilon, found.delta) > 1e-3


@given(seed=st.integers(0, 2**32 - 200), form=st.sampled_from(["jacobian", "gram"]))
def test_multipliers_minimise_both_violations_together(seed, form):
    J, w, m = random(7, 5, seed=seed), random(5, seed=seed + 1), random(7, seed=seed + 2).abs() + 0.1
    norm = float(w.norm())
    if form == "jacobian":
        found = multipliers_from_jacobian(J, w, m, degree=3)
    else:
        found = multipliers_from_gram(J @ J.T, J @ w, norm, m, degree=3)
    row = 3 * (m - m.min()) / norm
    slope = J @ (J.T @ found - w) + row * (row @ found)
    size = J.norm() ** 2 + row.norm() ** 2
    assert (found >= 0).all()
    assert (slope > -1e-7 * size).all()
    assert (slope[found > 0].abs() < 1e-7 * size).all()


@given(seed=st.integers(0, 2**32 - 200))
def test_both_forms_agree_down_to_the_resolution_of_the_gram_form(seed):
    J, w, m = quadratic_network(seed)
    exact, cheap = kkt_from_jacobian(J, w, m, degree=2), kkt_from_gram(J @ J.T, 2 * m, float(w.norm()), m, degree=2)
    assert cheap.epsilon == pytest.approx(exact.epsilon, rel=1e-6, abs=3e-7)
    assert cheap.balance == pytest.approx(exact.balance, rel=1e-7)


@given(
    seed=st.integers(0, 2**32 - 200),
    scale=st.floats(1e-3, 1e6),
    degree=st.sampled_from([1, 2, 3.5, 5]),
    form=st.sampled_from(["jacobian", "gram"]),
)
def test_the_residuals_do_not_change_when_the_weights_are_scaled(seed, scale, degree, form):
    J, w, m = quadratic_network(seed)

    def residuals(a):
        jacobian, weights, margins = a ** (degree - 1) * J, a * w, a**degree * m
        if form == "jacobian":
            return kkt_from_jacobian(jacobian, weights, margins, degree)
        return kkt_from_gram(jacobian @ jacobian.T, jacobian @ weights, float(weights.norm()), margins, degree)

    plain, scaled = residuals(1.0), residuals(scale)
    assert scaled.epsilon == pytest.approx(plain.epsilon, rel=1e-6, abs=3e-7)
    assert scaled.delta == pytest.approx(plain.delta, rel=1e-6, abs=1e-9)
    assert scaled.balance == pytest.approx(plain.balance, rel=1e-6)


@pytest.mark.parametrize("tilt", [1e-4, 1e-9, 1e-13])
def test_the_explicit_residual_sees_what_the_gram_form_cannot(tilt):
    J, m = torch.eye(2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    w = torch.tensor([1.0, 1.0, math.sqrt(2) * tilt], dtype=torch.float64)
    assert kkt_from_jacobian(J, w, m, degree=1).epsilon == pytest.approx(tilt, rel=1e-3)
    cheap = kkt_from_gram(J @ J.T, J @ w, float(w.norm()), m, degree=1).epsilon
    assert tilt * (1 - 1e-3) < cheap < max(2 * tilt, 1e-7)


def test_slackness_is_the_weighted_excess():
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    multipliers, margins = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 12.0])
    found = kkt_residuals(w, w, multipliers, margins, degree=4)
    assert found.delta == pytest.approx(2.0 * 8.0 / 4.0 ** (2 / 4))
    assert found.balance == pytest.approx(4 * 3.0 * 4.0 ** (2 / 4) / (25 / 4.0 ** (2 / 4)))
    assert found.epsilon == 0


def test_an_example_without_gradient_gets_no_weight():
    J, w, m = quadratic_network()
    J[2] = 0
    assert multipliers_from_jacobian(J, w, m, degree=2)[2] == 0
    assert multipliers_from_gram(J @ J.T, J @ w, float(w.norm()), m, degree=2)[2] == 0
    assert kkt_from_gram(0 * J @ J.T, 0 * m, 1.0, m, degree=2).epsilon == 1
    assert kkt_from_jacobian(0 * J, w, m, degree=2).epsilon == pytest.approx(1)


def test_repeated_examples_share_their_weight():
    J, w, m = quadratic_network()
    twice = kkt_from_gram(*(lambda K: (K @ K.T, 2 * m.repeat(2)))(J.repeat(2, 1)), float(w.norm()), m.repeat(2), 2)
    assert twice.epsilon == pytest.approx(kkt_from_jacobian(J, w, m, 2).epsilon, rel=1e-6)


def test_bad_input_says_what_to_do():
    J, w, m = quadratic_network()
    with pytest.raises(InputError, match=r"positive margins.*smallest margin -1.*train until"):
        kkt_from_jacobian(J, w, m - m.min() - 1, degree=2)
    with pytest.raises(InputError, match=r"finite gram .*with 36 NaN or infinite"):
        kkt_from_gram(math.nan * J @ J.T, 2 * m, 1.0, m, degree=2)
    with pytest.raises(InputError, match=r"weights that are not zero.*‖w‖ = 0"):
        kkt_from_jacobian(J, 0 * w, m, degree=2)
