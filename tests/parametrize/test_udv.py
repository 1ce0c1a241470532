import copy

import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.parametrize import constrain, project, prune, udv


def test_the_start_is_the_nearest_weight_of_the_rank():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 6, 3).double()
    weight = model.weight.detach().clone()
    values = torch.linalg.svdvals(weight.flatten(1))
    udv(model, rank=4, radius=2.0)
    found = model.weight.detach()
    assert found.shape == weight.shape
    assert float((found - weight).norm()) == pytest.approx(float(values[4:].norm()), rel=1e-10)
    left, _, right = model.parametrizations.weight.parameters()
    assert float(left.detach().norm()) == pytest.approx(2.0)
    assert float(right.detach().norm()) == pytest.approx(2.0)


class Whole(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self):
        return self.weight


class BurerMonteiro(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(factor)

    def forward(self):
        return self.factor @ self.factor.T


def test_completion_of_a_positive_matrix_is_of_low_rank_where_the_square_of_a_factor_is_not():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(30, 3, generator=generator).double()
    matrix = true @ true.T
    matrix /= matrix.norm()
    seen = torch.rand(30, 30, generator=generator) < 0.5
    seen = seen.triu() | seen.triu().T
    start = torch.randn(30, 30, generator=generator).double()
    ours = udv(Whole(start @ start.T / 30), rank=30, names=["weight"], symmetric=True)
    with torch.no_grad():
        left, values = ours.parametrizations.weight.parameters()
        left.copy_(start / start.norm())
        values.fill_(1.0)
    plain = BurerMonteiro(start / start.norm())
    torch.testing.assert_close(ours(), plain())
    found = []
    for model in (ours, plain):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        if model is ours:
            constrain(optimizer, model)
        for _ in range(4000):
            optimizer.zero_grad()
            (model() - matrix)[seen].square().sum().div(2).backward()
            optimizer.step()
        weight = model().detach()
        spectrum = torch.linalg.svdvals(weight)
        unseen = float((weight - matrix)[~seen].norm() / matrix[~seen].norm())
        found.append((float(spectrum[3] / spectrum[0]), unseen))
    (ratio, error), (other_ratio, other_error) = found
    assert ratio < 1e-2
    assert error < 0.02
    assert other_ratio > 0.1
    assert other_error > 0.2
    left, values = ours.parametrizations.weight.parameters()
    assert float(left.detach().norm()) <= 1 + 1e-12
    assert float(values.detach().min()) >= 0
    before = ours().detach().clone()
    assert prune(ours, 1e-2) == {"weight": 3}
    torch.testing.assert_close(ours().detach(), before, rtol=0, atol=0.02 * float(before.abs().max()))


def test_constraints_hold_after_every_step_and_survive_copies():
    torch.manual_seed(0)
    model = udv(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), rank=2, radius=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    handle = constrain(optimizer, model)
    for _ in range(3):
        model(torch.randn(7, 5)).square().sum().backward()
        optimizer.step()
        for layer in (model[0], model[2]):
            left, _, right = layer.parametrizations.weight.parameters()
            assert max(float(left.detach().norm()), float(right.detach().norm())) <= 0.5 + 1e-6
    handle.remove()
    other = udv(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), rank=2, radius=0.5)
    other.load_state_dict(copy.deepcopy(model).state_dict())
    X = torch.randn(3, 5)
    torch.testing.assert_close(other(X), model(X))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "expected a rank from 1 to 2"),
        ({"rank": 3}, "expected a rank from 1 to 2"),
        ({"rank": 1, "radius": 0.0}, "expected a positive radius"),
        ({"rank": 1, "symmetric": True}, "expected a square weight"),
        ({"rank": 1, "names": ["bias"]}, "with two axes or more; found one of shape"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(arguments, message):
    model = nn.Linear(4, 2)
    with pytest.raises(InputError, match=message):
        udv(model, **arguments)
    assert type(model) is nn.Linear
    with pytest.raises(InputError, match="expected a model with weights U D Vᵀ"):
        project(model)
