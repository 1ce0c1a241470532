"""For every assumption a run that breaks it alone, and a certificate that names it."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from equipoise import data
from equipoise.errors import InputError
from equipoise.integrate.goals import LogLoss, Steps
from equipoise.integrate.loop import flow
from equipoise.integrate.run import Run
from equipoise.integrate.steppers import GradientDescent
from equipoise.laws import Between, Full, invariances
from equipoise.networks import mlp
from equipoise.theorems.certificate import certify
from equipoise.theorems.checks.stability import undecided_pairs


def standings(certificate):
    return {found.name: found.standing for found in certificate.assumptions}


def broken(certificate):
    return [name for name, standing in standings(certificate).items() if standing == "failed"]


@pytest.fixture(scope="module")
def examples():
    return data.load("separable", n=30, d=10, seed=0)


@pytest.fixture(scope="module")
def run(examples):
    return flow(mlp([10, 8, 8, 1], linear_tail=2, seed=0), examples, until=LogLoss(-1e4))


def descended(model, examples, optimizer, steps, before_step=lambda: None):
    """Plain training; returns the initial weights."""
    X, y = examples
    initial = copy.deepcopy(dict(model.named_parameters()))
    for _ in range(steps):
        optimizer.zero_grad()
        torch.exp(-y * model(X).squeeze(1)).mean().backward()
        before_step()
        optimizer.step()
    return initial


def test_nothing_is_broken_by_gradient_flow(run):
    certificate = certify(run)
    assert broken(certificate) == []
    assert certificate.holds


def test_adam_breaks_the_laws_and_what_survives_is_said(examples):
    model = mlp([10, 8, 8, 1], linear_tail=2, seed=0)
    initial = descended(model, examples, torch.optim.Adam(model.parameters(), lr=0.01), 150)
    certificate = certify(model, examples, initial=initial)
    assert broken(certificate) == ["laws conserved"]
    assert certificate.failed == ("laws conserved",)
    today = [claim for claim in certificate.claims if claim.name.endswith("from today's matrices")]
    assert [claim.standing for claim in today] == ["verified"] * 3
    assert all(claim.holds for claim in today)
    assert any("under any optimizer" in note for note in certificate.notes)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_large_steps_and_momentum_break_the_laws(examples, momentum):
    model = mlp([10, 8, 8, 1], linear_tail=2, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=momentum)
    initial = descended(model, examples, optimizer, 60)
    assert broken(certify(model, examples, initial=initial)) == ["laws conserved"]


def test_steps_that_move_the_laws_by_a_hundred_billionth_break_them(examples):
    """Ten steps of 2e-3 on top of a flow: a drift that only a tolerance at rounding tells from none."""
    run = flow(mlp([10, 8, 8, 1], linear_tail=2, seed=0), examples, until=LogLoss(-6))
    descended(run.model, examples, torch.optim.SGD(run.model.parameters(), lr=2e-3), 10)
    certificate = certify(run.model, examples, initial=run.initial)
    assert broken(certificate) == ["laws conserved"]
    drift = next(found.measured for found in certificate.assumptions if found.name == "laws conserved")
    assert 1e-12 < drift < 1e-10


def test_with_the_predicted_defects_gradient_descent_is_certified(examples):
    model = mlp([10, 8, 8, 1], linear_tail=2, seed=0)
    optimizer, laws, predicted = torch.optim.SGD(model.parameters(), lr=0.3), invariances(model, examples[0][:2]), {}

    def add_up():
        for name, prediction in laws.predict_drift(model, optimizer).items():
            predicted[name] = predicted.get(name, 0.0) + prediction.change

    initial = descended(model, examples, optimizer, 60, add_up)
    certificate = certify(model, examples, initial=initial, predicted=predicted)
    assert broken(certificate) == []
    assert certificate.holds
    law = next(found for found in certificate.assumptions if found.name == "laws conserved")
    assert law.measured < 1e-15
    wrong = {name: 1.001 * change for name, change in predicted.items()}
    assert broken(certify(model, examples, initial=initial, predicted=wrong)) == ["laws conserved"]


def test_a_run_of_gradient_descent_keeps_count_itself(examples, tmp_path):
    model, steps = mlp([10, 8, 8, 1], linear_tail=2, seed=0), Steps(200)
    run = flow(model, examples, until=steps, stepper=GradientDescent(lr=0.5), out=tmp_path / "run")
    for finished in (run, Run.load(tmp_path / "run", model, examples)):
        certificate = certify(finished)
        assert broken(certificate) == []
        assert certificate.holds
    assert broken(certify(replace(run, defects={}))) == ["laws conserved"]


@pytest.mark.parametrize(
    ("activation", "name"), [pytest.param(nn.Tanh, "tanh", marks=pytest.mark.slow), (nn.GELU, "gelu")]
)
def test_an_activation_that_is_not_homogeneous_breaks_homogeneity_alone(examples, activation, name):
    torch.manual_seed(0)
    below = nn.Sequential(nn.Linear(10, 8, bias=False), activation())
    model = nn.Sequential(*below, nn.Linear(8, 8, bias=False), nn.Linear(8, 1, bias=False)).double()
    certificate = certify(flow(model, examples, until=LogLoss(-30)))
    assert broken(certificate) == ["homogeneous"]
    assert certificate.holds
    homogeneous = next(found for found in certificate.assumptions if found.name == "homogeneous")
    assert homogeneous.why == f"no degree: {name} of what has degree 1"
    # nothing of growth, activity and margins, which need what failed
    assert {claim.theorem for claim in certificate.claims} <= {"T3.1", "T3.2", "T3.4", "T5.2"}
    assert max(claim.bound for claim in certificate.claims if claim.theorem == "T3.1") < 0.5  # says something


def test_data_that_are_not_separated(run):
    X, y = run.data
    flipped = y.clone()
    flipped[0] = -flipped[0]
    certificate = certify(run.model, (X, flipped), initial=run.initial)
    assert broken(certificate) == ["separated"]
    assert not certificate.holds


@dataclass(frozen=True)
class Polynomial:
    """`ℓ(m) = (1 + m)^{-2}` for positive margins: no exponential tail."""

    name: str = "polynomial"
    multiclass: bool = False
    exponential_tail: bool = False

    def potential(self, margins):
        return 2 * torch.log1p(margins.clamp(min=0))

    def differential(self, margins):
        raise NotImplementedError

    def log_at_zero(self):
        return 0.0


def test_a_loss_without_an_exponential_tail(run):
    certificate = certify(run.model, run.data, initial=run.initial, loss=Polynomial())
    assert broken(certificate) == ["exponential tail"]
    assert not certificate.holds


def test_stale_and_forged_weights(run):
    stale = certify(replace(run, final=run.saved["growth=0.75"]))
    assert broken(stale) == ["weights of the run"]
    assert not stale.holds
    forged = {name: weight * (1 + 1e-9) for name, weight in run.final.items()}
    assert "weights of the run" in broken(certify(replace(run, final=forged)))


def test_another_start_than_that_of_the_run(run):
    other = dict(mlp([10, 8, 8, 1], linear_tail=2, seed=1).named_parameters())
    assert broken(certify(replace(run, initial=other, saved={}))) == ["laws conserved"]


def test_patterns_at_the_limit_are_claimed_of_homogeneous_networks_only(examples, run):
    assert "T4.1" in {claim.theorem for claim in certify(run).claims}
    biased = flow(mlp([10, 8, 8, 1], linear_tail=2, bias=True, seed=0), examples, until="growth=0.8")
    assert "T4.1" not in {claim.theorem for claim in certify(biased).claims}
    with pytest.raises(InputError, match="terms of degrees 2 and 1"):
        undecided_pairs(biased)


def test_a_bias_left_out_of_the_law(examples):
    run = flow(mlp([10, 8, 8, 1], linear_tail=2, bias=True, seed=0), examples, until=LogLoss(-30))
    X, _ = run.data
    assert "laws conserved" not in broken(certify(run.model, run.data, initial=run.initial))
    bare = Between(("layer2.weight",), ("layer3.weight",), Full(8))
    stated = invariances(run.model, X[:2], interfaces=[bare])
    certificate = certify(run.model, run.data, initial=run.initial, laws=stated)
    assert set(broken(certificate)) == {"homogeneous", "laws conserved"}  # biases alone cost the former
    assert certificate.failed == ("laws conserved",)
    whole = Between(("layer2.weight", "layer2.bias"), ("layer3.weight",), Full(8))
    stated = invariances(run.model, X[:2], interfaces=[whole])
    assert certify(run.model, run.data, initial=run.initial, laws=stated).holds
