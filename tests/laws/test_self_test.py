"""Laws are tested as soon as they are derived; what fails is dropped and said."""

import copy

import pytest
import torch
from torch import nn

from equipoise.graph.ops import OPERATORS
from equipoise.laws import FalseLaw, LawPlan, invariances, self_test


def network(kind: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), kind(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))


@pytest.fixture
def misread(monkeypatch):
    """A matcher that is wrong: tanh read as if it were positively homogeneous."""
    monkeypatch.setitem(OPERATORS, "tanh", OPERATORS["relu"])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_false_law_is_dropped_and_reported_with_its_operations(misread, device):
    with pytest.warns(FalseLaw, match=r"dropped as false.*0\.weight → 2\.weight.*linear, tanh"):
        laws = invariances(network(nn.Tanh).to(device), torch.ones(2, 3))
    assert [law.name for law in laws] == ["2.weight → 4.weight"]
    (refuted,) = laws.coverage.refuted
    assert refuted.residual > 1e-4
    assert "dropped as false: 0.weight → 2.weight" in str(laws.coverage)


def test_without_the_test_it_says_so(misread):
    laws = invariances(network(nn.Tanh), torch.ones(2, 3), verify=False)
    assert len(laws) == 2
    assert "not tested: verify=False" in str(laws.coverage)


def test_a_large_model_is_tested_only_if_asked(monkeypatch, misread):
    monkeypatch.setattr(self_test, "LIMIT", 10)
    assert "not tested: 0 million parameters, more than 0" in str(
        invariances(network(nn.Tanh), torch.ones(2, 3)).coverage
    )
    with pytest.warns(FalseLaw):
        invariances(network(nn.Tanh), torch.ones(2, 3), verify=True)


def test_a_law_broken_by_an_eps_is_tested_without_it(monkeypatch):
    seen = {}

    def record(plan, *args):
        found = residuals(plan, *args)
        seen.update(zip([law.name for law in plan.laws], map(float, found), strict=True))
        return found

    residuals = LawPlan.residuals
    monkeypatch.setattr(LawPlan, "residuals", record)
    parts = [nn.Linear(3, 8), nn.LayerNorm(8, eps=0.1), nn.ReLU(), nn.Linear(8, 8), nn.GroupNorm(2, 8, eps=0.1)]
    laws = invariances(
        nn.Sequential(*parts, nn.RMSNorm(8, eps=0.1), nn.Linear(8, 8), nn.BatchNorm1d(8, eps=0.1)), torch.ones(5, 3)
    )
    assert sum(not law.exact for law in laws) >= 3
    assert all(residual < 1e-12 for residual in seen.values())
    assert len(seen) == len(laws)


def test_model_buffers_gradients_and_random_numbers_stay_as_they_are():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    invariances(model, torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
