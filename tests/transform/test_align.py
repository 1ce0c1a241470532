"""`eq.align`: a random element of the group is found again, and the inner product never falls (T9)."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import equipoise as eq
from equipoise.errors import EquipoiseError
from equipoise.graph.capture import capture
from equipoise.transform.aligning import tried_symmetries
from equipoise.transform.model_function import ModelFunction
from helpers.cases import case, noise
from helpers.sampling import sampled
from helpers.symmetric import NETWORKS, Network
from reference import matched_chain

L = nn.Linear


class Odd(nn.Module):
    """Units with signs: tanh, and BatchNorm in evaluation mode with its statistics."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = L(3, 5), L(5, 4), L(4, 2)
        self.norm = nn.BatchNorm1d(4)
        nn.init.normal_(self.norm.running_mean)
        nn.init.normal_(self.norm.weight)
        self.eval()

    def forward(self, x):
        return self.c(F.gelu(self.norm(self.b(torch.tanh(self.a(x))))))


class Gated(nn.Module):
    """Recurrent layers of every gated kind, in two layers and both directions, and a cell."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.gru, self.rnn = nn.GRU(8, 3), nn.RNN(3, 5)
        self.cell, self.outward = nn.LSTMCell(5, 4), L(4, 2)

    def forward(self, x):
        hidden = self.rnn(self.gru(self.lstm(x)[0])[0])[0]
        return self.outward(self.cell(hidden[:, -1])[0])


class Started(nn.Module):
    """Recurrent layers whose initial states are trained, for each layer and direction."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(3, 4, num_layers=2, batch_first=True), nn.GRU(4, 3, bidirectional=True)
        shapes = (2, 1, 4), (2, 1, 4), (2, 1, 3)
        self.hidden, self.memory, self.start = (nn.Parameter(torch.randn(shape)) for shape in shapes)
        self.outward = L(6, 2)

    def forward(self, x):
        states = [each.expand(-1, len(x), -1).contiguous() for each in (self.hidden, self.memory)]
        seen = self.lstm(x, tuple(states))[0].transpose(0, 1)
        return self.outward(self.gru(seen, self.start.expand(-1, len(x), -1).contiguous())[0][-1])


STARTED = Network("started", Started, noise(3, 4, 3), 0)
GATED = Network("gated", Gated, noise(3, 4, 3), 0)
LLAMA = Network("llama", lambda: case("llama").build(), case("llama").inputs, 0)
TIED = Network("tied gpt", lambda: case("gpt, tied").build(), case("gpt, tied").inputs, 0)
GPT = Network("gpt", lambda: case("gpt").build(), case("gpt").inputs, 0)
ODD = Network("odd", Odd, case("relu").inputs, 0)
FOUND = {  # parts of the group, by kind: permutations, heads, rotations, signs
    "folded convnet": (4, 0, 3, 0),
    "transformer without norms": (1, 2, 6, 2),
    "mixed": (4, 0, 5, 2),
    "recurrent": (2, 0, 0, 1),
    "geometric": (2, 0, 0, 0),
    "gpt": (2, 1, 2, 3),
    "llama": (2, 1, 2, 6),
    "tied gpt": (2, 1, 2, 2),
    "gated": (7, 0, 0, 7),
    "started": (4, 0, 0, 4),
    "odd": (2, 0, 0, 2),
}


