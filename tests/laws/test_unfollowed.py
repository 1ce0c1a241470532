"""Where a rule keeps less than an operation allows, the coverage says so; where nothing is given up, it is silent."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from architectures.plain import ENTRIES
from equipoise.laws import invariances
from equipoise.laws.check import run_backward
from helpers.sampling import sampled

NOTHING_LOST = (
    "MLP, linear tail",
    "MLP, LayerNorm",
    "MLP, residual",
    "ReGLU",
    "FiLM",
    "CNN, max pooling",
    "Transformer encoder, pre-norm",
    "Linear attention",
)
LOST = {  # the operations, and a parameter that is named
    "Transformer encoder, post-norm": (["linear"], "0.weight"),
    "Language model, rotary": (["add", "add"], "1.0.body.1.qkv.weight"),
    "ReLU attention": (["matmul"], "1.0.body.1.qkv.weight"),
    "Cosine attention": (["linalg_vector_norm"] * 2, "1.0.body.1.qkv.weight"),
    "Factorisation machine": (["square"], "embed.weight"),
}


def entry(name):
    return next(each for each in ENTRIES if each.name == name)


def coverage(name):
    return invariances(entry(name).model(4), entry(name).arguments(4), verify=False).coverage


@pytest.mark.parametrize("name", NOTHING_LOST)
def test_no_line_where_nothing_is_given_up(name):
    assert coverage(name).unfollowed == ()


@pytest.mark.parametrize("name", sampled(LOST, ["Language model, rotary", "Cosine attention"]))
def test_a_law_that_is_missing_has_a_line(name):
    found = coverage(name)
    operations, parameter = LOST[name]
    assert [each.operation for each in found.unfollowed] == operations
    assert all(parameter in each.parameters for each in found.unfollowed)
    assert "; not followed: " in str(found)


class Between(nn.Module):
    """Two linear layers and an operation between them."""

    def __init__(self, operation):
        super().__init__()
        self.inward, self.outward, self.operation = nn.Linear(3, 4), nn.LazyLinear(2), operation

    def forward(self, x):
        return self.outward(self.operation(self.inward(x)))


@pytest.mark.parametrize(
    ("operation", "lost"),
    [
        (lambda h: h + h.roll(1, -1), ["add"]),  # circulant matrices commute with it
        (lambda h: F.relu(h) + F.relu(h).roll(1, -1), []),
        (lambda h: h.sum(-1, keepdim=True), ["sum"]),  # whatever keeps the sum
        (lambda h: h.relu().sum(-1, keepdim=True), []),
        (lambda h: h.cumsum(-1), ["cumsum"]),
        (lambda h: F.layer_norm(h, (4,)), ["layer_norm"]),  # rotations around the mean
        (lambda h: F.normalize(h, dim=-1), ["linalg_vector_norm"]),
        (lambda h: h @ torch.arange(16.0).reshape(4, 4).double().sin(), ["matmul"]),
        (lambda h: F.layer_norm(h, (4,)).relu(), []),
        (lambda h: F.normalize(h, dim=-1).relu(), []),
        (lambda h: h * torch.arange(4.0), []),
        (parametrizations.weight_norm(nn.Linear(4, 5)), ["_weight_norm"]),  # rotations of what only a normed map reads
        (nn.Sequential(nn.ReLU(), parametrizations.weight_norm(nn.Linear(4, 5))), []),
    ],
)
def test_the_line_names_the_operation(operation, lost):
    model, x = Between(operation).double(), torch.randn(5, 3).double()
    model(x)
    found = invariances(model, x).coverage.unfollowed
    assert [each.operation for each in found] == lost
    assert all("inward.weight" in each.parameters for each in found)


class HyperNetwork(nn.Module):
    """Weights computed from another input: row by row they belong to one neuron."""

    def __init__(self):
        super().__init__()
        self.of, self.head = nn.Linear(2, 12), nn.Linear(4, 2)

    def forward(self, x, condition):
        weights = self.of(condition).unflatten(-1, (4, 3))
        return self.head(F.relu(torch.einsum("bwi,bi->bw", weights, x)))


def test_computed_weights_scale_neuron_by_neuron():
    model, inputs = HyperNetwork().double(), (torch.randn(5, 3).double(), torch.randn(5, 2).double())
    laws = invariances(model, inputs)
    assert [(law.name, law.kind, law.count) for law in laws] == [("of.weight → head.weight", "vertex", 4)]
    run_backward(model, inputs, None)
    assert max(laws.residual(model).values()) < 1e-15
    assert laws.coverage.unfollowed == ()


class OverSets(nn.Module):
    """Attention over sets that the data choose, its softmax written by scattered sums: keys' biases shift in vain."""

    def __init__(self):
        super().__init__()
        self.key, self.value, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Parameter(torch.randn(4))

    def forward(self, x, places):
        weights = self.key(x).exp()
        total = torch.zeros_like(weights).index_add(0, places, weights).index_select(0, places)
        mixed = torch.zeros_like(weights).index_add(0, places, weights / total * self.value(x))
        return mixed + self.out


