"""T7 in certificates: slackness within its bound, stationarity against an earlier point."""

import pytest
import torch

import reference
from equipoise import data
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.networks import mlp
from equipoise.theorems.certificate import certify
from equipoise.theorems.checks.stationarity import on_kinks
from equipoise.theorems.evidence_builder import evidence_of_run
from equipoise.theorems.weights import Point


@pytest.fixture(scope="module")
def run():
    model = mlp([5, 4, 1], linear_tail=2, seed=1)
    return flow(model, data.load("separable", n=20, d=5, seed=1), until=LogLoss(-1e8), observe=[])


def claims(run):
    return {claim.name: claim for claim in certify(run).claims if claim.theorem == "T7"}


def jacobian(run, weights):
    """The gradient of every margin of the linear chain, one row an example."""
    model = mlp([5, 4, 1], linear_tail=2)
    model.load_state_dict(weights)
    return reference.margin_jacobian(model, run.data.X, run.data.y)


def test_slackness_is_that_of_the_softmax_and_below_its_bound(run):
    found = claims(run)["slackness of the margins"]
    rows, w = jacobian(run, run.final), torch.cat([weight.flatten() for weight in run.final.values()])
    margins = rows @ w / 2
    weights = torch.softmax(-margins, 0)
    multipliers = weights * w.norm() / (rows.T @ weights).norm()
    expected = float(multipliers @ (margins - margins.min())) / float(margins.min())  # L = 2
    assert found.measured == pytest.approx(expected, rel=1e-3, abs=1e-15)
    assert found.holds
    assert found.bound < 1e-3


def test_stationarity_is_compared_with_a_unit_of_growth_before(run):
    found = claims(run)["residual of stationarity"]
    assert found.standing == "observed"
    assert found.holds
    assert found.measured < 0.5 * found.bound  # it falls about as e^-s
    rows, w = jacobian(run, run.final), torch.cat([weight.flatten() for weight in run.final.values()])
    support = rows @ w / 2 < 1.001 * (rows @ w / 2).min()
    solved = torch.linalg.lstsq(rows[support].T, w[:, None]).solution
    combination = rows[support].T @ solved[:, 0]
    assert bool((solved > 0).all())
    expected = float((w / w.norm() - combination / combination.norm()).norm())
    assert found.measured == pytest.approx(expected, rel=0.05)


def test_a_pair_on_its_kink_leaves_stationarity_open():
    run = flow(mlp([5, 6, 1], seed=2), data.load("separable", n=20, d=5, seed=1), until=LogLoss(-1e3), observe=[])
    evidence = evidence_of_run(run)
    assert not on_kinks(evidence, evidence.points[-1])
    weights = {name: tensor.clone() for name, tensor in run.final.items()}
    x, row = run.data.X[0], weights["layer1.weight"][0]
    row -= (row @ x) / (x @ x) * x  # z = 0 for the first neuron and the first example
    assert on_kinks(evidence, Point(1.0, weights))
