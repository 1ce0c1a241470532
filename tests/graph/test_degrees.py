import pytest
import torch
from torch import nn

from equipoise.graph.capture import capture
from equipoise.graph.degrees import homogeneity
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
