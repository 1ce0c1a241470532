"""The contract of `Margins`, kept by both implementations on chains, and by the general one on skip connections."""

import pytest
import torch
from torch import nn

import reference
from equipoise.graph.capture import capture
from equipoise.integrate.margins.chain_margins import ChainMargins
from equipoise.integrate.margins.graph_margins import GraphMargins
from equipoise.integrate.margins.protocol import ParameterLayout, local_slopes, secant_slopes
from equipoise.integrate.margins.readout import BinaryReadout, MulticlassReadout
from equipoise.integrate.problem import build_margins
from equipoise.measure.margins import class_margins
from equipoise.networks import mlp, residual_mlp
from helpers.sampling import sampled

MODELS = {
    "chain": lambda: mlp([6, 5, 4, 3, 1], linear_tail=2, seed=1),
    "biased chain": lambda: mlp([6, 5, 4, 1], linear_tail=2, bias=True, seed=2),
    "leaky": lambda: nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(0.3), nn.Linear(4, 1)).double(),
    "ends in a kink": lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1), nn.LeakyReLU(0.1)).double(),
    "skip": lambda: residual_mlp(6, 5, 4, linear_tail=2, seed=3),
    "dense skip": lambda: residual_mlp(6, 5, 4, skip="dense", linear_tail=2, seed=4),
    "classes": lambda: mlp([6, 5, 4, 3], linear_tail=2, bias=True, seed=5),
    "classes skip": lambda: residual_mlp(6, 5, 4, outputs=3, seed=6),
}


def data(n=12, classes=None):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    draw = torch.rand(n, generator=generator)
    return inputs, torch.where(draw > 0.5, 1.0, -1.0).double() if classes is None else (draw * classes).long()


def classes_of(name):
    return 3 if name.startswith("classes") else None


def setting(name, implementation=None):
    model, classes = MODELS[name](), classes_of(name)
    inputs, labels = data(classes=classes)
    layout = ParameterLayout.of(dict(model.named_parameters()))
    readout = BinaryReadout(labels) if classes is None else MulticlassReadout(labels, classes)
    margins = (implementation or build_margins)(capture(model, inputs[:2]), layout, inputs, readout)
    return model, margins, layout.flatten(dict(model.named_parameters()))


def close(a, b):
    return torch.allclose(a, b, rtol=1e-12, atol=1e-13)


EACH = [(name, implementation) for name in MODELS for implementation in (build_margins, GraphMargins)]
SLOW = [(name, GraphMargins) for name in ("biased chain", "leaky", "classes skip")]


@pytest.mark.parametrize(("name", "implementation"), sampled(EACH, SLOW))
def test_products_of_the_jacobian_are_those_of_autograd(name, implementation):
    model, margins, weights = setting(name, implementation)
    classes = classes_of(name)
    inputs, labels = data(classes=classes)
    seen = margins.evaluate(weights)
    here = margins.linearize(weights, local_slopes(margins, seen))
    jacobian = reference.margin_jacobian(model, inputs, labels, classes)
    generator = torch.Generator().manual_seed(1)
    cotangents = torch.rand(seen.margins.shape, generator=generator, dtype=torch.float64)
    change = torch.randn(len(weights), generator=generator, dtype=torch.float64)
    scores = model(inputs).detach()
    assert close(seen.margins, labels * scores.squeeze(1) if classes is None else class_margins(scores, labels))
    assert close(here.margins, seen.margins)
    assert close(here.vjp(cotangents), jacobian.T @ cotangents.flatten())
    pushed = here.jvp(change)
    assert close(pushed.margins.flatten(), jacobian @ change)
    ends = [margins.evaluate(weights + side * change).preactivations for side in (1e-6, -1e-6)]
    for moved, after, before in zip(pushed.preactivations, *ends, strict=True):
        assert torch.allclose(moved, (after - before) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "implementation"), sampled(EACH, SLOW))
def test_kernel_of_combined_margins(name, implementation):
    """Pairs out of order, examples repeated, each with its own combination of margins."""
    model, margins, weights = setting(name, implementation)
    classes = classes_of(name)
    here = margins.linearize(weights, local_slopes(margins, margins.evaluate(weights)))
    examples = torch.tensor([7, 1, 1, 10, 4])
    cotangents = torch.randn(
        5, *margins.readout.others, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    jacobian = reference.margin_jacobian(model, *data(classes=classes), classes).unflatten(0, (12, -1))[examples]
    rows = (cotangents.view(5, -1, 1) * jacobian).sum(1)
    assert close(here.kernel(examples, cotangents), rows @ rows.T)
    columns = torch.tensor([2, 0, 4])
    assert close(here.kernel(examples, cotangents, columns), rows @ rows[columns].T)


@pytest.mark.parametrize("name", ["chain", "biased chain", "leaky", "ends in a kink", "classes"])
def test_fast_path_and_twin_agree_with_any_slopes(name):
    _, fast, weights = setting(name)
    _, twin, _ = setting(name, GraphMargins)
    assert isinstance(fast, ChainMargins)
    rows = torch.tensor([1, 4, 7, 10])
    slopes = tuple(torch.rand_like(z[rows]) for z in fast.evaluate(weights).preactivations)
    a, b = (margins.restricted(rows).linearize(weights, slopes) for margins in (fast, twin))
    cotangents = torch.rand(4, *fast.readout.others, dtype=torch.float64)
    assert close(a.margins, b.margins)
    assert close(a.vjp(cotangents), b.vjp(cotangents))
    assert close(a.kernel(torch.arange(4), cotangents), b.kernel(torch.arange(4), cotangents))
    assert all(map(close, a.sensitivity(cotangents), b.sensitivity(cotangents)))
    assert len(a.sensitivity(cotangents)) == len(a.squared_gradients()) == len(fast.kinks)


def test_skip_connections_take_the_general_path():
    assert isinstance(setting("skip")[1], GraphMargins)


@pytest.mark.parametrize("name", ["chain", "leaky"])
def test_secant_slopes_carry_one_evaluation_to_the_other(name):
    _, margins, weights = setting(name)
    before, after = margins.evaluate(weights), margins.evaluate(weights + 0.3 * torch.randn_like(weights))
    crossed = 0
    for kink, slope, z0, z1 in zip(
        margins.kinks,
        secant_slopes(margins, before, after),
        before.preactivations,
        after.preactivations,
        strict=True,
    ):
        assert close(slope * (z1 - z0), kink.exact(z1) - kink.exact(z0))
        crossed += int(((z0 > 0) != (z1 > 0)).sum())
    assert crossed > 0
