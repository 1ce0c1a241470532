"""Norms of gradients before each step, against autograd."""

import pytest
import torch
from torch import nn

import equipoise as eq


def test_norms_and_ratios_are_those_of_the_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(7, 4, dtype=torch.float64)
    with eq.watch(model, optimizer, observe=[eq.GradientNorm(), eq.NuclearRatio(x)], quiet=True) as log:
        hidden = torch.relu(x @ model[0].weight.detach().T + model[0].bias.detach())
        model(x).square().sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        optimizer.step()
    for name, gradient in gradients.items():
        assert log.last("gradient_norm", "gradient_norm", name) == pytest.approx(float(gradient.norm()), rel=1e-12)
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert log.last("gradient_norm", "gradient_norm") == pytest.approx(float(whole), rel=1e-12)
    for name in ("0.weight", "2.weight"):
        nuclear = torch.linalg.matrix_norm(gradients[name], "nuc")
        ratio = float(nuclear**2 / gradients[name].square().sum())
        assert log.last("nuclear_ratio", "nuclear_ratio", name) == pytest.approx(ratio, rel=1e-10)
        assert 1 <= ratio <= min(gradients[name].shape)
    after = torch.relu(model[0](x)).detach()
    rank = float(after.square().sum() / torch.linalg.matrix_norm(after, 2) ** 2)
    ranks = log.table().query("quantity == 'activation_stable_rank'").value
    assert ranks.tolist() == pytest.approx([rank], rel=1e-10)
    assert rank != pytest.approx(float(hidden.square().sum() / torch.linalg.matrix_norm(hidden, 2) ** 2), rel=1e-10)


def test_a_flow_of_gradient_descent_has_norms_too():
    data = eq.data.load("separable", n=8, d=5)
    stepper = eq.steppers.GradientDescent(lr=0.1)
    run = eq.flow(eq.networks.mlp([5, 3, 1]), data, until="steps=2", stepper=stepper, observe=[eq.GradientNorm()])
    assert run.last("gradient_norm", "gradient_norm") > 0
