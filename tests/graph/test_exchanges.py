"""Parameters whose shifts cancel are named, and only these; counted beside what the gradients say in `tests/laws`."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.graph.capture import capture
from equipoise.graph.exchanges import exchanges
from equipoise.graph.propagate import SymmetryPropagation


class Sums(nn.Module):
    """Two branches, added to each other by `add`, and read by a third layer."""

    def __init__(self, add):
        super().__init__()
        self.a, self.b, self.c, self.add = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2), add

    def forward(self, x):
        return self.c(F.relu(self.add(self.a(x), self.b(x.flip(-1)))))


class Embeddings(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4), nn.Embedding(3, 4)
        self.between, self.mix, self.out = between, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.out(F.relu(x + self.mix(self.between(x))))


def found(model, *inputs, frozen=()):
    return exchanges(SymmetryPropagation(capture(model, inputs), frozen))


@pytest.mark.parametrize(
    ("add", "expected"),
    [
        (lambda a, b: a + b, (("a.bias", "b.bias"),)),
        (lambda a, b: 2 * a - b / 3, (("a.bias", "b.bias"),)),
        (lambda a, b: (a + b).view(-1, 1, 3).mean(1), (("a.bias", "b.bias"),)),
        (lambda a, b: a + torch.tanh(b), ()),
        (lambda a, b: a * b, ()),
        (lambda a, b: (a + b) * a, ()),
        (lambda a, b: torch.cat([a[:, :1], b[:, :2]], -1), ()),
    ],
    ids=["sum", "scaled", "moved", "seen before", "product", "seen twice", "side by side"],
)
def test_biases_of_one_sum(add, expected):
    assert found(Sums(add), torch.ones(4, 2)) == expected


@pytest.mark.parametrize("between", [nn.LayerNorm(4), nn.Identity()], ids=["pre-norm", "plain"])
def test_embeddings_that_are_added_but_not_what_is_added_later(between):
    tokens, tables = torch.zeros(4, 3, dtype=torch.long), ("words.weight", "places.weight")
    uniform = [(*tables, "mix.bias")] * isinstance(between, nn.LayerNorm)  # by one number for all: no norm sees it
    assert found(Embeddings(between), tokens) == (tables, *uniform)
    without = tuple(tuple(name for name in group if name != "places.weight") for group in uniform)
    assert found(Embeddings(between), tokens, frozen=("places.weight",)) == without


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_two_biases_of_recurrent_layers(layer):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer(2, 3, batch_first=True, bidirectional=True)

        def forward(self, x):
            return self.layer(x)[0]

    assert found(Last(), torch.ones(4, 3, 2)) == (
        ("layer.bias_ih_l0", "layer.bias_hh_l0"),
        ("layer.bias_ih_l0_reverse", "layer.bias_hh_l0_reverse"),
    )


class Patches(nn.Module):
    """A token beside patches, positions added to both: each part exchanges with the positions by itself."""

    def __init__(self):
        super().__init__()
        self.patch, self.head = nn.Linear(2, 4), nn.Linear(4, 2)
        self.token, self.positions = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(1, 4, 4))

    def forward(self, x):
        return self.head(F.relu(torch.cat([self.token.expand(len(x), -1, -1), self.patch(x)], 1) + self.positions))


def test_parts_side_by_side_under_one_parameter():
    assert found(Patches(), torch.ones(2, 3, 2)) == (("token", "patch.bias", "positions"),)


def test_biases_of_normalisations():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)

        def forward(self, x):
            return self.c(F.relu(self.a(x) + self.b(x * x)))

    assert found(Sum(), torch.ones(2, 2, 3, 3)) == (("a.bias", "b.bias"),)


class Stream(nn.Module):
    """A stream that begins with a bias, to which a normalised branch adds another, and that is read as it is."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.c = nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.a(x)
        return self.c(torch.tanh(x + self.b(self.n(x).tanh())))


def test_a_shift_that_a_normalisation_does_not_see():
    assert found(Stream(), torch.ones(3, 2)) == (("a.bias", "b.bias"),)


def test_parts_that_are_normalised_together_are_shifted_together():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x):
            return F.layer_norm(torch.cat([self.a(x), self.b(x.exp())], -1), (6,))

    assert found(Joined(), torch.ones(4, 2)) == (("a.bias", "b.bias"),)


def test_what_shift_laws_state_of_each_part_is_no_exchange():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.token, self.n = nn.Linear(2, 3), nn.Parameter(torch.randn(1, 3)), nn.LayerNorm(3)

        def forward(self, x):
            return self.n(torch.cat([self.token, self.a(x)])).exp()

    assert found(Rows(), torch.ones(4, 2)) == ()
