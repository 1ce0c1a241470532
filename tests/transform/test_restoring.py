"""Laws brought back to their values: the same outputs, gradients carried along, and what cannot be reached."""

import pytest
import torch

import equipoise as eq
from equipoise.networks import mlp, residual_mlp
from equipoise.transform.restoring import LawValues


def perturbed(model, size):
    """The weights of a model, and these with noise of this relative size."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: each.detach().clone() for name, each in model.named_parameters()}
    noise = {name: torch.randn(each.shape, generator=generator, dtype=each.dtype) for name, each in weights.items()}
    return weights, {
        name: each + size * each.norm() / each.numel() ** 0.5 * noise[name] for name, each in weights.items()
    }


def scores(model, weights, inputs):
    return torch.func.functional_call(model, weights, (inputs,))


@pytest.mark.parametrize(
    ("network", "loss"),
    [
        (lambda: mlp([5, 6, 6, 3], linear_tail=2, bias=True, seed=1), "cross_entropy"),
        (lambda: residual_mlp(5, 6, 4, linear_tail=2, seed=1), None),
        (lambda: mlp([5, 6, 7, 6, 6, 4], linear_tail=3, seed=1), None),
    ],
    ids=["classes", "skips", "chain"],
)
def test_restored_weights_have_every_value_and_the_same_margins(network, loss):
    model = network()
    inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    laws = eq.invariances(model, inputs[:2], loss=loss)
    start, off = perturbed(model, 0.02)
    kept = LawValues.at(laws, start)
    assert kept is not None
    leaves = {name: each.clone().requires_grad_() for name, each in off.items()}
    outputs = scores(model, leaves, inputs)
    square = (outputs - outputs.mean(1, keepdim=True) if loss else outputs).square().sum()
    gradient = dict(zip(leaves, torch.autograd.grad(square, list(leaves.values())), strict=True))
    weights = {name: each.clone() for name, each in off.items()}
    assert kept.restore(weights, gradient).left < 1e-15
    values, wanted = laws.value(weights), laws.value(start)
    size = float(sum(each.square().sum() for each in weights.values()))
    assert max(float((values[name] - wanted[name]).norm()) / size for name in wanted) < 1e-15
    before, after = outputs.detach(), scores(model, weights, inputs)
    if loss:  # a common shift of the scores is no change
        before, after = (each - each.mean(1, keepdim=True) for each in (before, after))
    assert torch.allclose(before, after, rtol=1e-11, atol=1e-12)
    again = {name: each.clone().requires_grad_() for name, each in weights.items()}
    outputs = scores(model, again, inputs)
    square = (outputs - outputs.mean(1, keepdim=True) if loss else outputs).square().sum()
    for name, each in zip(again, torch.autograd.grad(square, list(again.values())), strict=True):
        assert torch.allclose(gradient[name], each, rtol=1e-9, atol=1e-10), name


def test_weights_too_far_off_are_refused():
    model = mlp([5, 6, 6, 1], linear_tail=2, seed=1)
    start, off = perturbed(model, 0.0)
    off["layer1.weight"] *= 1e-3
    kept = LawValues.at(eq.invariances(model, torch.ones(2, 5).double()), start)
    assert kept is not None
    assert kept.restore(off).left == float("inf")


def test_a_law_that_an_eps_breaks_is_none_to_restore():
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)
    ).double()
    laws = eq.invariances(model, torch.ones(2, 5).double())
    assert any(not law.exact for law in laws)
    assert LawValues.at(laws, perturbed(model, 0.0)[0]) is None
