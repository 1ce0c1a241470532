import math

import numpy as np
import pytest
import torch

from equipoise.data import load
from equipoise.errors import InputError
from equipoise.integrate.goals import LogLoss
from equipoise.integrate.loop import flow
from equipoise.laws import invariances
from equipoise.networks import INITS, convnet, mlp, residual_mlp, transformer


def names(model):
    return [name for name, _ in model.named_children()]


def test_tail_of_three_leaves_two_relu_layers():
    model = mlp([784, 64, 64, 64, 64, 1], linear_tail=3)
    assert names(model) == ["layer1", "relu1", "layer2", "relu2", "layer3", "layer4", "layer5"]
    assert [tuple(w.shape) for w in model.parameters()] == [(64, 784), (64, 64), (64, 64), (64, 64), (1, 64)]
    assert {w.dtype for w in model.parameters()} == {torch.float64}


def test_tail_of_all_layers_is_deep_linear():
    model = mlp([5, 4, 3, 2], linear_tail=3)
    W1, W2, W3 = model.parameters()
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), x @ (W3 @ W2 @ W1).T)


def test_usual_relu_network_by_hand():
    model = mlp([5, 4, 1], bias=True, seed=3)
    model.layer1.bias.data.fill_(0.1)
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = (x @ model.layer1.weight.T + 0.1).clamp(min=0)
    torch.testing.assert_close(model(x), h @ model.layer2.weight.T)


def test_biases_start_at_zero():
    model = mlp([5, 4, 1], bias=True)
    assert not model.layer1.bias.any()
    assert not model.layer2.bias.any()


@pytest.mark.parametrize(
    ("init", "variance"), [("fan_in", 1 / 400), ("kaiming", 2 / 400), ("xavier", 2 / 700), ("kaiming_uniform", 2 / 400)]
)
def test_variance_of_the_weights(init, variance):
    W = mlp([400, 300, 1], init=init).layer1.weight
    # the sample variance of 120,000 weights is right to 0.4% (one standard deviation)
    assert W.var().item() == pytest.approx(variance, rel=0.02)
    assert abs(W.mean().item()) < 5 * math.sqrt(variance / W.numel())


