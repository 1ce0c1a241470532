"""The last change of sign, step by step, against the weights of every step; and what a certificate says of it."""

import math

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.data import load
from equipoise.networks import mlp

STEPS = 30


def test_changes_are_counted_where_they_happen():
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with eq.watch(model, optimizer, every=1, observe=[eq.Signs()], quiet=True, alarms=[]) as log:
        for step in range(1, 8):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model.weight[0, 1:] += 0.5 if step < 4 else 0.0  # the second is zero, no longer negative, from step 2
    seen = log.table().query("place == 'weight'").pivot_table(index="step", columns="quantity", values="value")
    assert seen.sign_changes[seen.sign_changes > 0].to_dict() == {3: 1.0}
    assert seen.last_sign_change.dropna().unique().tolist() == [3.0]
    assert log.table().query("place == 'bias' and quantity == 'last_sign_change'").value.isna().all()


@pytest.fixture(scope="module")
def run():
    every = [eq.Steps(step) for step in range(1, STEPS)]
    return eq.flow(mlp([5, 4, 1], seed=2), load("separable", n=20, d=5), until=eq.Steps(STEPS), save_at=every)


def last_of(run, differ):
    """The growth of the last state that differs from the one before it, among all of them."""
    states = [run.initial, *(run.saved[f"steps={k}"] for k in range(1, STEPS)), run.final]
    norm = lambda w: math.sqrt(sum(float(t.square().sum()) for t in w.values()))  # noqa: E731
    pairs = [k for k in range(1, len(states)) if differ(states[k - 1], states[k])]
    return math.log(norm(states[pairs[-1]]) / norm(run.initial)) if pairs else math.nan


@pytest.mark.parametrize("name", ["layer1.weight", "layer2.weight"])
def test_the_last_change_is_that_of_the_weights_of_every_step(run, name):
    expected = last_of(run, lambda a, b: bool(((a[name] < 0) != (b[name] < 0)).any()))
    assert run.last("signs", "last_sign_change", name) == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_the_claims_say_what_is_on_record_beside_the_saved_point(run):
    X, _ = run.data
    on = lambda w: X @ w["layer1.weight"].T > 0  # noqa: E731
    flip = last_of(run, lambda a, b: bool((on(a) != on(b)).any()))
    change = last_of(run, lambda a, b: bool(((a["layer1.weight"] < 0) != (b["layer1.weight"] < 0)).any()))
    claims = {claim.name: claim.quantity for claim in eq.certify(run).claims}
    assert flip > 0
    assert claims["stable activation of layer1.weight"].endswith(f"on record, no pair flips after s = {flip:.4g}")
    assert claims["constant signs of layer1.weight"].endswith(f"on record, no sign changes after s = {change:.4g}")


def test_a_model_alone_has_nothing_on_record(run):
    without = eq.certify(run.model, run.data, initial=run.initial)
    assert not any("on record" in claim.quantity for claim in without.claims)
