"""Optimizers whose steps are more than one call, and steps much larger than the weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import equipoise as eq


class LayerwiseRates(torch.optim.SGD):
    """Changes the gradients, and then takes the step of its base class."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad.mul_(0.1 * p.norm() / p.grad.norm())
        return super().step(closure)


def train(model, optimizer, steps=4, loss=lambda out: out.square().mean(), **arguments):
    X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    with eq.watch(model, optimizer, every=1, quiet=True, **arguments) as log:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(X)).backward()
            optimizer.step()
    return log


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


def test_a_step_that_calls_the_step_of_its_base_class_is_one():
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # torch puts hooks around `SGD.step` when the first one is made
    model = perceptron()
    log = train(model, LayerwiseRates(model.parameters(), lr=0.1))
    assert log.steps == 4
    assert log.alarms == []
    residual = log.table().query("observer == 'residual' and quantity == 'excess'")
    assert sorted(residual.step) == [1, 2, 3, 4]
    assert residual.value.max() < 1  # of what backward() left, not of what the step makes of it


def test_steps_are_counted_after_one_that_raised():
    class Fails(torch.optim.SGD):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            if self.calls == 2:
                raise ValueError("by itself")
            return super().step(closure)

    model = perceptron()
    optimizer = Fails(model.parameters(), lr=0.1)
    X = torch.ones(4, 6)
    with eq.watch(model, optimizer, every=1, quiet=True) as log:
        for number in range(5):
            optimizer.zero_grad()
            F.mse_loss(model(X), torch.zeros(4, 3)).backward()
            if number == 1:
                with pytest.raises(ValueError, match="by itself"):
                    optimizer.step()
            else:
                optimizer.step()
    assert log.steps == 5
    assert log.alarms == []


def test_steps_that_are_much_larger_than_the_weights_break_no_law():
    """New weights are rounded in units of their own size, thousands of times that of the old ones."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, 10, bias=False) for width in (6, 10, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    log = train(model, optimizer, loss=lambda out: out.square().sum())
    excess = log.table().query("observer == 'drift' and quantity == 'excess'").set_index("step").value
    norms = log.table().query("quantity == 'frobenius_norm'").groupby("step").value.max()
    assert norms[2] > 1000 * norms[1] > 0
    assert excess.loc[:2].max() < 1
    assert not [alarm for alarm in log.alarms if alarm.kind == "law"]


class Lookahead:
    """Slow weights behind fast ones, as many write it: no `torch.optim.Optimizer`, but one inside."""

    def __init__(self, optimizer, every=3):
        self.optimizer, self.every, self.steps = optimizer, every, 0
        self.slow = [parameter.detach().clone() for parameter in self.parameters]

    @property
    def parameters(self):
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def zero_grad(self):
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self):
        self.optimizer.step()
        self.steps += 1
        if self.steps % self.every == 0:
            for fast, slow in zip(self.parameters, self.slow, strict=True):
                fast.copy_(slow.lerp_(fast, 0.5))


def test_a_wrapper_that_is_no_optimizer_itself_is_watched_through_the_one_inside():
    model, plain = perceptron(), perceptron()
    log = train(model, Lookahead(torch.optim.SGD(model.parameters(), lr=0.1)), steps=7)
    assert (log.steps, log.alarms, log.off) == (7, [], {})
    unwatched = Lookahead(torch.optim.SGD(plain.parameters(), lr=0.1))
    X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(7):
        unwatched.zero_grad()
        plain(X).square().mean().backward()
        unwatched.step()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))


def test_laws_are_read_at_the_first_forward_pass_though_a_step_came_before():
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.watch(model, optimizer, every=1, quiet=True) as log:
        optimizer.step()  # of nothing: to please a scheduler
        assert set(log.off) == {"alignment", "drift", "residual"}
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(4, 6)).square().mean().backward()
            optimizer.step()
    assert log.off == {}
    assert log.last("residual", "residual", "0.weight → 2.weight") < 1e-6
    assert log.alarms == []
