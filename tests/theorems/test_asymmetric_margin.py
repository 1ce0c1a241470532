"""What a certificate says of networks with biases: exponents that are verified, and the promise in words."""

import torch

import equipoise as eq
from equipoise.networks import mlp, residual_mlp

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([1.0, -1.0] * 3).double()


def found(model):
    certificate = eq.certify(model.double(), (X, Y))
    assumption = [each for each in certificate.assumptions if each.name == "quasi-homogeneous"]
    return assumption, [note for note in certificate.notes if "Kunin" in note]


def test_biases_make_the_limit_see_the_last_one_alone():
    model = mlp([3, 4, 1], bias=True)
    with torch.no_grad():
        model.layer1.bias.fill_(0.3)
        model.layer2.bias.fill_(-0.2)
    (assumption,), (note,) = found(model)
    assert assumption.standing == "verified"
    assert assumption.measured == 0
    assert "layer1.weight 1/2" in assumption.why
    assert "minimises the norm of layer2.bias alone" in note


def test_of_a_homogeneous_network_nothing_is_added():
    assert found(mlp([3, 4, 1])) == ([], [])


def test_an_identity_skip_leaves_its_branch_without_exponents():
    (assumption,), (note,) = found(residual_mlp(3, 4, 5, linear_tail=1))
    assert assumption.standing == "verified"
    assert "block1.up.weight 0, block1.down.weight 0" in assumption.why
    assert "embed.weight, layer1.weight alone" in note
