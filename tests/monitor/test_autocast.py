"""Autocast inside `forward` or around the training loop changes neither the laws nor their names."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import equipoise as eq
from equipoise.laws import invariances
from equipoise.monitor.context import read_laws

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


class Projected(nn.Module):
    """A linear layer of weights and biases that a LayerNorm reads."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.LayerNorm(5))

    def forward(self, x):
        return self.body(x)


class Contracted(nn.Module):
    """A bare parameter, contracted by `einsum`."""

    def __init__(self):
        super().__init__()
        self.lower, self.upper = nn.Linear(3, 4), nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return torch.einsum("bi,oi->bo", F.relu(self.lower(x)), self.upper)


class Batched(nn.Module):
    """Weights that depend on the example: a product for each of them."""

    def __init__(self):
        super().__init__()
        self.of, self.head = nn.Linear(3, 12), nn.Linear(4, 2)

    def forward(self, x):
        weights = self.of(x).unflatten(-1, (-1, 3))
        return self.head(F.relu(torch.einsum("bwi,bi->bw", weights, x)))


class Attending(nn.Module):
    """Products by `einsum` of values under autocast with a softmax in the dtype that its scores had."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
        self.out = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        scores = torch.einsum("id,jd->ij", self.query(x), self.key(x))
        weights = scores.float().softmax(-1, dtype=scores.dtype)
        return torch.einsum("ij,jd,od->io", weights, self.value(x), self.out)


def within_autocast(model):
    """As accelerate prepares a model: autocast around its `forward`, and its outputs in float32."""
    inner = model.forward

    def forward(*args):
        with torch.autocast("cpu", torch.bfloat16):
            return inner(*args).float()

    model.forward = forward
    return model


@pytest.mark.parametrize("kind", [Projected, Contracted, Attending, pytest.param(Batched, marks=pytest.mark.slow)])
def test_laws_are_those_without_autocast(kind):
    plain, cast = invariances(kind(), X), read_laws(within_autocast(kind()), X)
    assert len(plain) > 0
    assert [(law.name, law.kind, law.count) for law in cast] == [(law.name, law.kind, law.count) for law in plain]


def trained(cache, one_block):
    """A training under autocast that also spans the optimizer's steps: losses and log."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 1))
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    region = lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=cache)  # noqa: E731
    with eq.watch(model, optimizer, every=2, quiet=True) as log, region() if one_block else contextlib.nullcontext():
        for _ in range(6):
            with region():
                optimizer.zero_grad()
                loss = (model(X)[:, 0] - 1).square().mean()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
    return losses, log


@pytest.mark.parametrize(("cache", "one_block"), [(True, False), (False, True)])
def test_steps_inside_autocast_raise_no_false_alarm(cache, one_block):
    losses, log = trained(cache, one_block)
    assert losses[-1] < losses[0]
    assert (log.alarms, log.notes, log.off) == ([], [], {})


@pytest.mark.filterwarnings("ignore::equipoise.TrainingAlarm")
def test_weights_that_autocast_keeps_from_before_the_step_are_found():
    """One block around the whole loop: torch casts each weight once, and the loss never moves."""
    losses, log = trained(cache=True, one_block=True)
    assert len(set(losses)) == 1
    assert log.alarms
    assert any("call step() outside it" in str(note) for note in log.notes)
