"""Bounds against residuals in 60 digits: a certificate claims no more than float64 can support."""

from itertools import pairwise

import mpmath
import pytest
import torch
from torch import nn

from equipoise.graph.capture import capture
from equipoise.graph.chain import Layer
from equipoise.theorems import linear_tail as tail
from equipoise.theorems import spectral_bounds
from equipoise.theorems.rounding import score_rounding

mpmath.mp.dps = 60


def exact(tensor):
    """The very numbers that are stored."""
    return mpmath.matrix([[mpmath.mpf(entry) for entry in row] for row in tensor.tolist()])


def residual(weight, rank):
    """`Σ_{i>r} σ_i² / Σ σ_i²` in 60 digits."""
    values = sorted((value**2 for value in mpmath.svd_r(exact(weight), compute_uv=False)), reverse=True)
    return mpmath.fsum(values[rank:]) / mpmath.fsum(values)


def nearly_balanced(widths, rank, noise, scale, seed):
    """Layers of one rank that share their bases: every conserved matrix is zero but for rounding and noise."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    bases = [torch.linalg.qr(normal(width, min(rank, width))).Q for width in widths]
    strengths = torch.diag(scale * torch.arange(1.0, rank + 1).double())
    found = {}
    for k, (v, u) in enumerate(pairwise(bases)):
        found[f"w{k}"] = u @ strengths[: u.shape[1], : v.shape[1]] @ v.T + noise * normal(len(u), len(v))
    return found


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
@pytest.mark.parametrize("noise", [0.0, 1e-13, 1e-7])
@pytest.mark.parametrize(("widths", "rank"), [([5, 6, 4, 1], 1), ([6, 5, 5, 3], 2)])
def test_the_exact_residual_is_below_the_bound(widths, rank, noise, scale):
    weights = nearly_balanced(widths, rank, noise * scale, scale, seed=len(widths))
    layers = tuple(Layer(name, None, None) for name in weights)
    bounds = tail.certified_bounds(tail.LinearTail(layers, rank), weights, weights)
    for name, bound in bounds.items():
        assert residual(weights[name], rank) <= bound
    if noise == 0.0:
        first = next(iter(bounds.values()))
        assert first < 1e-11 or rank > 1  # of two classes and more the last layer's own shift remains


def test_a_bound_without_rounding_would_be_wrong():
    """Why it is there: some balanced networks have an exact residual above the bound of exact arithmetic, zero."""
    above = 0
    for seed in range(20):
        weights = nearly_balanced([5, 6, 4, 1], 1, 0.0, 1.0, seed)
        bare = 0.0
        for lower, upper in reversed(list(pairwise(weights.values()))):
            bare += spectral_bounds.excess(upper.T @ upper - lower @ lower.T, 1)
        above += residual(weights["w0"], 1) > max(bare, 0.0) / float(weights["w0"].square().sum())
    assert above > 0


SMOOTH = {
    nn.Tanh: mpmath.tanh,
    nn.Sigmoid: lambda z: 1 / (1 + mpmath.exp(-z)),
    nn.GELU: lambda z: z * mpmath.ncdf(z),
    nn.SiLU: lambda z: z / (1 + mpmath.exp(-z)),
    nn.LeakyReLU: lambda z: z if z > 0 else mpmath.mpf(0.01) * z,
}


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_scores_are_off_by_no_more_than_their_bound(activation, scale):
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 1)).double()
    X = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    scores = model(X).detach()
    bound = score_rounding(capture(model, X), dict(model.named_parameters()), X)
    assert bound is not None
    values = exact(X).T
    for layer in model:
        if isinstance(layer, nn.Linear):
            bias = exact(layer.bias.detach()[:, None]) * mpmath.ones(1, len(X))
            values = exact(layer.weight.detach()) * values + bias
        else:
            values = values.apply(SMOOTH[activation])
    errors = [abs(mpmath.mpf(float(scores[i, 0])) - values[0, i]) for i in range(len(X))]
    assert max(errors) <= bound
    assert bound < 1e-11 * max(1.0, float(scores.abs().max())) * scale**2  # and it says something


class Shifted(nn.Linear):
    def forward(self, x):
        return torch.relu(-1e6 * (2.0 - super().forward(x)) - 3e6).sub(7.0, alpha=-1e6).sum(1, keepdim=True)


def test_numbers_in_a_network_count_by_their_size():
    model, X = Shifted(3, 5).double(), torch.ones(2, 3).double()
    positive = nn.Linear(3, 5).double()
    with torch.no_grad():
        positive.weight.copy_(model.weight.abs())
        positive.bias.copy_(model.bias.abs())
        largest = (1e6 * (2.0 + positive(X)) + 3e6 + 7e6).sum(1).max()
    bound = score_rounding(capture(model, X), dict(model.named_parameters()), X)
    assert bound == pytest.approx(22 * torch.finfo(torch.float64).eps * float(largest), rel=1e-12)  # as many roundings
