"""Pairs that cross their kink (T6.2): the engine against the flow followed from kink to kink."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import equipoise as eq
import reference

GROWTH, SIZES = 0.2, (0.02, 0.005)
NEGATIVE = {"relu": 0.0, "leaky": 0.3}


def chain(widths, negative, seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(*pair, bias=False) for pair in pairwise(widths)]
    kink = nn.ReLU() if negative == 0 else nn.LeakyReLU(negative)
    return nn.Sequential(*[part for layer in layers for part in (layer, kink)][:-1]).double()


def through(w, X, widths, negative, on):
    """Output and pre-activations of `chain`; with `on` given, of the network that it fixes."""
    h, seen = X, []
    for index, (width, above) in enumerate(pairwise(widths)):
        weight, w = w[: width * above].view(above, width), w[width * above :]
        h = h @ weight.T
        if index < len(widths) - 2:
            seen.append(h.flatten())
            here = h > 0 if on is None else on[: h.numel()].view_as(h)
            on = None if on is None else on[h.numel() :]
            h = torch.where(here, h, negative * h)
    return h.squeeze(1), torch.cat(seen)


def points(n=6, d=3):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return X, torch.sign(X[:, 0] + 0.3 * X[:, 1] * X[:, 2])


def flat(parameters):
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def errors(model, data, exact):
    found = []
    for size in SIZES:
        stepper = eq.steppers.EntropicMidpoint(step_size=size, rtol=1.0)
        run = eq.flow(model, data, until=eq.Growth(GROWTH), stepper=stepper, observe=[eq.Drift()])
        assert run.table().query("quantity == 'relative_drift'").value.max() < 1e-15
        found.append(float((flat(run.final.values()) - exact).norm() / exact.norm()))
    return found


@pytest.mark.parametrize(
    ("widths", "flows"),
    [
        pytest.param((3, 4, 1), [("relu", seed) for seed in (0, 1, 3, 7)], marks=pytest.mark.slow),
        pytest.param((3, 4, 3, 1), [("relu", seed) for seed in (1, 3, 11)], marks=pytest.mark.slow),
        pytest.param((3, 4, 3, 1), [("leaky", seed) for seed in (1, 3, 9)], marks=pytest.mark.slow),
        ((3, 4, 3, 1), [("relu", 3), ("leaky", 3)]),
    ],
)
def test_crossings_cost_no_order(widths, flows):
    """One crossing costs more or less by where in a step it falls: the errors of several flows are added."""
    X, y = points()
    totals, crossings = [0.0] * len(SIZES), 0
    for kink, seed in flows:
        model = chain(widths, NEGATIVE[kink], seed)
        start = flat(model.parameters())

        def margins(w, on, negative=NEGATIVE[kink]):
            return y * through(w, X, widths, negative, on)[0]

        def kinks(w, on, negative=NEGATIVE[kink]):
            return through(w, X, widths, negative, on)[1]

        def grown(w, start=start):
            return float(0.5 * torch.log(w.square().sum() / start.square().sum()) - GROWTH)

        exact, crossed = reference.crossed(margins, kinks, start, grown)
        totals = [sum(pair) for pair in zip(totals, errors(model, (X, y), exact), strict=True)]
        crossings += crossed
    assert crossings > 6
    assert math.log(totals[0] / totals[1]) / math.log(SIZES[0] / SIZES[1]) > 1.7, totals