def x(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def moved(model, inputs, seed=3):
    """The model after a random element of its group."""
    captured = capture(model, inputs)
    evaluation = ModelFunction.in_double(model, inputs, captured.aliases)
    weights = evaluation.weights() | evaluation.buffers()
    generator = torch.Generator().manual_seed(seed)
    for part in tried_symmetries(captured, evaluation, 1e-9)[0]:
        part.apply(weights, part.random(generator))
    other = copy.deepcopy(model)
    ModelFunction(other, inputs, captured.aliases).write(weights)
    return other


EVERY = [*NETWORKS, GPT, LLAMA, TIED, GATED, STARTED, ODD]
SLOW = [
    each
    for each in EVERY
    if each.name in ("geometric", "mixed", "gpt", "tied gpt", "gated", "transformer without norms")
]


@pytest.mark.parametrize("network", sampled(EVERY, SLOW), ids=lambda network: network.name)
def test_a_random_element_of_the_group_is_found_again(network):
    model, inputs = network.model(), network.inputs()
    other = moved(model, inputs)
    aligned = eq.align(other, model, inputs)
    kinds = [each.kind for each in aligned.report.moves]
    assert tuple(map(kinds.count, ("permutation", "heads", "rotation", "sign"))) == FOUND[network.name]
    assert aligned.report.distance_before > 1
    assert aligned.report.distance_after < 1e-6
    for (name, wanted), own in zip(model.state_dict().items(), aligned.model.state_dict().values(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        before, after = other(*inputs), aligned.model(*inputs)
    assert (after - before).norm() <= 1e-10 * before.norm()


def test_permutations_are_those_of_weight_matching_written_by_hand():
    torch.manual_seed(0)
    build = lambda: nn.Sequential(L(6, 12), nn.ReLU(), L(12, 10), nn.ReLU(), L(10, 3)).double()  # noqa: E731
    model, reference = build(), build()
    aligned = eq.align(model, reference, x(4, 6)).report
    assert aligned.cosine_after > aligned.cosine_before
    targets = [reference[0], reference[2], reference[4]]
    by_hand = matched_chain([model[0], model[2], model[4]], targets)
    pairs = [(own, layer) for own, layer in zip(by_hand, targets, strict=True)]
    gaps = [each for (weight, bias), layer in pairs for each in (weight - layer.weight, bias - layer.bias)]
    assert aligned.distance_after <= float(torch.cat([gap.detach().flatten() for gap in gaps]).norm()) + 1e-9


def test_the_inner_product_of_unrelated_models_rises_and_the_function_stays():
    model, reference, inputs = ODD.model(0), ODD.model(1), ODD.inputs()
    state = copy.deepcopy(model.state_dict())
    aligned = eq.align(model, reference, inputs)
    assert aligned.report.cosine_after > aligned.report.cosine_before + 0.05
    assert aligned.report.distance_after < aligned.report.distance_before
    assert aligned.report.function_change < 1e-12
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert sorted(aligned.table()["kind"]) == ["permutation", "permutation", "sign", "sign"]
    assert "\n" not in repr(aligned)
    assert "<table" in aligned._repr_html_()


def test_grouped_channels_stay_in_their_group():
    torch.manual_seed(0)
    build = lambda: nn.Sequential(nn.Conv1d(2, 4, 1), nn.ReLU(), nn.Conv1d(4, 2, 1, groups=2)).double()  # noqa: E731
    model, reference = build(), build()
    moves = eq.align(model, reference, x(3, 2, 5)).report.moves
    assert [(each.kind, each.size) for each in moves] == [("permutation", 2), ("permutation", 2)]


def test_channels_stay_in_their_group_of_a_normalisation():
    torch.manual_seed(0)
    layers = nn.Conv1d(2, 6, 1), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv1d(6, 4, 1), nn.InstanceNorm1d(4, affine=True)
    model, inputs = nn.Sequential(*layers, nn.GELU(), nn.Conv1d(4, 2, 1)).double(), (x(3, 2, 5),)
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.weight)
    other = moved(model, inputs)
    aligned = eq.align(other, model, inputs).report
    assert aligned.refused == ()
    assert aligned.distance_before > 1 > 1e-9 > aligned.distance_after
    moves = [(each.size, each.name) for each in aligned.moves if each.kind == "permutation"]
    assert sorted(size for size, _ in moves) == [2, 2, 2, 4]


def test_norms_and_gates_move_with_their_units():
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(L(3, 6))
    model, inputs = nn.Sequential(normed, nn.ReLU(), L(6, 8), nn.GLU(), L(4, 2)).double(), (x(4, 3),)
    other = moved(model, inputs)
    aligned = eq.align(other, model, inputs).report
    assert aligned.distance_before > 1 > 1e-9 > aligned.distance_after
    assert [each.size for each in aligned.moves if each.kind == "permutation"] == [6, 4]


def spoiled(model):
    model[0].weight.data[0, 0] = float("inf")
    return model


def mlp(width=4, between=nn.ReLU, bias=True):
    return nn.Sequential(L(3, width, bias=bias), between(), L(width, 2)).double()


@pytest.mark.parametrize(
    ("model", "reference", "message"),
    [
        (
            mlp(),
            mlp(width=5),
            "structure: parameter 0.weight of shape (4, 3); found parameter 0.weight of shape (5, 3)",
        ),
        (mlp(), mlp(between=nn.Tanh), "structure: 1 a ReLU; found 1 a Tanh in the reference"),
        (mlp(), mlp(bias=False), "structure: parameter 0.bias of shape (4,); found 1 a ReLU in the reference"),
        (mlp(), nn.Sequential(*mlp(), nn.ReLU()), "structure: nothing more; found 3 a ReLU in the reference"),
        (mlp(), spoiled(mlp()), "found NaN or infinity in 0.weight"),
    ],
)
def test_models_that_cannot_be_aligned_are_refused_in_one_line(model, reference, message):
    with pytest.raises(EquipoiseError) as raised:
        eq.align(model, reference, x(2, 3))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
