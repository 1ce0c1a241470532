import pytest
import torch
from torch import nn

from equipoise.graph.capture import capture
from equipoise.graph.degrees import homogeneity, quasi_homogeneity
from equipoise.networks import mlp, residual_mlp


class Dense(nn.Module):
    """Two paths of equal degree: homogeneous, skip and all."""

    def __init__(self):
        super().__init__()
        self.inner, self.skip = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.last = nn.Linear(3, 1, bias=False)

    def forward(self, x):
        return self.last(torch.relu(self.inner(x)) - self.skip(x) / 2)


class Lifted(nn.Module):
    """A number added to what has a degree."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 1)

    def forward(self, x):
        return self.inner(x) + 1


POOLED = nn.Sequential(
    nn.Conv2d(1, 2, 3), nn.LeakyReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 1, bias=False)
)


@pytest.mark.parametrize(
    ("model", "shape", "degree"),
    [
        (mlp([3, 4, 4, 1], linear_tail=2), (3,), 3),
        (Dense(), (3,), 2),
        (POOLED, (1, 6, 6), 2),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1, bias=False)), (3,), 2),
    ],
)
def test_the_degree_is_that_of_scaled_weights(model, shape, degree):
    model, x = model.double(), torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)).double()
    captured, weights = capture(model, x), dict(model.named_parameters())
    assert homogeneity(captured).degree == degree
    scaled = captured.run({name: 1.7 * w for name, w in weights.items()}, x)
    assert torch.allclose(scaled, 1.7**degree * captured.run(weights, x), rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "obstacle"),
    [
        (residual_mlp(3, 4, 5), "add: terms of degrees 1 and 3"),
        (mlp([3, 4, 1], bias=True), "linear: terms of degrees 2 and 1"),
        (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1)), "gelu of what has degree 1"),
        (Lifted(), "add: terms of degrees 1 and 0"),
        (nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 1)), "prelu: terms of degrees 1 and 2"),
    ],
)
def test_what_stands_in_the_way_is_named(model, obstacle):
    found = homogeneity(capture(model.double(), torch.ones(2, 3).double()))
    assert found.degree is None
    assert found.obstacle == obstacle


class Bent(nn.Module):
    """`θ₁ x₁ + u v x₂` of Kunin et al. (2023)."""

    def __init__(self):
        super().__init__()
        self.direct, self.u, self.v = (nn.Parameter(torch.tensor(value)) for value in (0.7, 1.3, -0.4))

    def forward(self, x):
        return self.direct * x[:, :1] + self.u * self.v * x[:, 1:2]


def exponents(model, x, **options):
    found = quasi_homogeneity(capture(model, x), **options)
    return found, {name: str(value) for name, value in (found.exponents or {}).items()}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Bent(), {"direct": "1", "u": "1/2", "v": "1/2"}),
        (mlp([3, 4, 4, 1], linear_tail=2), dict.fromkeys(["layer1.weight", "layer2.weight", "layer3.weight"], "1/3")),
        (
            mlp([3, 4, 5, 1], bias=True),
            {
                "layer1.weight": "1/4",
                "layer1.bias": "1/4",
                "layer2.weight": "1/4",
                "layer2.bias": "1/2",
                "layer3.weight": "1/2",
                "layer3.bias": "1",
            },
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1, bias=False)),
            {"0.weight": "0", "0.bias": "0", "2.weight": "1/2", "2.bias": "1/2", "4.weight": "1/2"},
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=0.0), nn.Linear(4, 1, bias=False)),
            {"0.weight": "0", "0.bias": "0", "1.weight": "1/2", "1.bias": "1/2", "2.weight": "1/2"},
        ),
        (
            residual_mlp(3, 4, 5, linear_tail=1),
            {"embed.weight": "1/2", "block1.up.weight": "0", "block1.down.weight": "0", "layer1.weight": "1/2"},
        ),
    ],
)
def test_exponents_make_the_network_quasi_homogeneous(model, expected):
    model, x = model.double(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    found, shown = exponents(model, x)
    assert shown == expected
    captured, weights = capture(model, x), {name: w.detach() for name, w in model.named_parameters()}
    scaled = {name: 2.5 ** float(found.exponents[name]) * w for name, w in weights.items()}
    assert torch.allclose(captured.run(scaled, x), 2.5 * captured.run(weights, x), rtol=1e-12)
    top = max(found.exponents.values())
    assert set(found.largest) == {name for name, value in found.exponents.items() if value == top}


def test_no_other_exponents_have_a_smaller_largest_one():
    """Against all vertices of a small polytope, by brute force over a grid of exponents."""
    found, _ = exponents(mlp([3, 4, 1], bias=True).double(), torch.ones(2, 3).double())
    grid = [i / 4 for i in range(5)]
    solutions = [(w, w, a, w + a) for w in grid for a in grid if w + a == 1]
    least = min(sorted(each, reverse=True) for each in solutions)
    assert sorted(map(float, found.exponents.values()), reverse=True) == least


def test_an_eps_forbids_a_degree_below_it_unless_it_is_ignored():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1, bias=False)), torch.ones(2, 3)
    assert exponents(model, x)[1]["0.weight"] == "0"
    both = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4, elementwise_affine=False))
    assert exponents(both, x)[0].obstacle == "the output has degree 0 for all exponents"
    skip = residual_mlp(3, 4, 5)
    skip.block1.skip = nn.LayerNorm(4, elementwise_affine=False).double()
    assert exponents(skip, x.double())[0].exponents is not None


def test_contradictions_are_said():
    assert exponents(Lifted(), torch.ones(2, 3))[0].obstacle == "the degrees of sums contradict each other"