def test_orthogonal_rows():
    W = mlp([6, 4, 1], init="orthogonal").layer1.weight
    torch.testing.assert_close(W @ W.T, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("init", INITS)
def test_seed_decides_and_global_generator_is_untouched(init):
    before = torch.get_rng_state()
    first, again, other = (mlp([6, 5, 1], init=init, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_scale_multiplies():
    small, one = mlp([6, 5, 1], scale=1e-3), mlp([6, 5, 1])
    torch.testing.assert_close(small.layer1.weight, 1e-3 * one.layer1.weight, rtol=1e-15, atol=0)


def test_numpy_widths():
    assert names(mlp(np.array([3, 2, 1]))) == ["layer1", "relu1", "layer2"]


@pytest.mark.parametrize("skip", ["identity", "dense"])
def test_residual_network_by_hand(skip):
    model = residual_mlp(4, 6, 9, outputs=2, blocks=2, skip=skip, linear_tail=2, bias=True)
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    W = dict(model.named_parameters())
    h = x @ W["embed.weight"].T
    for b in ("block1", "block2"):
        branch = (h @ W[f"{b}.up.weight"].T).clamp(min=0) @ W[f"{b}.down.weight"].T
        h = branch + (h if skip == "identity" else h @ W[f"{b}.skip.weight"].T)
    torch.testing.assert_close(model(x), h @ W["layer1.weight"].T @ W["layer2.weight"].T)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": [784]}, r"at least two widths.*found \[784\]"),
        ({"widths": [784, 0, 1]}, "every width an integer at least 1; found 0"),
        ({"widths": [784, 6.5, 1]}, "every width an integer at least 1; found 6.5"),
        ({"widths": [784, True, 1]}, "every width an integer at least 1; found True"),
        ({"widths": [784, "64", 1]}, "every width an integer at least 1; found '64'"),
        ({"widths": [4, 3, 1], "linear_tail": 0}, "linear_tail an integer from 1 to 2; found 0"),
        ({"widths": [4, 3, 1], "linear_tail": 3}, "linear_tail an integer from 1 to 2; found 3"),
        ({"widths": [4, 3, 1], "init": "he"}, "init among fan_in, .*; found 'he'"),
        ({"widths": [4, 3, 1], "scale": 0}, "a positive finite scale; found 0"),
        ({"widths": [4, 3, 1], "scale": math.nan}, "a positive finite scale; found nan"),
    ],
)
def test_senseless_mlp(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        mlp(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": 0}, "blocks an integer at least 1; found 0"),
        ({"linear_tail": 0}, "linear_tail an integer at least 1; found 0"),
        ({"skip": "sparse"}, "skip among identity, dense, diagonal; found 'sparse'"),
        ({"outputs": -1}, "every width an integer at least 1; found -1"),
    ],
)
def test_senseless_residual_mlp(arguments, message):
    with pytest.raises(InputError, match=message):
        residual_mlp(4, 6, 9, **arguments)


@pytest.mark.parametrize(("pool", "torchs"), [("average", torch.nn.AvgPool2d), ("maximum", torch.nn.MaxPool2d)])
def test_convolutional_network_by_hand(pool, torchs):
    model = convnet((8, 8), (2, 3), width=5, outputs=4, linear_tail=2, pool=pool, bias=True)
    x = torch.randn(6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    W = dict(model.named_parameters())
    h = x.view(6, 1, 8, 8)
    for name in ("conv1", "conv2"):
        h = torchs(2)(torch.nn.functional.conv2d(h, W[f"{name}.weight"], padding=1).clamp(min=0))
    torch.testing.assert_close(model(x), h.flatten(1) @ W["layer1.weight"].T @ W["layer2.weight"].T)
    torch.testing.assert_close(model(x.view(6, 8, 8)), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": (2, 0)}, "every width an integer at least 1; found 0"),
        ({"channels": (2, 2, 2, 2)}, "pixels left after the poolings an integer at least 1; found 0"),
        ({"channels": (2,), "pool": "median"}, "pool among average, maximum; found 'median'"),
    ],
)
def test_senseless_convolutional_network(arguments, message):
    with pytest.raises(InputError, match=message):
        convnet((8, 8), width=4, **arguments)


@pytest.mark.parametrize(("linear_tail", "outputs"), [(1, 1), (2, 3), (4, 1)])
def test_balanced_weights_start_with_every_law_at_zero(linear_tail, outputs):
    model = mlp([6, 5, 7, 4, outputs], linear_tail, seed=1, scale=0.3, balanced=True)
    laws = invariances(model, torch.zeros(2, 6, dtype=torch.float64))
    plain = laws.value(mlp([6, 5, 7, 4, outputs], linear_tail, seed=1, scale=0.3))
    assert len(laws) == 3
    assert max(float(value.abs().max()) for value in laws.value(model).values()) < 1e-15
    assert min(float(value.abs().max()) for value in plain.values()) > 1e-3
    assert model(torch.randn(9, 6, dtype=torch.float64)).abs().max() > 0


def test_balanced_layers_too_narrow_for_the_rank_above():
    with pytest.raises(InputError, match=r"at least 3 inputs of layer1, the rank of layer2.*found 2"):
        mlp([2, 5, 3], 2, balanced=True)


def test_attention_of_the_transformer_is_that_of_its_formula():
    model = transformer(3, 4, width=6, heads=2, seed=2)
    x = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block, h = model.block1, model.embed(x.view(5, 3, 4))
    normed = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    heads = []
    for k in (slice(0, 3), slice(3, 6)):
        q, key, v = (normed @ part.weight[k].T for part in (block.query, block.key, block.value))
        heads.append(torch.softmax(q @ key.mT / 3**0.5, -1) @ v)
    torch.testing.assert_close(block.out(torch.cat(heads, -1)) + h, attended(block, h))


def attended(block, h):
    """What the block adds the two-layer network to."""
    seen = []
    handle = block.norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(h)
    handle.remove()
    return seen[0]


def test_senseless_transformer():
    with pytest.raises(InputError, match=r"heads that divide the width 8; found 3; pass heads=1"):
        transformer(4, 16, heads=3)


def test_diagonal_skips_keep_vertex_laws_only():
    """T2.5: a trained factor on each coordinate; under a dense skip the same stream has matrix-wise laws."""
    X = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).double()
    kinds = {
        skip: {law.kind for law in invariances(residual_mlp(5, 4, 3, skip=skip, linear_tail=1), X) if law.exact}
        for skip in ("diagonal", "dense")
    }
    assert kinds["diagonal"] == {"vertex"}
    assert "linear" in kinds["dense"]
    data = load("separable", n=20, d=5)
    run = flow(residual_mlp(5, 4, 3, skip="diagonal", linear_tail=1), data, until=LogLoss(-100.0))
    assert run.last("drift", "relative_drift", "worst vertex") < 1e-14
    assert float((run.final["block1.skip.weight"] - 1).abs().min()) > 1e-3
