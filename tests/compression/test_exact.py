import copy

import numpy as np
import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.compression.cones import positive_factors
from equipoise.compression.data import DataBatches, PatternHash, outputs, visit
from equipoise.compression.exact import ChannelActivity, merge_coactive, relative_change
from equipoise.compression.structure import hidden_layers
from equipoise.graph.capture import capture
from reference import pattern_classes_by_comparison


def test_positive_factors_have_rank_or_one_more():
    rng = np.random.default_rng(0)
    for trial in range(120):
        rank, rows, count = rng.integers(1, 6), rng.integers(5, 9), rng.integers(1, 25)
        shares = rng.normal(size=(rank, count))
        pointed = trial % 2 == 0
        vectors = rng.normal(size=(rows, rank)) @ (abs(shares) if pointed else shares)
        generators, weights = positive_factors(vectors)
        found = np.linalg.matrix_rank(vectors)
        assert weights.min(initial=0.0) >= 0
        assert generators.shape[1] - found in ((0,) if pointed else (0, 1))
        np.testing.assert_allclose(generators @ weights, vectors, atol=1e-11 * abs(vectors).max())


def test_hashed_patterns_are_those_compared_pair_by_pair():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 60), nn.ReLU(), nn.Linear(60, 1)).double()
    X = torch.randn(7, 2).double()
    pattern = PatternHash(-1)
    visit(model, DataBatches(X, batch_size=3), {"0": pattern})
    slow = pattern_classes_by_comparison(model[0](X))
    assert sorted(sorted(each.tolist()) for each in pattern.classes()) == sorted(slow)


def coactive(slope=0.0, seed=0):
    """Three classes of 20 neurons each on data with three activation patterns, read by two scores."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.eye(3, dtype=torch.float64).repeat(4, 1) * torch.rand(12, 1, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 60, bias=False), nn.LeakyReLU(slope), nn.Linear(60, 2)).double()
    signs = torch.tensor([[1.0, -1, -1], [1, 1, -1], [-1, -1, 1]]).repeat_interleave(20, 0)
    with torch.no_grad():
        model[0].weight.copy_(signs * torch.rand(60, 3, generator=generator).double())
        model[2].weight.copy_(torch.randn(2, 60, generator=generator).double())
    return model, X


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_classes_of_coactive_neurons_become_as_many_as_their_readers_need(slope):
    model, X = coactive(slope)
    before = model(X)
    hidden = hidden_layers(model, capture(model, X))
    change = merge_coactive(model, hidden[0], ChannelActivity.of(model, hidden, DataBatches(X)), None)
    assert (change.before, change.after) == (60, 9)  # two scores of both signs: three neurons a class
    assert relative_change(before, model(X)) < 1e-14


def test_readers_of_one_sign_need_no_neuron_more_than_their_rank():
    model, X = coactive()
    with torch.no_grad():
        model[2].weight.abs_()
    small = eq.compress(model, (X, None))
    assert small.model[0].out_features == 6
    assert small.kept.output_change < 1e-14


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.up, self.down, self.out = nn.Linear(4, 6), nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.enter(x)
        return self.out(x + self.down(torch.relu(self.up(x))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        return self.first(torch.relu(self.first(x)))


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 8),
        nn.Linear(8, 3),
    )


@pytest.mark.parametrize(
    ("network", "shape", "fewer"),
    [
        (
            lambda: nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 12), nn.GELU(), nn.Linear(12, 3)),
            (6, 3),
            True,
        ),
        (convnet, (3, 1, 8, 8), True),
        (Residual, (3, 4), True),
        (Tied, (3, 4), False),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
            (3, 4, 4, 4),
            False,
        ),
    ],
    ids=["mlp", "convnet", "residual", "tied", "depthwise"],
)
def test_exact_moves_keep_the_outputs(network, shape, fewer):
    torch.manual_seed(1)
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    before = copy.deepcopy(model.state_dict())
    X = torch.randn(shape)
    small = eq.compress(model, (X, torch.arange(len(X)) % 3))
    assert small.ok
    assert small.exact
    assert small.kept.output_change < 1e-6
    assert (small.parameters_after < small.parameters_before) == fewer
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(note for note in small.notes if "undone" in note)
    double = eq.compress(copy.deepcopy(model).double(), (X.double(), None))
    assert double.kept.output_change < 1e-12


def test_pooling_over_neurons_of_a_linear_layer_mixes_them():
    torch.manual_seed(0)
    X = torch.randn(3, 4).double()
    for pool in (nn.MaxPool1d(3, 1, 1), nn.AvgPool1d(3, 1, 1)):
        model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), pool, nn.Linear(40, 2)).double()
        assert hidden_layers(model, capture(model, X)) == ()
        assert eq.compress(model, (X, None)).notes == ("nothing to take away: the model is returned unchanged",)


def test_a_constant_read_at_a_padded_border_is_not_folded():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, 1.0]))  # the second channel is 1 everywhere
    X = torch.rand(2, 1, 5, 5).double()
    assert eq.compress(model, (X, None)).kept.output_change < 1e-14


def test_a_run_of_linear_layers_is_two_factors_at_the_rank_of_its_product():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 2, bias=False), nn.Linear(2, 40)).double()
    small = eq.compress(model, (torch.randn(9, 30).double(), None))
    assert [(type(each), getattr(each, "out_features", None)) for each in small.model[2]] == [
        (nn.Linear, 2),
        (nn.Linear, 40),
    ]
    assert small.parameters_after == 2 * 30 + 2 * 40 + 40
    assert small.kept.output_change < 1e-14


def test_a_network_at_the_limit_keeps_its_predictions_with_few_weights():
    data = eq.data.load("separable", n=20, d=6)
    run = eq.flow(eq.networks.mlp([6, 24, 24, 1], linear_tail=1, seed=0), data, until=eq.LogLoss(-2000))
    small = eq.compress(run.model, data)
    assert small.ok
    assert small.kept.changed == 0
    assert small.parameters_after < 0.6 * small.parameters_before
    assert small.kept.output_change < 1e-12


def test_the_radius_is_where_the_two_models_part():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 1)).double()
    X = torch.randn(4, 2).double()
    small = eq.compress(model, (X, None))
    radius = small.radius(X)
    direction = nn.functional.normalize(torch.randn(200, 1, 2).double(), dim=-1)
    inside = (X + 0.999 * radius[:, None] * direction).flatten(0, 1)
    assert relative_change(outputs(model, DataBatches(inside)), outputs(small.model, DataBatches(inside))) < 1e-13
    near = nn.functional.normalize(torch.randn(2000, 1, 2).double(), dim=-1)
    outside = (X + 1.5 * radius[:, None] * near).flatten(0, 1)
    assert relative_change(outputs(model, DataBatches(outside)), outputs(small.model, DataBatches(outside))) > 1e-6