def test_a_softmax_over_sets_has_a_line():
    inputs = torch.randn(5, 3).double(), torch.tensor([0, 1, 0, 2, 1])
    (line,) = invariances(OverSets().double(), inputs).coverage.unfollowed
    assert line.operation == "exp"
    assert {"key.bias", "value.bias"} <= set(line.parameters)


class Crossed(nn.Module):
    """Queries of one input, keys and values of another, by one stacked weight."""

    def __init__(self):
        super().__init__()
        self.x, self.y, self.attention = nn.Linear(3, 4), nn.Linear(3, 4), nn.MultiheadAttention(4, 2)

    def forward(self, x, y):
        return self.attention(self.x(x), self.y(y), self.y(y), need_weights=False)[0]


def test_parts_of_one_weight_that_read_different_vectors_have_a_line():
    x = torch.randn(5, 2, 3).double()
    (line,) = invariances(Crossed().double(), (x, 2 * x)).coverage.unfollowed
    assert line.parameters == ("attention.in_proj_weight",)


def named_in_lines(model, *inputs):
    """The operations that are not followed, and the parameters of each."""
    found = invariances(model.double(), inputs).coverage.unfollowed
    return [(each.operation, set(each.parameters)) for each in found]


class Skipped(nn.Module):
    """`(W + I) x` between linear layers: the laws are those of the sum."""

    def __init__(self, skip):
        super().__init__()
        self.into, self.body, self.out, self.skip = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), skip

    def forward(self, x):
        return self.out(self.skip(self.into(x), self.body))


@pytest.mark.parametrize(
    ("skip", "operation"),
    [
        (lambda h, body: h + body(h), "add"),
        (lambda h, body: body(h) - 0.5 * h, "sub"),
        (lambda h, body: torch.addmm(h, h, body.weight, alpha=0.1), "addmm"),
        (lambda h, body: h + body(h.tanh()), ""),
        (lambda h, body: torch.addmm(h.tanh(), h, body.weight), ""),
    ],
)
def test_a_skip_around_a_linear_map_has_a_line(skip, operation):
    lines = named_in_lines(Skipped(skip), torch.randn(5, 3).double())
    assert [name for name, _ in lines] == [operation] * bool(operation)
    assert all({"into.weight", "body.weight"} <= parameters for _, parameters in lines)


class Joined(nn.Module):
    """Two vectors side by side, normalised together: both may be shifted, neither by itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        return F.layer_norm(torch.cat([self.a(x), self.b(x.exp())], -1), (8,))


def test_parts_that_may_be_shifted_together_only_have_a_line():
    names = {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert ("cat", names) in named_in_lines(Joined(), torch.randn(5, 3).double())


class Tokens(nn.Module):
    """A token before what is read, and positions on both."""

    def __init__(self, bias):
        super().__init__()
        self.into, self.token = nn.Linear(3, 4, bias=bias), nn.Parameter(torch.randn(4))
        self.places, self.out = nn.Embedding(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        beside = torch.cat([self.token.expand(len(x), 1, 4), self.into(x)], 1)
        return self.out(torch.tanh(beside + self.places(torch.arange(6))))


def test_a_token_and_its_position_have_a_line_where_no_bias_has():
    x = torch.randn(2, 5, 3).double()
    (line,) = named_in_lines(Tokens(bias=False), x)
    assert line == ("add", {"token", "places.weight"})
    with_bias = invariances(Tokens(bias=True).double(), x).coverage
    assert with_bias.unfollowed == ()
    assert with_bias.exchanges == (("token", "into.bias", "places.weight"),)


class Retrieved(nn.Module):
    """Values that are mixed by the data before their norm is taken: rotations of theirs have no effect."""

    def __init__(self):
        super().__init__()
        self.value, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(F.normalize(torch.sigmoid(x @ x.mT) @ self.value(x), dim=-1))


def test_rotations_of_mixed_values_have_a_line():
    lines = named_in_lines(Retrieved(), torch.randn(2, 5, 3).double())
    assert any("value.weight" in parameters for _, parameters in lines)


class Turned(nn.Module):
    """As `Conv1D` of GPT-2, but for the transpose, that a weight is multiplied by."""

    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x):
        h = x @ self.inward.weight.T
        return self.outward(h + h.roll(1, -1))


def test_a_weight_that_is_turned_before_it_multiplies_is_named():
    assert named_in_lines(Turned(), torch.randn(5, 3).double()) == [("add", {"inward.weight"})]
