from math import comb

import pytest
import torch
from torch import nn

from equipoise import measure
from equipoise.errors import InputError
from equipoise.networks import mlp, residual_mlp


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "d"), [(6, 2), (5, 3), (3, 4)])
def test_cells_and_facets_in_general_position_are_zaslavskys(n, d):
    found = measure.layer_regions(normal(n, d), normal(n, seed=1))
    assert len(found.facets) == sum(comb(n, i) for i in range(d + 1))
    assert int(found.facets.sum()) == 2 * n * sum(comb(n - 1, i) for i in range(d))
    assert len({tuple(row) for row in found.signs.tolist()}) == len(found.signs)


def test_every_pattern_that_occurs_is_a_cell():
    weight, bias = normal(6, 2, seed=2), normal(6, seed=3)
    found = {tuple(row) for row in measure.layer_regions(weight, bias).signs.tolist()}
    points = 30 * (torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5)
    seen = {tuple(row) for row in (points @ weight.T + bias).sign().long().unique(dim=0).tolist()}
    assert seen <= found
    assert len(seen) > len(found) - 4  # small or distant cells may be missed by points


def test_degenerate_layers():
    central = measure.layer_regions(normal(5, 2))
    assert central.facets.tolist() == [2] * 10
    parallel = measure.layer_regions(torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), torch.arange(4.0))
    assert sorted(parallel.facets.tolist()) == [1, 1, 2, 2]  # x = 0, -1/2 and 2
    twice = measure.layer_regions(torch.tensor([[1.0, 2.0], [-2.0, -4.0]]), torch.tensor([1.0, -2.0]))
    assert twice.facets.tolist() == [1, 1]
    with pytest.raises(InputError, match="at most 10 regions"):
        measure.layer_regions(normal(6, 3), normal(6, seed=1), most=10)


def test_a_wide_plane_of_one_layer_has_the_exact_cells():
    """All corners of the arrangement inside: the same number of regions, and of facets in all."""
    model = mlp([2, 7, 1], bias=True, seed=4)
    angles = torch.arange(7).double() * torch.pi / 7 + 0.2  # no two nearly parallel: all corners are near
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([angles.cos(), angles.sin()], 1))
        model[0].bias.copy_(normal(7, seed=5))
    exact = measure.layer_regions(model[0].weight.detach(), model[0].bias.detach())
    corner = torch.full((2,), -1e3).double()
    plane = measure.plane_regions(model, corner, torch.tensor([2e3, 0.0]).double(), torch.tensor([0.0, 2e3]).double())
    assert sorted(plane.facets.tolist()) == sorted(exact.facets.tolist())
    bounded = int(plane.inner.sum())
    assert bounded == comb(6, 2)  # bounded cells of 7 lines in general position


def states(model, relus, points):
    seen = []
    hooks = [relu.register_forward_hook(lambda module, read, _: seen.append(read[0] > 0)) for relu in relus]
    model(points)
    for hook in hooks:
        hook.remove()
    return torch.cat(seen, 1)


@pytest.mark.parametrize("make", [lambda: mlp([3, 6, 5, 1], bias=True), lambda: residual_mlp(3, 5, 6, blocks=2)])
def test_regions_of_deep_networks_are_those_where_the_jacobian_is_constant(make):
    """Inside a region all points have the pattern of its centre; neighbours differ; the areas add up."""
    model = make()
    corner, first, second = -2 * torch.ones(3).double(), 4 * normal(3, seed=6), 4 * normal(3, seed=7)
    found = measure.plane_regions(model, corner, first, second)
    area, patterns = 0.0, []
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    generator = torch.Generator().manual_seed(0)
    for polygon in found.polygons:
        x, y = torch.from_numpy(polygon).T
        area += float((x * y.roll(-1) - y * x.roll(-1)).sum()) / 2
        weights = torch.rand(5, len(polygon), generator=generator, dtype=torch.float64) + 0.01
        inside = (weights / weights.sum(1, keepdim=True)) @ torch.from_numpy(polygon)
        each = states(model, relus, corner + inside @ torch.stack([first, second]))
        assert (each == each[0]).all()
        patterns.append(tuple(each[0].tolist()))
    assert area == pytest.approx(1.0)
    assert len(set(patterns)) > 5


def test_maxima_are_refused():
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Flatten())
    model = nn.Sequential(nn.Linear(2, 4), *model, nn.Linear(2, 1))
    with pytest.raises(InputError, match="a maximum over several numbers"):
        measure.plane_regions(model, torch.zeros(2), torch.eye(2)[0], torch.eye(2)[1])
