import pytest
import torch
from torch.nn import functional as F

import equipoise as eq
from equipoise.errors import InputError
from equipoise.networks import ModularTransformer, deep_features, paired_mlp


@pytest.mark.parametrize("rectified", [False, True])
def test_deep_features_are_the_product_by_hand(rectified):
    model = deep_features([2, 3, 1], width=5, depth=3, rectified=rectified)
    X, y = eq.data.one_hot_examples([2, 3, 1])
    H, *weights = (parameter.detach() for parameter in model.parameters())
    h = H
    for k, weight in enumerate(weights, 1):
        h = weight @ h
        h = h.relu() if rectified and k < len(weights) else h
    assert torch.allclose(model(X), h.T, atol=1e-13)
    assert y.tolist() == [0, 0, 1, 1, 1, 2]


def test_deep_features_keep_their_laws_along_a_flow():
    X, y = eq.data.one_hot_examples([3, 3, 3])
    run = eq.flow(deep_features([3, 3, 3], width=6, depth=2), (X, y), loss="cross_entropy", until=eq.LogLoss(-6.0))
    laws = eq.invariances(run.model, X)
    start = laws.value(run.initial)
    drifts = [float((value - start[name]).norm()) for name, value in laws.value(run.model).items()]
    assert max(drifts) < 1e-10


@pytest.mark.parametrize("widths", [[3, 8, 1], [3, 4, 6, 2]])
def test_paired_networks_start_linear(widths):
    model = paired_mlp(widths, seed=3)
    X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = torch.eye(3, dtype=torch.float64)
    for parameter in model.parameters():
        product = parameter.detach() @ product
    assert torch.allclose(model(X), X @ product.T / 2 ** (len(widths) - 2), atol=1e-12)


def test_pairs_stay_pairs_under_descent_on_symmetric_data():
    """Zhang, Saxe & Latham (2024): two layers, x and -x, an odd target; and without -x they do not."""
    half = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    X = torch.cat([half, -half])
    y = X @ torch.tensor([1.0, -2.0, 0.5]).double()
    gaps = []
    for inputs, targets in ((X, y), (half, y[:10])):
        model = paired_mlp([3, 8, 1], scale=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            (model(inputs)[:, 0] - targets).square().mean().backward()
            optimizer.step()
        first, last = (parameter.detach() for parameter in model.parameters())
        gaps.append(float((model(X).detach() - X @ (last @ first).T / 2).abs().max()))
    assert gaps[0] < 1e-12
    assert gaps[1] > 1e-2


def test_a_modular_transformer_is_causal_free_of_norms_and_trains():
    split = eq.data.modular_addition(p=5, share=0.8, encoding="tokens")
    model = ModularTransformer(5, width=16, heads=2, hidden=32)
    assert not [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(split.train[0]), split.train[1]).backward()
        optimizer.step()
    assert (model(split.train[0]).argmax(1) == split.train[1]).all()
    kinds = {law.kind for law in eq.invariances(model, split.train[0])}
    assert kinds >= {"blocks", "vertex"}  # heads, and neurons


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match="even hidden widths"):
        paired_mlp([3, 5, 1])
    with pytest.raises(InputError, match="heads that divide the width 10"):
        ModularTransformer(5, width=10, heads=4)
