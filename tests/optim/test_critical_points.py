import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import equipoise as eq
from equipoise.data import load
from equipoise.errors import InputError


def test_ridge_regression_is_its_closed_form():
    X, y = load("digits", n=100, classes=(0, 1))
    model = nn.Linear(64, 1, bias=False).double()
    before = model.weight.detach().clone()
    found = eq.minimise(model, lambda m: (m(X)[:, 0] - y).square().sum() / 2, ridge=0.5)
    expected = torch.linalg.solve(X.T @ X + 0.5 * torch.eye(64, dtype=torch.float64), X.T @ y)
    assert found.converged
    assert torch.allclose(found.model.weight[0], expected, atol=1e-9)
    assert torch.equal(model.weight, before)


def test_the_gradient_of_the_result_is_what_it_says():
    """Cross-entropy with a ridge on one parameter only, against autograd on the copy."""
    X, y = load("digits", n=60)
    model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    found = eq.minimise(model, lambda m: F.cross_entropy(m(X), y), ridge={"0.weight": 0.1}, iterations=20, newton=0)
    value = F.cross_entropy(found.model(X), y) + 0.05 * found.model[0].weight.square().sum()
    gradients = torch.autograd.grad(value, list(found.model.parameters()))
    assert found.value == pytest.approx(float(value.detach()))
    assert found.gradient_norm == pytest.approx(float(sum(g.square().sum() for g in gradients)) ** 0.5)
    assert not found.converged
    assert found.iterations == (20, 0)


def test_newton_leaves_a_saddle_that_descent_would_stay_at():
    """A product of two matrices close to zero, where the Hessian is indefinite; and the gradient comes down further."""
    target = torch.diag(torch.tensor([3.0, 1.0])).double()
    model = eq.networks.mlp([2, 2, 2], linear_tail=2, scale=1e-5)
    X = torch.eye(2, dtype=torch.float64)
    found = eq.minimise(model, lambda m: (m(X) - target).square().sum() / 2, iterations=0, tolerance=1e-11)
    assert found.converged
    assert found.value < 1e-20
    assert found.iterations[1] > 3


def test_the_least_ridge_of_a_product_is_the_nuclear_norm():
    """min ½‖W₂W₁ - Y‖² + λ/2 (‖W₁‖² + ‖W₂‖²): the singular values of Y, each less λ."""
    Y = torch.diag(torch.tensor([3.0, 1.0, 0.2])).double()
    X = torch.eye(3, dtype=torch.float64)
    model = eq.networks.mlp([3, 5, 3], linear_tail=2)
    found = eq.minimise(model, lambda m: (m(X) - Y).square().sum() / 2, ridge=0.5)
    assert found.converged
    assert np.allclose(torch.linalg.svdvals(found.model(X).detach()).numpy(), [2.5, 0.5, 0.0], atol=1e-7)


def test_bad_input_says_what_to_do():
    model = nn.Linear(2, 1)
    with pytest.raises(InputError, match="ridges of zero or more"):
        eq.minimise(model, lambda m: m.weight.sum(), ridge=-1.0)
    with pytest.raises(InputError, match=r"ridge=\{'w': 1\.0\}"):
        eq.minimise(model, lambda m: m.weight.sum(), ridge={"w": 1.0})
    with pytest.raises(InputError, match=r"one finite number at the start; found shape \(1, 2\)"):
        eq.minimise(model, lambda m: m.weight)
    with pytest.raises(InputError, match="parameters none"):
        eq.minimise(nn.ReLU(), lambda m: torch.ones(()))
