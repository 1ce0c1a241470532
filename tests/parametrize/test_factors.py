import copy
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.parametrize import collapse, factorize, penalty, sparsity


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_balanced_factors_keep_the_function_and_attain_the_least_penalty(depth):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    weight = model.weight.detach().clone()
    factorize(model, depth)
    torch.testing.assert_close(model.weight, weight, rtol=1e-13, atol=0)
    least = float(weight.abs().pow(2 / depth).sum())
    assert float(penalty(model).detach()) == pytest.approx(least, rel=1e-12)
    scale = torch.exp(torch.randn(3, 4).double())
    model.parametrizations.weight.original0.data.mul_(scale)
    model.parametrizations.weight.original1.data.div_(scale)
    torch.testing.assert_close(model.weight, weight, rtol=1e-13, atol=0)
    assert float(penalty(model).detach()) > least * 1.01
    plain = collapse(model)
    assert type(plain.weight) is nn.Parameter


def test_no_factors_of_a_product_have_a_smaller_penalty():
    torch.manual_seed(0)
    for depth in (2, 3, 4):
        factors = torch.randn(depth, 1000).double()
        value = factors.square().mean(0)
        assert bool((value >= factors.prod(0).abs().pow(2 / depth) * (1 - 1e-12)).all())


@pytest.mark.parametrize("depth", [2, 4])
def test_random_factors_have_the_variance_of_the_weight_and_none_is_near_zero(depth):
    torch.manual_seed(0)
    model = nn.Linear(400, 300)
    before = float(model.weight.detach().var())
    factorize(model, depth, init="random")
    assert float(model.weight.detach().var()) == pytest.approx(before, rel=0.05)
    factors = torch.stack(list(model.parametrizations.weight.parameters()))
    assert float(factors.abs().min().detach()) > 0.2 * before ** (0.5 / depth)


def test_two_factors_find_the_lasso():
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(80, 40)), np.zeros(40)
    w[:5] = [1.5, -2.0, 1.0, 0.8, -1.2]
    y = X @ w + 0.05 * rng.normal(size=80)
    expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(X, y).coef_
    torch.manual_seed(0)
    model = factorize(nn.Linear(40, 1, bias=False).double(), init="random")
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    for _ in range(4000):
        optimizer.zero_grad()
        (0.5 * (model(inputs) - targets).square().mean() + 0.1 * penalty(model)).backward()
        optimizer.step()
    first, second = (each.detach() for each in model.parametrizations.weight.parameters())
    found = model.weight.detach()[0].numpy()
    assert set(np.flatnonzero(abs(found) > 1e-4)) == set(np.flatnonzero(expected)) == set(range(5))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert float((first.abs() - second.abs()).abs().max()) < 1e-6
    counted = sparsity(model, 1e-4)
    assert (counted.zeros, counted.share, counted.compression) == ({"weight": 35}, 35 / 40, 8.0)
    assert int((collapse(model, 1e-4).weight == 0).sum()) == 35


def test_it_is_a_parametrisation_like_any_other(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    X = torch.randn(3, 4)
    before = model(X)
    factorize(model, 3, names="0.*")
    torch.testing.assert_close(model(X), before)
    other = factorize(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), 3, names=["0.weight", "0.bias"])
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(copy.deepcopy(other)(X), before)
    laws = eq.invariances(model, X)
    model(X).square().sum().backward()
    assert max(float(each.max()) for each in laws.residual(model).values()) < 1e-6
    factors = {f"0.parametrizations.weight.original{place}" for place in range(3)}
    assert any(len(factors & set(law.parameters)) >= 2 for law in laws)
    assert "0.weight" in set(eq.analyze(model).name)


@pytest.mark.parametrize("depth", [1, 0, 2.0, True])
def test_a_depth_below_two_is_refused(depth):
    with pytest.raises(InputError, match=r"expected (a depth of 2 or more|depth= to be an int)"):
        factorize(nn.Linear(2, 2), depth)


def test_names_that_cannot_be_parametrised_are_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"none that match \['other'\]; choose among weight, bias"):
        factorize(model, names=["other"])
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match=r"one that is shared: 0\.weight, 1\.weight"):
        factorize(tied)
    with pytest.raises(InputError, match="found one that is parametrised already"):
        factorize(factorize(nn.Linear(2, 2)))
    with pytest.raises(InputError, match="expected a model with factorised weights"):
        penalty(nn.Linear(2, 2))
    with pytest.raises(InputError, match="expected a threshold of 0 or more"):
        sparsity(factorize(nn.Linear(2, 2)), math.nan)
    with pytest.raises(InputError, match="expected init"):
        factorize(nn.Linear(2, 2), init="zeros")
