"""By how much the layers of a tail must grow until a residual is certain."""

import pytest
import torch

import equipoise as eq
from equipoise.errors import InputError


def test_a_forecast_made_at_the_start_comes_true():
    model, data = eq.networks.mlp([5, 4, 4, 1], linear_tail=3), eq.data.load("separable", n=20, d=5)
    before = eq.forecast(model, 0.02, data.X[:2]).set_index("layer")
    run = eq.flow(model, data, until=eq.Growth(1.5), observe=[])
    after = eq.forecast(run, 0.02).set_index("layer")
    assert (before.growth > 0)[:-1].all()
    for name in before.index:
        grown = float((run.final[name].norm() / run.initial[name].norm()).log())
        assert after.deficit[name] == pytest.approx(before.deficit[name], rel=1e-9, abs=1e-12)
        assert after.growth[name] == pytest.approx(max(0.0, before.growth[name] - grown), abs=1e-9)
        assert after.residual[name] <= after.bound[name] + 1e-12


def test_the_forecast_of_a_network_may_count_from_its_initial_weights():
    model, X = eq.networks.mlp([5, 4, 4, 1], linear_tail=3), torch.ones(2, 5).double()
    initial = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        model.layer3.weight.mul_(3.0)  # not by gradient flow: the laws change, and what they change by counts
    table = eq.forecast(model, 0.01, X, initial=initial)
    assert (table.bound >= table.residual).all()


@pytest.mark.parametrize("residual", [0.0, 1.0, -1.0, float("nan")])
def test_residuals_that_make_no_sense_are_refused(residual):
    with pytest.raises(InputError, match="residual to be a finite number above 0 and below 1"):
        eq.forecast(eq.networks.mlp([3, 2, 1]), residual, torch.ones(2, 3).double())


def test_a_network_alone_needs_inputs():
    with pytest.raises(InputError, match=r"pass example_inputs=X\[:2\]"):
        eq.forecast(eq.networks.mlp([3, 2, 1]))
