"""The contract of `Margins`, kept by both implementations on chains, and by the general one on skip connections."""

import pytest
import torch
from torch import nn

import reference
from equipoise.errors import InputError
from equipoise.graph.capture import capture
from equipoise.integrate.margins import (
    CapturedMargins,
    FeedforwardMargins,
    Layout,
    build_margins,
    local_slopes,
    secant_slopes,
)
from equipoise.networks import mlp, residual_mlp

MODELS = {
    "chain": lambda: mlp([6, 5, 4, 3, 1], linear_tail=2, seed=1),
    "biased chain": lambda: mlp([6, 5, 4, 1], linear_tail=2, bias=True, seed=2),
    "leaky": lambda: nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(0.3), nn.Linear(4, 1)).double(),
    "skip": lambda: residual_mlp(6, 5, 4, linear_tail=2, seed=3),
    "dense skip": lambda: residual_mlp(6, 5, 4, skip="dense", linear_tail=2, seed=4),
}


def data(n=12):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.where(torch.rand(n, generator=generator) > 0.5, 1.0, -1.0).double()


def setting(name, implementation=None):
    model, (inputs, labels) = MODELS[name](), data()
    layout = Layout.of(dict(model.named_parameters()))
    captured = capture(model, inputs[:2])
    margins = (implementation or build_margins)(captured, layout, inputs, labels)
    return model, margins, layout.flatten(dict(model.named_parameters()))


def close(a, b):
    return torch.allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("implementation", [build_margins, CapturedMargins])
@pytest.mark.parametrize("name", MODELS)
def test_products_of_the_jacobian_are_those_of_autograd(name, implementation):
    model, margins, weights = setting(name, implementation)
    seen = margins.evaluate(weights)
    here = margins.linearise(weights, local_slopes(margins, seen))
    jacobian = reference.margin_jacobian(model, *data())
    generator = torch.Generator().manual_seed(1)
    forces = torch.rand(12, generator=generator, dtype=torch.float64)
    change = torch.randn(len(weights), generator=generator, dtype=torch.float64)
    inputs, labels = data()
    assert close(seen.margins, labels * model(inputs).squeeze(1).detach())
    assert close(here.margins, seen.margins)
    assert close(here.pullback(forces), jacobian.T @ forces)
    assert close(here.pushforward(change), jacobian @ change)
    assert close(here.kernel(), jacobian @ jacobian.T)


@pytest.mark.parametrize("name", ["chain", "biased chain", "leaky"])
def test_fast_path_and_twin_agree_with_any_slopes(name):
    _, fast, weights = setting(name)
    _, twin, _ = setting(name, CapturedMargins)
    assert isinstance(fast, FeedforwardMargins)
    rows = torch.tensor([1, 4, 7, 10])
    slopes = tuple(torch.rand_like(z[rows]) for z in fast.evaluate(weights).preactivations)
    a, b = (margins.restricted(rows).linearise(weights, slopes) for margins in (fast, twin))
    forces = torch.rand(4, dtype=torch.float64)
    assert close(a.margins, b.margins)
    assert close(a.pullback(forces), b.pullback(forces))
    assert close(a.kernel(), b.kernel())


def test_skip_connections_take_the_general_path():
    assert isinstance(setting("skip")[1], CapturedMargins)


@pytest.mark.parametrize("name", ["chain", "leaky"])
def test_secant_slopes_carry_one_evaluation_to_the_other(name):
    _, margins, weights = setting(name)
    before, after = margins.evaluate(weights), margins.evaluate(weights + 0.3 * torch.randn_like(weights))
    pairs = zip(
        secant_slopes(margins, before, after),
        before.preactivations,
        after.preactivations,
        margins.negative_slopes,
        strict=True,
    )
    crossed = 0
    for slope, z0, z1, negative in pairs:
        image = [torch.where(z > 0, z, negative * z) for z in (z0, z1)]
        assert close(slope * (z1 - z0), image[1] - image[0])
        crossed += int(((z0 > 0) != (z1 > 0)).sum())
    assert crossed > 0


def test_activation_without_homogeneity_is_named():
    model = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 1)).double()
    with pytest.raises(InputError, match="gelu, which is not positively homogeneous"):
        build_margins(capture(model, data()[0]), Layout.of(dict(model.named_parameters())), *data())
