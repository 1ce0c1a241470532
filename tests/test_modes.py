"""Torch's modes at the call: results are those without them, and so are the modes afterwards."""

import contextlib
import copy

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.networks import mlp

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.where(X[:, 0] > 0, 1.0, -1.0)


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default_device": default_device,
}


def network(seed=0):
    return mlp([4, 6, 5, 1], linear_tail=2, seed=seed).float()


def weights(model):
    return [parameter.detach() for parameter in model.parameters()]


def results(model, other):
    """What each verb makes of a model, in tensors."""
    run = eq.flow(model, (X, Y), until=eq.Steps(2))
    laws = eq.invariances(model, X)
    yield from weights(run.model)
    yield from laws.value(model).values()
    yield from weights(eq.balance(model, X).model)
    yield from weights(eq.align(other, model, X).model)
    yield from weights(eq.compress(model, (X, Y), 0.3).model)
    curvature = eq.measure.sharpness(model, lambda model: (model(X)[:, 0] - Y).square().mean())
    yield torch.tensor(curvature.largest.value, device="cpu")
    eq.testing.assert_laws(model, X)
    eq.certify(run)


@pytest.fixture(scope="module")
def expected():
    return list(results(network(), network(1)))


@pytest.mark.parametrize("mode", MODES)
def test_results_do_not_depend_on_the_modes_of_the_caller(mode, expected):
    model, other = network(), network(1)
    with MODES[mode]():
        found = list(results(model, other))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.get_default_device().type == "cpu"


class Positions(nn.Module):
    """A model that creates tensors on the default device, and remembers which that was."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.devices = nn.Linear(4, 5), nn.Linear(5, 1), set()

    def forward(self, x):
        self.devices.add(torch.get_default_device().type)
        return self.second(torch.relu(self.first(x + torch.arange(4, device=x.device))))


def test_a_model_is_called_under_the_default_device_of_the_caller():
    model = Positions()
    with torch.device("cuda:0"):
        eq.testing.assert_laws(model, X)
        eq.balance(model, X)
        eq.invariances(model, X)
    assert model.devices == {"cuda"}


def test_a_model_on_meta_is_read_where_meta_is_the_default_device():
    with torch.device("meta"):
        laws = eq.invariances(network(), torch.ones(3, 4))
    assert len(laws) == 2


@pytest.mark.parametrize("what", ["model", "data"])
def test_tensors_created_in_inference_mode_are_read(what, expected):
    with torch.inference_mode():
        made, inputs = network(), X.clone()
    model, x = (made, X) if what == "model" else (network(), inputs)
    assert len(eq.invariances(model, x)) == len(eq.invariances(network(), X))
    torch.testing.assert_close(weights(eq.flow(model, (x, Y), until=eq.Steps(2)).model), expected[: len(weights(made))])
    balanced, usual = eq.balance(model, x).model, eq.balance(network(), X).model
    torch.testing.assert_close(weights(balanced), weights(usual))


def test_balancing_in_place_refuses_weights_that_cannot_be_changed():
    with torch.inference_mode():
        model = network()
    with pytest.raises(InputError, match=r"created in torch\.inference_mode\(\); create the model outside it"):
        eq.init.balanced_(model, X)
    eq.init.balanced_(copy.deepcopy(model), X)
