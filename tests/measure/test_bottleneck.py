import math

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise import measure
from equipoise.errors import InputError
from equipoise.networks import convnet, mlp


def test_jacobians_are_those_of_differences():
    model = convnet((4, 4), (2,), width=5, outputs=3)
    X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = measure.jacobian_spectrum(model, X)
    step = 1e-6
    for x, values in zip(X, found.values, strict=True):
        moved = [
            (model((x + step * e)[None]) - model((x - step * e)[None]))[0] / (2 * step) for e in torch.eye(16).double()
        ]
        expected = torch.linalg.svdvals(torch.stack(moved, 1).detach())
        assert torch.allclose(values, expected, atol=1e-7)


def test_a_linear_function_has_its_rank_and_determinant_everywhere():
    A = torch.diag(torch.tensor([3.0, 0.5, 0.0])).double()
    found = measure.jacobian_spectrum(lambda x: x @ A, torch.randn(5, 3).double())
    assert found.rank() == 2
    assert torch.allclose(found.log_pseudo_determinants(), torch.full((5,), math.log(1.5)).double())
    assert measure.jacobian_spectrum(lambda x: 0 * x, torch.ones(2, 3)).ranks().tolist() == [0, 0]
    with pytest.raises(InputError, match="an output without a gradient"):
        measure.jacobian_spectrum(lambda x: torch.ones(2, 1), torch.ones(2, 3))


def test_the_cost_of_depth_is_the_norm_of_balanced_factors():
    """And R(A; L) - L rank A tends to 2 log|A|₊ with the error that is stated."""
    values = torch.tensor([3.0, 1.5, 0.7], dtype=torch.float64)
    A = torch.diag(values)
    for depth in (1, 2, 5):
        factor = torch.diag(values ** (1 / depth))
        product = torch.linalg.matrix_power(factor, depth)
        assert torch.allclose(product, A)
        cost = depth * float(factor.square().sum())
        assert measure.linear_representation_cost(A, depth) == pytest.approx(cost)
    limit = 2 * float(values.log().sum())
    for depth in (64, 256, 1024):
        error = measure.linear_representation_cost(A, depth) - 3 * depth - limit
        assert error == pytest.approx(2 / depth * float(values.log().square().sum()), rel=3 / depth)
    with pytest.raises(InputError, match="depth of one or more"):
        measure.linear_representation_cost(A, 0)


def test_the_observer_reads_the_network_in_training_and_in_a_flow():
    X = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = mlp([4, 2, 6, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.watch(model, optimizer, every=1, observe=[eq.Bottleneck(X)], quiet=True, alarms=[]) as log:
        for _ in range(2):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
    assert log.off == {}
    patterns = torch.cat([model[:1](X) > 0, model[:3](X) > 0], 1)
    assert log.last("bottleneck", "regions", "") == len(torch.unique(patterns, dim=0))
    found = measure.jacobian_spectrum(model, X)
    assert log.last("bottleneck", "jacobian_rank", "") == found.rank() == 2
    mean = float(found.log_pseudo_determinants().mean())
    assert log.last("bottleneck", "log_pseudo_determinant", "") == pytest.approx(mean, rel=1e-6)
    data = eq.data.load("separable", n=10, d=4)
    run = eq.flow(mlp([4, 3, 1]), data, until=eq.Steps(2), observe=[eq.Bottleneck(data.X)])
    assert run.last("bottleneck", "jacobian_rank", "") == 1


def test_exponents_of_a_module_and_euler():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = measure.quasi_homogeneity(model, X)
    assert measure.euler_residual(model, X, found.exponents) < 1e-14
    assert measure.euler_residual(model, X, dict.fromkeys(found.exponents, 0.5)) > 0.01
    assert not found.homogeneous
    assert measure.quasi_homogeneity(mlp([3, 4, 1]), X).homogeneous
