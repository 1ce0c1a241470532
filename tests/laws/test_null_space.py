"""Nothing but laws in the null space of the gradients, on a sample of the zoo; and the oracle on what is known."""

import pytest
import torch
from torch import nn

from architectures.entry import call
from architectures.plain import ENTRIES
from equipoise.laws import invariances
from helpers.cases import noise
from helpers.independence import dependent
from helpers.null_space import null_space

SAMPLE = ("MLP, linear tail", "MLP, softmax output", "Autoencoder, tied, linear", "ReGLU", "CReLU", "Squared ReLU")


def verdict(model, inputs, laws, **options):
    draw = lambda seed: torch.manual_seed(seed) and inputs()  # noqa: E731
    return null_space(model, draw, lambda model, x: [model(*x)], laws, **options)


def chain(*layers):
    return nn.Sequential(*layers).double()


def test_the_oracle_counts_what_is_known():
    relu = chain(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    found = verdict(relu, noise(6, 2), [])
    assert (found.generators, found.linear, found.conserved, found.identities) == (4, 0, 4, 0)
    linear = chain(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    found = verdict(linear, noise(6, 2), [])
    assert (found.generators, found.conserved, found.identities) == (9, 6, 3)
    assert set(found.moved) == {("0.weight", "1.weight")}


def test_a_law_along_another_is_no_law_of_its_own():
    """Rows of equal sum: any multiple of a shift, by whatever the weights are, leaves a softmax alone."""
    model = chain(nn.Linear(2, 3), nn.Softmax(-1))
    found = verdict(model, noise(6, 2), [])
    assert (found.linear, found.conserved, found.identities) == (3, 0, 0)
    assert verdict(model, noise(6, 2), invariances(model, noise(6, 2)())).complete


def test_a_false_law_is_named_and_a_missing_one_told():
    wide = chain(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    deep = chain(nn.Linear(2, 3), nn.Identity(), nn.Linear(3, 2))
    found = verdict(wide, noise(6, 2), invariances(deep, noise(6, 2)()))
    assert found.false == ("0.weight → 2.weight",)
    assert (found.conserved, found.identities) == (3, 0)
    found = verdict(deep, noise(6, 2), invariances(wide, noise(6, 2)()))
    assert (found.generators, found.false, found.conserved, found.identities) == (9, (), 3, 3)


class Biased(nn.Module):
    """Scores with a bias for each component of each head, whose rows and whose columns may be scaled."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.place = (nn.Linear(3, 8, bias=False) for _ in range(3))
        self.of_key, self.of_place = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(2, 4))

    def forward(self, x, t):
        query, key, place = self.query(x), self.key(x).unflatten(-1, (2, 4)), self.place(t).unflatten(-1, (2, 4))
        query = query.unflatten(-1, (2, 4))
        scores = torch.einsum("bhd,bhd->bh", query + self.of_key, key)
        return (scores + torch.einsum("bhd,bhd->bh", query + self.of_place, place)).sin()


def test_no_quantity_is_counted_twice_where_rows_and_columns_are_scaled():
    model, inputs = Biased().double(), lambda: (torch.randn(6, 3).double(), torch.randn(6, 3).double())
    laws = invariances(model, inputs())
    assert dependent(laws, model) == 0
    assert laws.conserved == 5  # of four columns and two heads, whose sums are the same
    assert verdict(model, inputs, laws).false == ()
    assert {"query.weight", "of_key", "of_place"} == {
        name for each in laws.coverage.unfollowed for name in each.parameters
    }


def examined(name):
    """An architecture of the zoo: its laws, and the verdict on them."""
    architecture = next(each for each in ENTRIES if each.name == name)
    model = architecture.model(4)
    laws = invariances(model, architecture.arguments(4))
    return laws, null_space(model, lambda seed: architecture.arguments(4, seed=seed), call, laws)


@pytest.mark.parametrize("name", SAMPLE)
def test_the_laws_of_the_zoo_are_all_there_are(name):
    laws, found = examined(name)
    assert laws.coverage.complete
    assert found.complete, str(found)


def test_what_is_missing_has_a_line_in_the_coverage():
    laws, found = examined("RNN, ReLU")
    biases = ("1.layer.bias_ih_l0", "1.layer.bias_hh_l0")
    assert (found.linear, found.conserved, found.identities, found.false) == (4, 0, 0, ())
    assert {name.removeprefix("+") for names in found.moved for name in names} == set(biases)
    assert laws.coverage.exchanges == (biases,)
    assert " with ".join(biases) in str(laws.coverage)


def test_rows_of_a_table_that_are_normalised_scale_each_by_itself():
    """The null space has a generator for each row; a head of the same table sees its rows."""

    class Words(nn.Module):
        def __init__(self, *, tied):
            super().__init__()
            self.words, self.norm, self.out, self.tied = nn.Embedding(3, 4), nn.LayerNorm(4, 0.0), nn.Linear(4, 3), tied

        def forward(self, tokens):
            h = self.out(self.norm(self.words(tokens)))
            return h.tanh() @ self.words.weight[:, :3] if self.tied else h.tanh()

    words = lambda: (torch.randint(3, (2, 5)),)  # noqa: E731
    model = Words(tied=False).double()
    laws = invariances(model, words())
    assert ("scale of words.weight", "vertex", 3) in [(law.name, law.kind, law.count) for law in laws]
    assert verdict(model, words, laws).complete
    assert "scale of words.weight" not in [law.name for law in invariances(Words(tied=True).double(), words())]


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_the_scale_of_a_table_follows_from_those_of_its_rows(norm):
    """Also where no gain pins what follows; rotations of rows are named."""
    model = chain(nn.Embedding(3, 4), norm(4, 0.0, elementwise_affine=False), nn.Linear(4, 2), nn.Tanh())
    words = lambda: (torch.randint(3, (2, 5)),)  # noqa: E731
    laws = invariances(model, words())
    assert [(law.kind, law.count) for law in laws if law.name.startswith("scale")] == [("vertex", 3)]
    assert dependent(laws, model) == 0
    found = verdict(model, words, laws)
    assert (found.linear, found.conserved, found.false) == (0, 0, ())
    assert {name.removeprefix("+") for names in found.moved for name in names} <= {"0.weight", "2.weight"}
    assert [line.parameters for line in laws.coverage.unfollowed] == [("0.weight",)]


def test_states_of_a_scan_scale_each_by_itself():
    """A scan begins with zeros, which move with anything; what each state is fed and read by are opposite."""

    class Scan(nn.Module):
        def __init__(self):
            super().__init__()
            self.inward, self.outward, self.decay = (nn.Linear(2, 3, bias=False) for _ in range(3))

        def forward(self, x):
            inward, outward, decay = self.inward(x), self.outward(x.exp()), torch.sigmoid(self.decay(x))
            state, found = torch.zeros(len(x), 3, dtype=x.dtype), []
            for place in range(x.shape[1]):
                state = decay[:, place] * state + inward[:, place]
                found.append((state * outward[:, place]).sum(-1))
            return torch.stack(found, 1)

    model = Scan().double()
    laws = invariances(model, noise(2, 3, 2)())
    assert [(law.name, law.kind, law.count) for law in laws] == [("inward.weight → outward.weight", "vertex", 3)]
    assert verdict(model, noise(2, 3, 2), laws).complete


def test_the_keys_of_one_layer_for_queries_keys_and_values():
    """A part of a layer that is split has the shift laws of a layer of its own."""

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(2, 6)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return torch.softmax(q @ k.mT, -1) @ v

    model = Fused().double()
    laws = invariances(model, noise(3, 4, 2)())
    assert "shift of qkv.bias[2:4]" in [law.name for law in laws]
    found = verdict(model, noise(3, 4, 2), laws)
    assert found.complete, str(found)
