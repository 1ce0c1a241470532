"""Settings that other integrators of gradient flow are known to fail on, and pairs of classes that are hard."""

import math

import pytest
import torch

import equipoise as eq
from helpers.images import needs_images


def stiff_setting(linear_tail):
    """20-64-64-1 without biases, 64 points: published solvers stall at a kink, drift by 60 %, or end in NaN here."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 20, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.rand(64, generator=generator) > 0.5, 1.0, -1.0).double()
    if linear_tail == 3:  # a linear network can only fit what a hyperplane separates
        labels = torch.sign(inputs[:, 0] + 0.5 * inputs[:, 1])
    return eq.networks.mlp([20, 64, 64, 1], linear_tail=linear_tail), (inputs, labels)


@pytest.mark.parametrize(
    ("linear_tail", "depth"),
    [(1, -2000.0), pytest.param(1, -1e6, marks=pytest.mark.slow), (3, -1e6)],
)
def test_no_stall_no_drift_and_any_depth_of_loss(linear_tail, depth):
    run = eq.flow(
        *stiff_setting(linear_tail), until=eq.LogLoss(depth), observe=[eq.Drift(), eq.Margin(kkt_every=10**9)]
    )
    table = run.table()
    assert run.status == "reached"
    assert run.log_loss <= depth
    assert run.log_loss >= depth * (1 + 2e-8)
    assert table[table.quantity == "relative_drift"].value.max() < 1e-14
    assert all(bool(torch.isfinite(weights).all()) for weights in run.final.values())
    check_monotone(run)


def check_monotone(run, slack=1e-9):
    """The smoothed normalised margin never decreases once the data are separated (Lyu & Li 2020)."""
    table = run.table()
    seen = table[(table.quantity == "smoothed_normalised") & (table.log_loss < -math.log(len(run.data.y)))].value
    assert len(seen) > 20
    assert float((seen.diff() / seen.abs()).min()) > -slack


def test_the_active_set_stays_small_along_a_run():
    """Some 45 examples carry the margin of digits 0 and 1; those that come into play enter a few at a time."""
    run = eq.flow(
        eq.networks.mlp([64, 16, 16, 16, 1], linear_tail=2),
        eq.data.load("digits", (0, 1)),
        until=eq.LogLoss(-1e5),
        observe=[],
    )
    table = run.table()
    deep = table[(table.quantity == "active") & (table.log_loss < -1e3)].value
    assert len(deep) > 10
    assert deep.max() <= 100


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n"), [("digits", None), pytest.param("mnist", 500, marks=needs_images)])
def test_hard_pairs_reach_any_depth(name, n):
    """3 against 5: hundreds of pairs slide on their kinks, and separation takes a hundred support examples."""
    data = eq.data.load(name, (3, 5), n=n)
    model = eq.networks.mlp([data.X.shape[1], 64, 64, 64, 64, 1], linear_tail=3)
    run = eq.flow(model, data, until=eq.LogLoss(-1e6), observe=[eq.Drift()])
    table = run.table()
    assert run.status == "reached"
    assert table[table.quantity == "relative_drift"].value.max() < 1e-12


@pytest.mark.slow
def test_exponential_and_logistic_flows_from_one_separated_point_stay_together():
    """From log R = -40, where their weights agree to e^-40: under 1e-9 apart at equal growth, to log R = -1e6."""
    data = eq.data.load("separable", n=30, d=5)
    start = eq.flow(eq.networks.mlp([5, 6, 6, 1], linear_tail=3), data, until=eq.LogLoss(-40.0), observe=[])
    points = [eq.Growth(0.25 * k) for k in range(1, 9)]
    ends = [
        eq.flow(start.model, data, loss, until=eq.LogLoss(-1e6), save_at=points, observe=[])
        for loss in ("exponential", "logistic")
    ]
    assert len(ends[0].saved) >= 6
    for point, weights in ends[0].saved.items():
        other = ends[1].saved[point]
        apart = math.sqrt(sum(float((weights[name] - other[name]).square().sum()) for name in weights))
        assert apart / math.sqrt(sum(float(w.square().sum()) for w in weights.values())) < 1e-9, point
