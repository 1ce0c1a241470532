"""The observers of features and of neurons beside the data, in a training loop and in a flow."""

import pytest
import torch
from torch import nn

import equipoise as eq
import reference
from equipoise import measure
from equipoise.data import load
from equipoise.networks import mlp


def test_collapse_reads_what_each_layer_reads():
    """Behind normalisation, GELU and convolution: features by hand, from the modules themselves."""
    torch.manual_seed(0)
    X, y = load("digits", n=80, seed=0)
    conv, head = nn.Conv2d(1, 3, 3).double(), nn.Linear(108, 10).double()
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), conv, nn.BatchNorm2d(3).double(), nn.GELU(), nn.Flatten(), head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.watch(model, optimizer, every=1, observe=[eq.ClassFeatures((X, y))], quiet=True, alarms=[]) as log:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), y).backward()
            optimizer.step()
    assert log.off == {}
    assert model.training
    with torch.no_grad():
        features = model.eval()[:-1](X)
        output = head(features)
    found = reference.collapse_figures(features, y, head.weight.detach())
    for name, value in found.items():
        assert log.last("class_features", name, "5.weight") == pytest.approx(value, rel=1e-6)
    mismatches = [reference.mismatched(features, y), reference.mismatched(output, y)]
    assert log.last("class_features", "mismatch", "5.weight") == pytest.approx(mismatches[0])
    assert log.last("class_features", "effective_depth", "") == measure.effective_depth(mismatches)
    assert "1.weight" not in set(log.table().query("quantity == 'self_duality'").place)


def test_neurons_turn_to_the_data_before_the_loss_falls():
    """Min, Mallada & Vidal (2024): examples of a class have positive inner products, those of two classes negative."""
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([1.0, -1.0]).repeat(8).double()
    X = y[:, None] * (torch.ones(6).double() + 0.3 * torch.randn(16, 6, generator=generator, dtype=torch.float64))
    run = eq.flow(
        mlp([6, 20, 1], scale=1e-3), (X, y), loss="logistic", until=eq.LogLoss(-1.5), observe=[eq.DataAlignment((X, y))]
    )
    table = run.table().query("observer == 'data_alignment' and quantity == 'aligned_share'")
    early = table[table.log_loss > -0.6]
    assert table.value.iloc[0] < 0.6
    assert early.value.iloc[-1] == 1.0
    last = reference.neuron_cones(run.final["layer1.weight"], X, y)
    on = [cosine for cosine, *_, off in last if not off]
    assert run.last("data_alignment", "mean_cosine", "layer1.weight") == pytest.approx(sum(on) / len(on), rel=1e-9)
    assert sum(on) / len(on) > 0.9


def test_cones_are_those_of_every_pair():
    generator = torch.Generator().manual_seed(3)
    weight, X = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (40, 4))
    y = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    found = measure.neuron_alignment(weight, X, y)
    each = zip(found.cosines, found.positive, found.negative, found.off, strict=True)
    for (cosine, *cones), expected in zip(each, reference.neuron_cones(weight, X, y), strict=True):
        assert float(cosine) == pytest.approx(expected[0], abs=1e-12)
        assert [bool(cone) for cone in cones] == list(expected[1:])
    with pytest.raises(eq.errors.InputError, match="inputs of 3 numbers"):
        measure.neuron_alignment(weight, X[:, :2], y)


def test_spectra_of_a_flow_are_whole():
    run = eq.flow(mlp([5, 6, 1]), load("separable", n=20, d=5), until=eq.Steps(3), observe=[eq.Spectrum(r=2)])
    sigma = torch.linalg.svdvals(run.final["layer1.weight"])
    p = sigma / sigma.sum()
    expected = float(torch.exp(-(p * p.log()).sum())) / 5
    assert run.last("spectrum", "normalised_effective_rank", "layer1.weight") == pytest.approx(expected)
    beyond = float(sigma[2:].square().sum() / sigma.square().sum())
    assert run.last("spectrum", "energy_beyond_2", "layer1.weight") == pytest.approx(beyond)
