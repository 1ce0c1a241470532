"""The observers of a training loop, in a flow: the same values, the same readings where both have them."""

import pytest
import torch

import equipoise as eq
from equipoise.data import load
from equipoise.networks import mlp


@pytest.fixture(scope="module")
def run():
    X, y = load("separable", n=20, d=5, seed=0).X, load("separable", n=20, d=5, seed=0).y
    observe = [eq.Residual(), eq.Activity(X), eq.Activity(), eq.Margin((X, y)), eq.Margin(), eq.Spectrum()]
    return eq.flow(mlp([5, 6, 4, 1], linear_tail=2), (X, y), until=eq.LogLoss(-50.0), observe=observe)


def test_the_gradient_of_every_state_obeys_the_laws(run):
    residuals = run.table().query("observer == 'residual' and quantity == 'residual'")
    assert set(residuals.place) == {"layer1.weight → layer2.weight", "layer2.weight → layer3.weight"}
    assert residuals.value.max() < 1e-14


def test_a_probe_of_the_training_set_sees_what_the_flow_sees(run):
    table = run.table()
    for observer, quantity, place in [("activity", "pattern_classes", "layer1.weight"), ("margin", "minimum", "")]:
        rows = table[(table.observer == observer) & (table.quantity == quantity) & (table.place == place)]
        probed, own = (rows.groupby("step").value.nth(k).to_numpy() for k in (0, 1))
        assert probed == pytest.approx(own, rel=1e-9)
        assert len(probed) > 5


def test_spectra_in_a_flow_are_exact(run):
    for name, weight in run.model.named_parameters():
        sigma = torch.linalg.svdvals(weight.detach())
        assert run.last("spectrum", "sigma_1", name) == pytest.approx(float(sigma[0]), rel=1e-13)
    assert "error_bound" not in set(run.table().quantity)
