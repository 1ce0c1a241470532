import copy
import io

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.optim import LowRankGD, oracle


class Point(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.w = nn.Parameter(torch.ones(size, dtype=torch.float64))


def quadratic(size=200, active=5, seed=0):
    """A quadratic whose gradients lie in `active` directions."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, active, generator=generator).double())[0]
    curvature = torch.linspace(1.0, 2.0, active).double()
    model = Point(size)
    loss = lambda model: 0.5 * (curvature * (basis.T @ model.w).square()).sum()  # noqa: E731
    return model, loss


def gradient_descent_calls(model, loss, lr, tolerance):
    calls = 0
    while True:
        model.w.grad = None
        loss(model).backward()
        calls += model.w.numel()
        if float(model.w.grad.norm()) <= tolerance:
            return calls
        model.w.data -= lr * model.w.grad


def test_directional_derivatives_take_a_third_of_the_calls_at_most_where_gradients_are_of_low_rank():
    model, loss = quadratic()
    start = copy.deepcopy(model)
    torch.manual_seed(0)
    optimizer = LowRankGD(model.parameters(), 5, oracle(model, loss), lr=0.4, tolerance=1e-4)
    steps = 0
    while not optimizer.converged:
        optimizer.step()
        steps += 1
    calls = gradient_descent_calls(start, loss, 0.4, 1e-4)
    assert 3 * optimizer.calls <= calls
    assert steps <= 1.1 * calls / 200
    assert float(torch.autograd.grad(loss(model), model.w)[0].norm()) <= 1e-4


def test_with_all_directions_it_is_gradient_descent():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    X, y = torch.randn(9, 3).double(), torch.randn(9, 1).double()
    loss = lambda model: (model(X) - y).square().mean()  # noqa: E731
    other = copy.deepcopy(model)
    size = sum(parameter.numel() for parameter in model.parameters())
    optimizer = LowRankGD(model.parameters(), size, oracle(model, loss), lr=0.1, spread=0.5)
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(5):
        plain.zero_grad()
        loss(other).backward()
        plain.step()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("refresh", ["residual", "converged"])
def test_a_new_basis_is_taken_where_the_old_one_stalls(refresh):
    """Two directions in an active subspace of five."""
    results = {}
    for kind in ("never", refresh):
        model, loss = quadratic(40)
        torch.manual_seed(0)
        optimizer = LowRankGD(model.parameters(), 2, oracle(model, loss), lr=0.4, tolerance=1e-5, refresh=kind)
        for _ in range(1500):
            optimizer.step()
            if optimizer.converged:
                break
        results[kind] = float(torch.autograd.grad(loss(model), model.w)[0].norm())
    assert results[refresh] <= 1e-5
    assert results["never"] > 100 * results[refresh]


def test_state_goes_through_a_file_bit_for_bit():
    model, loss = quadratic(30, 3)
    torch.manual_seed(0)
    optimizer = LowRankGD(model.parameters(), 3, oracle(model, loss), lr=0.1)
    for _ in range(3):
        optimizer.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file)
    other, _ = quadratic(30, 3)
    other.load_state_dict(loaded["model"])
    again = LowRankGD(other.parameters(), 3, oracle(other, loss), lr=0.1)
    again.load_state_dict(loaded["optimizer"])
    for _ in range(4):
        assert torch.equal(optimizer.step(), again.step())
    assert torch.equal(model.w, other.w)
    assert optimizer.calls == again.calls


def test_groups_schedulers_and_ascent():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    X = torch.randn(5, 3).double()
    groups = [{"params": model[0].parameters(), "lr": 0.0 + 1e-12}, {"params": model[1].parameters()}]
    loss = oracle(model, lambda model: model(X).mean())
    optimizer = LowRankGD(groups, 4, loss, lr=0.1, maximize=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    before = copy.deepcopy(model.state_dict())
    first = float(optimizer.step())
    scheduler.step()
    assert optimizer.param_groups[1]["lr"] == 0.05
    assert float(optimizer.step()) > first
    torch.testing.assert_close(model[0].weight.detach(), before["0.weight"], rtol=0, atol=1e-10)
    assert not torch.equal(model[1].weight, before["1.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "expected a rank from 1 to 4"),
        ({"rank": 5}, "expected a rank from 1 to 4"),
        ({"rank": 1, "lr": 0.0}, "expected lr to be a positive number"),
        ({"rank": 1, "lr": float("nan")}, "expected lr to be a positive number"),
        ({"rank": 1, "tolerance": -1.0}, "expected tolerance to be a positive number"),
        ({"rank": 1, "refresh": "often"}, "expected refresh"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    model = Point(4)
    with pytest.raises(InputError, match=message):
        LowRankGD(model.parameters(), oracle=oracle(model, lambda model: model.w.sum()), **arguments)


def test_frozen_parameters_are_refused_by_shape():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    with pytest.raises(InputError, match=r"one of shape \(2,\) that does not"):
        LowRankGD(model.parameters(), 1, oracle(model, lambda model: model(torch.ones(3)).sum()))


def test_it_trains_digits_in_two_lines():
    X, y = eq.data.load("digits", classes=(0, 1), n=80)
    torch.manual_seed(0)
    model = nn.Linear(64, 1, bias=False).double()
    loss = oracle(model, lambda model: nn.functional.soft_margin_loss(model(X).squeeze(1), y))
    optimizer = LowRankGD(model.parameters(), rank=4, oracle=loss, lr=1.0)
    values = [float(optimizer.step()) for _ in range(40)]
    assert values[-1] < 0.1 * values[0]


def test_a_batch_norm_in_training_mode_is_differentiated_and_its_statistics_stay():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1)).double()
    X, y = torch.randn(20, 4).double(), torch.randn(20, 1).double()
    loss = oracle(model, lambda model: (model(X) - y).square().mean())
    optimizer = LowRankGD(model.parameters(), sum(each.numel() for each in model.parameters()), loss, lr=0.1)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    twin = copy.deepcopy(model)
    descent = torch.optim.SGD(twin.parameters(), lr=0.1)
    (twin(X) - y).square().mean().backward()
    descent.step()
    optimizer.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
