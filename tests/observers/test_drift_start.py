"""The drift of large matrix laws counts from the first weights, which are kept until a full snapshot asks."""

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.observers import Drift


def test_a_full_snapshot_compares_with_the_values_at_the_start(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 1)).double()
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(8, 5).double()
    laws = eq.invariances(model, x)
    before, states = laws.value(model), []
    init = Drift.init
    monkeypatch.setattr(Drift, "init", lambda self, context: states.append(init(self, context)) or states[-1])
    with eq.watch(model, optimizer, every=2, full_every=3, observe=[Drift()], quiet=True) as log:
        for _ in range(4):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    (wide,) = (law.name for law in laws if law.kind == "linear")
    assert sorted(states[0].weights) == sorted(laws.named(wide).parameters)
    assert states[0].whole is None
    norm = sum(float(weight.detach().square().sum()) for weight in model.parameters())
    for law in laws:
        moved = float((law.value(model) - before[law.name]).norm()) / norm
        assert log.last("drift", "relative_drift", law.name) == pytest.approx(moved, rel=1e-6), law.name
    assert set(log.table().query("place == @wide and quantity == 'relative_drift'").step) == {4}


def test_a_sum_that_is_small_beside_its_terms_is_rounded_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 1))
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.copy_(100 * (parameter - parameter.mean(0)))
    optimizer, x = torch.optim.SGD(model.parameters(), lr=1e-6), torch.randn(8, 3)
    with eq.watch(model, optimizer, every=1, observe=[Drift()], quiet=True) as log:
        for _ in range(4):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert log.last("drift", "excess", "shift of 0.weight + 0.bias") is not None
    assert log.alarms == []
