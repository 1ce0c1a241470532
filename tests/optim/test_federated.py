import copy

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.optim import fed_avg, fed_lrgd
from equipoise.optim.federated import anchor_parameters, example_gradients, server_weights


class Kernel(nn.Module):
    """`Σ_k a_k exp(-(x - c_k)²)`: smooth in the example."""

    def __init__(self, size=6):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(size).double())
        self.register_buffer("c", torch.linspace(-1, 1, size).double())

    def forward(self, x):
        return torch.exp(-(x - self.c).square()) @ self.a


def loss(output, y):
    return (output - y).square().mean()


def points(n, seed):
    x = 2 * torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)).double() - 1
    return x, torch.sin(2 * x[:, 0])


def server(r):
    x = torch.cos(torch.pi * (torch.arange(r).double() + 0.5) / r)[:, None]
    return x, torch.sin(2 * x[:, 0])


def error(r):
    model, client = Kernel(), points(30, 1)
    weights = server_weights(model, client, server(r), loss, anchor_parameters(model, 6))
    elsewhere = anchor_parameters(model, 2, seed=9)[1]
    exact = example_gradients(model, client, loss, elsewhere).mean(0)
    return float((weights @ example_gradients(model, server(r), loss, elsewhere) - exact).norm() / exact.norm())


def test_gradients_of_a_client_come_from_few_points_of_the_server():
    assert error(2) > 0.1
    assert error(12) < 1e-3 * error(2)


def test_per_example_gradients_are_those_of_autograd():
    model, (X, y) = Kernel(), points(5, 0)
    found = example_gradients(model, (X, y), loss, dict(model.named_parameters()))
    for row, x, target in zip(found, X, y, strict=True):
        torch.testing.assert_close(row, torch.autograd.grad(loss(model(x[None]), target[None]), model.a)[0])


def test_one_round_does_what_averaging_needs_many_for():
    clients = [points(25, seed) for seed in range(4)]
    averaged = fed_avg(Kernel(), clients, loss, rounds=200, lr=0.2)
    alone = fed_lrgd(Kernel(), clients, server(16), loss, steps=200, lr=0.2, anchors=6)
    assert alone.rounds == 1
    assert alone.numbers < averaged.numbers
    assert alone.losses[-1] == pytest.approx(averaged.losses[-1], rel=1e-2)


def test_averaging_one_step_is_gradient_descent_on_all_examples():
    clients = [points(10, 0), points(30, 1)]
    X, y = (torch.cat(each) for each in zip(*clients, strict=True))
    model = Kernel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    start = copy.deepcopy(model)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model(X), y).backward()
        optimizer.step()
    found = fed_avg(start, clients, loss, rounds=3, lr=0.3)
    torch.testing.assert_close(found.model.a, model.a, rtol=1e-12, atol=1e-14)
    assert torch.equal(start.a, Kernel().a)


def test_digits_are_trained_by_clients_in_two_lines():
    X, y = eq.data.load("digits", n=200)
    clients = [(X[k::4], y[k::4]) for k in range(4)]
    torch.manual_seed(0)
    model = nn.Linear(64, 10).double()
    cross_entropy = nn.functional.cross_entropy
    averaged = fed_avg(model, clients, cross_entropy, rounds=20, lr=0.5, local_steps=5)
    alone = fed_lrgd(model, clients, (X[:50], y[:50]), cross_entropy, steps=20, lr=0.5, anchors=2, spread=0.1)
    assert averaged.losses[-1] < 0.2 * averaged.losses[0]
    assert alone.losses[-1] < 0.5 * alone.losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": []}, "expected clients with examples"),
        ({"clients": [(torch.ones(2, 1), torch.ones(3))]}, "expected clients with examples"),
        ({"rounds": 0}, "rounds to be a positive number"),
        ({"lr": float("nan")}, "lr to be a positive number"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"clients": [points(3, 0)], "loss": loss, "rounds": 1, "lr": 0.1} | change
    with pytest.raises(InputError, match=message):
        fed_avg(Kernel(), **arguments)
