import copy
import math
from functools import cache

import pytest
import torch
from torch import nn

import reference
from equipoise.decomposition import decompose
from equipoise.errors import InputError
from equipoise.networks import mlp, residual_mlp


class Skip(nn.Module):
    """5-4-3-1 with biases, and a trained skip past the first layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 1)
        self.skip = nn.Linear(5, 3, bias=False)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x))) + self.skip(x)))


class Branches(nn.Module):
    """Concatenation, subtraction, a gain for each unit, and a layer with two readers."""

    def __init__(self):
        super().__init__()
        self.shared, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.gain, self.last = nn.Parameter(torch.tensor([0.5, -2.0])), nn.Linear(4, 2, bias=False)

    def forward(self, x):
        h = torch.relu(self.shared(x))
        left, right = nn.functional.leaky_relu(self.left(h), 0.2), self.gain * torch.abs(self.right(h))
        return self.last(torch.cat([left - right, right / 3], 1))


def conv(*layers, flat):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 2))


NETWORKS = {
    "chain": (lambda: mlp([5, 4, 3, 1], bias=True), (5,)),
    "skip": (Skip, (5,)),
    "identity skip": (lambda: residual_mlp(3, 3, 4, bias=True), (3,)),
    "branches": (Branches, (3,)),
    "maxima": (lambda: conv(nn.Conv2d(1, 2, 3), nn.LeakyReLU(), nn.MaxPool2d(2), flat=8), (1, 6, 6)),
    "means": (
        lambda: conv(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 2, 2), nn.ReLU(), flat=8),
        (1, 6, 6),
    ),
}


def network(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(1)
    model = make().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))  # biases too, and no sign preferred
    return model, torch.randn(50, *shape, dtype=torch.float64)


@cache
def decomposed(name):
    """A network, its inputs, and its parts, for tests that change none of them."""
    model, x = network(name)
    return model, x, decompose(model, x)


def products(parts):
    """`Φ_π` of every leaf, from its magnitude and the signs on its way."""
    leaves = parts._unrolled[1]
    signed, above = torch.zeros(parts.tree.paths, dtype=torch.float64), None
    for level in parts.tree.levels:
        above = level.signs if above is None else above[level.parents] * level.signs
        ends = level.leaves >= 0
        signed[torch.as_tensor(level.leaves[ends])] = torch.as_tensor(above[ends])
    return signed * leaves.magnitudes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parts_make_the_model(name):
    model, x, parts = decomposed(name)
    error = (parts(x) - model(x).detach()).abs().max()
    assert error <= 1e-12 * model(x).detach().abs().max()
    assert parts.tree.paths == parts.paths


@pytest.mark.parametrize("name", NETWORKS)
def test_sums_over_paths_are_those_of_the_enumeration(name):
    model, _, parts = decomposed(name)
    near, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.add_(1e-9 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    here, there = products(parts), products(parts.at(near))
    assert parts.path_norm == pytest.approx(float(here.abs().sum()), rel=1e-13)
    assert parts.inner(near) == pytest.approx(float(here @ there), rel=1e-13)
    # the enumeration subtracts numbers that agree to nine digits, the pass does not
    assert parts.distance(near) == pytest.approx(float((here - there).norm()), rel=1e-6)
    assert parts.distance(model) == 0


def test_paths_and_products_are_those_of_brute_force():
    model, _ = network("chain")
    layers = [getattr(model, f"layer{k}") for k in (1, 2, 3)]
    expected = reference.paths([layer.weight.data for layer in layers], [layer.bias.data for layer in layers])
    parts = decompose(model)
    assert parts.paths == len(expected)
    assert sorted(products(parts).tolist()) == pytest.approx(sorted(expected.values()), rel=1e-13)


def test_leaves_are_multilinear_in_magnitudes_and_the_tree_knows_only_signs():
    model, x = network("skip")
    parts = decompose(model)
    scaled = {name: weight * (3.0 if name == "second.weight" else 1.0) for name, weight in parts.weights.items()}
    tripled = parts.at(scaled)
    ratio = tripled.multilinear(x) / parts.multilinear(x)
    through = torch.isclose(ratio, torch.tensor(3.0).double())
    assert bool((through | torch.isclose(ratio, torch.tensor(1.0).double())).all())
    assert 0 < int(through[0].sum()) < parts.tree.paths  # the skip goes past it
    assert tripled.tree.same_as(parts.tree)
    turned = parts.at(parts.weights | {"last.weight": -parts.weights["last.weight"]})
    assert not turned.tree.same_as(parts.tree)
    assert torch.equal(turned.multilinear(x), parts.multilinear(x))


def test_rescaling_a_neuron_moves_no_path():
    parts = decomposed("chain")[2]
    weights = dict(parts.weights)
    rescaled = weights | {
        "layer1.weight": weights["layer1.weight"] * 7,
        "layer1.bias": weights["layer1.bias"] * 7,
        "layer2.weight": weights["layer2.weight"] / 7,
    }
    assert parts.distance(rescaled) <= 1e-14 * parts.path_norm


def test_a_weight_of_zero_is_an_edge():
    model, x = network("chain")
    with torch.no_grad():
        model.layer2.weight[0] = 0.0
    parts = decompose(model)
    assert parts.tree.paths == parts.paths == 76
    assert torch.allclose(parts(x), model(x).detach(), atol=1e-12)


def test_large_networks_are_measured_and_not_unrolled():
    model = mlp([784, 64, 64, 1])
    parts = decompose(model)
    assert parts.paths == 784 * 64**2
    assert parts.path_norm > 0
    with pytest.raises(InputError, match=r"at most 100,000 paths to unroll; found 3,211,264; pass max_paths="):
        parts(torch.ones(1, 784))
    assert decompose(mlp([2] + [100] * 10 + [1])).paths == pytest.approx(2e20, rel=1e-12)


def test_what_cannot_be_decomposed_is_named():
    with pytest.raises(InputError, match="found tanh"):
        _ = decompose(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))).paths
    with pytest.raises(InputError, match="example inputs, as the first layer is not"):
        decompose(nn.Sequential(nn.Conv2d(1, 1, 3)))
    with pytest.raises(InputError, match="weights of the same network"):
        decompose(mlp([5, 4, 1])).distance(mlp([5, 3, 1]))

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.left(x) * torch.relu(self.right(x))

    with pytest.raises(InputError, match="mul of two activations"):
        _ = decompose(Gated()).paths


def test_the_picture(tmp_path):
    parts = decomposed("skip")[2]
    drawn = parts.draw(tmp_path / "net.svg").read_text()
    assert "91 paths" in drawn
    assert parts.draw(tmp_path / "again.svg").read_text() == drawn
    # one line for every edge of the network, for every edge of the tree and for every leaf's way to the margin
    edges = len(parts.units.fan_in(parts.units.outputs)) and sum(len(level.units) for level in parts.tree.levels[1:])
    assert drawn.count('id="line2d_') == edges + parts.tree.paths + 5 * 4 + 4 + 4 * 3 + 3 + 5 * 3 + 3 + 1
    assert math.isfinite(parts.path_norm)
    with pytest.raises(InputError, match="at most 400 paths to draw"):
        decompose(mlp([10, 10, 10, 1])).draw(tmp_path / "big.svg")
