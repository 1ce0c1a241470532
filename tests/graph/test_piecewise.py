import pytest
import torch
from torch.nn import functional as F

from equipoise.graph.piecewise import Largest, ParametricRectifier, Pooled, Rectifier

MAPS = {
    "relu": (Rectifier(0.0), F.relu),
    "leaky": (Rectifier(0.3), lambda z: F.leaky_relu(z, 0.3)),
    "abs": (Rectifier(-1.0), torch.abs),
    "pool": (Pooled((2, 2), (2, 2), (0, 0)), lambda z: F.max_pool2d(z, 2)),
    "overlapping": (Pooled((3, 3), (2, 2), (1, 1)), lambda z: F.max_pool2d(z, 3, 2, 1)),
    "over channels": (Largest((1,)), lambda z: z.amax(1)),
    "over two axes": (Largest((-1, 1), kept=True), lambda z: z.amax((-1, 1), keepdim=True)),
    "one axis": (Pooled((3,), (2,), (1,)), lambda z: F.max_pool1d(z, 3, 2, 1)),
}


def ends(name):
    shape = (4, 3, 9) if name == "one axis" else (4, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return before, before + 0.7 * torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", MAPS)
def test_exact_is_torchs_own(name):
    piecewise, torchs = MAPS[name]
    z = ends(name)[0]
    assert torch.equal(piecewise.exact(z), torchs(z))


@pytest.mark.parametrize("name", MAPS)
def test_secant_weights_carry_one_end_to_the_other(name):
    piecewise, torchs = MAPS[name]
    before, after = ends(name)
    weights = piecewise.secant(before, after)
    change = piecewise.sloped(after, weights) - piecewise.sloped(before, weights)
    assert torch.allclose(change, torchs(after) - torchs(before), rtol=1e-13, atol=1e-14)
    assert not torch.equal(weights, piecewise.secant(after, after))


@pytest.mark.parametrize("name", MAPS)
def test_at_equal_ends_the_weights_are_those_of_the_map_itself(name):
    piecewise, torchs = MAPS[name]
    z = ends(name)[0]
    assert torch.equal(piecewise.sloped(z, piecewise.secant(z, z)), torchs(z))


@pytest.mark.parametrize("name", ["pool", "overlapping", "one axis", "over channels", "over two axes"])
def test_weights_of_a_maximum_are_convex(name):
    weights = MAPS[name][0].secant(*ends(name))
    assert float(weights.min()) >= 0
    assert torch.allclose(weights.sum(-1), torch.ones(()).double())
    assert bool(((weights > 0) & (weights < 1)).any())


def test_parametric_rectifier_is_multilinear_and_exact_at_equal_ends():
    z, slope = ends("")[0], torch.tensor([0.1, 0.5, -0.2], dtype=torch.float64)
    rectifier = ParametricRectifier()
    weights = rectifier.secant(z, z)
    assert torch.allclose(rectifier.sloped(z, weights, slope), F.prelu(z, slope), rtol=1e-15)
    assert torch.allclose(
        rectifier.sloped(z, 0.3 + 0 * z, 2 * slope) - rectifier.sloped(z, 0.3 + 0 * z, slope),
        rectifier.sloped(z, 0.3 + 0 * z, slope) - rectifier.sloped(z, 0.3 + 0 * z, 0 * slope),
    )
