"""Are all laws found? An oracle that shares no matcher solves for them from gradients alone (`reference.py`)."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.laws import invariances
from helpers.cases import (
    CASES,
    Attention,
    GATv2,
    HandWrittenLayerNorm,
    LanguageModel,
    Residual,
    RMSNorm,
    SwiGLU,
    graph,
    noise,
)
from helpers.sampling import sampled
from reference import polynomial_laws

L, SMALL = nn.Linear, 40  # parameters: the oracle has n(n+3)/2 unknowns


def chain(*layers):
    return nn.Sequential(*layers)


def tokens(vocabulary, *shape):
    return lambda: (torch.arange(vocabulary).repeat(shape[0] * shape[1])[: shape[0] * shape[1]].reshape(shape),)


class Apply(nn.Module):
    """`combine(x, *branches)` of the branches' modules."""

    def __init__(self, combine, *branches):
        super().__init__()
        self.combine, self.branches = combine, nn.ModuleList(branches)

    def forward(self, x):
        return self.combine(x, *self.branches)


class Gain(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.gain * x


class Scores(nn.Module):
    """One head that mixes its own input."""

    def __init__(self, width=3, *, bias=True, norm=False):
        super().__init__()
        self.q, self.k = L(2, width, bias=bias), L(2, width, bias=bias)
        self.of_q, self.of_k = (RMSNorm(width, 0.0), RMSNorm(width, 0.0)) if norm else (nn.Identity(), nn.Identity())

    def forward(self, x):
        return F.scaled_dot_product_attention(self.of_q(self.q(x)), self.of_k(self.k(x)), x)


def exactly(model):
    """BatchNorm with an `eps` that float64 cannot see (torch refuses zero)."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 1e-300
    return model


def with_statistics(model):
    model[1].running_mean.copy_(torch.randn(3))
    return model.eval()


def relu_and_linear(x, relu, linear, head):
    return head(torch.cat([F.relu(relu(x)), linear(x)], -1))


def halves(x, both, first, second):
    u, v = both(x).chunk(2, -1)
    return first(F.relu(u)) + second(v)


class Recurrent(nn.Module):
    """A linear map, a recurrent layer, a head on every state."""

    def __init__(self, kind, *sizes, **options):
        super().__init__()
        self.inward, self.recurrent = L(2, sizes[0], bias=False), kind(*sizes, batch_first=True, bias=False, **options)
        width = (options.get("proj_size") or sizes[1]) * (2 if options.get("bidirectional") else 1)
        self.outward = L(width, 1, bias=False)

    def forward(self, x):
        return self.outward(self.recurrent(self.inward(x))[0])


class Cell(nn.Module):
    """A linear map before a cell, step by step."""

    def __init__(self, kind, **options):
        super().__init__()
        self.inward, self.cell = L(2, 2, bias=False), kind(2, 1, bias=False, **options)

    def forward(self, x):
        state = None
        for step in range(x.shape[1]):
            state = self.cell(self.inward(x[:, step]), state)
        return state[0] if isinstance(state, tuple) else state


class EdgeScores(nn.Module):
    """`q_i · k_j` along edges, written as a product and a sum."""

    def __init__(self, heads, width):
        super().__init__()
        self.q, self.k, self.heads = L(2, heads * width), L(2, heads * width), heads

    def forward(self, x, edges):
        q, k = (
            layer(x).view(len(x), self.heads, -1)[ends] for layer, ends in zip((self.q, self.k), edges, strict=True)
        )
        return (q * k).sum(-1, keepdim=True).tanh()


NETWORKS = {
    "bilinear": (
        lambda: Apply(
            lambda x, a, b, form, c: c(F.relu(form(a(x), F.relu(b(x))))),
            L(2, 2),
            L(2, 2),
            nn.Bilinear(2, 2, 2),
            L(2, 1),
        ),
        noise(6, 2),
    ),
    "bilinear on the data": (
        lambda: Apply(lambda x, form, a: a(form(x, x.exp())), nn.Bilinear(2, 2, 3), L(3, 1)),
        noise(6, 2),
    ),
    "bilinear with itself": (
        lambda: Apply(lambda x, a, form: form(a(x), a(x)), L(2, 2), nn.Bilinear(2, 2, 2)),
        noise(6, 2),
    ),
    "linear before an LSTM": (lambda: Recurrent(nn.LSTM, 2, 1), noise(3, 3, 2)),
    "linear before a GRU": (lambda: Recurrent(nn.GRU, 2, 1), noise(3, 3, 2)),
    "linear before a tanh RNN, two layers": (lambda: Recurrent(nn.RNN, 2, 1, num_layers=2), noise(3, 3, 2)),
    "LSTM with projections": (lambda: Recurrent(nn.LSTM, 1, 2, proj_size=1), noise(3, 3, 2)),
    "bidirectional GRU": (lambda: Recurrent(nn.GRU, 1, 1, bidirectional=True), noise(3, 3, 2)),
    "LSTM cell": (lambda: Cell(nn.LSTMCell), noise(3, 3, 2)),
    "GRU cell": (lambda: Cell(nn.GRUCell), noise(3, 3, 2)),
    "ReLU cell": (lambda: Cell(nn.RNNCell, nonlinearity="relu"), noise(3, 3, 2)),
    "products of queries and keys": (lambda: EdgeScores(2, 2), lambda: (*noise(6, 2)(), graph()[1])),
    "abs": (lambda: chain(L(2, 3), Apply(lambda x: x.abs()), L(3, 2)), noise(6, 2)),
    "prelu with one slope": (lambda: chain(L(2, 3), nn.PReLU(), L(3, 2)), noise(6, 2)),
    "deep linear": (lambda: chain(L(2, 3, bias=False), L(3, 2, bias=False), L(2, 2, bias=False)), noise(6, 2)),
    "concatenation": (lambda: Apply(relu_and_linear, L(2, 2), L(2, 3), L(5, 2)), noise(6, 2)),
    "chunk": (lambda: Apply(halves, L(2, 4), L(2, 2), L(2, 2)), noise(6, 2)),
    "sum": (lambda: Apply(lambda x, a, b, c: c(a(x) + b(x.flip(-1) ** 2)), L(2, 3), L(2, 3), L(3, 2)), noise(6, 2)),
    "product": (lambda: Apply(lambda x, a, b, c: c(a(x) * b(x)), L(2, 3), L(2, 3), L(3, 2)), noise(6, 2)),
    "convolutions": (
        lambda: chain(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Conv1d(2, 2, 2, 2), nn.MaxPool1d(2), nn.Conv1d(2, 2, 1)),
        noise(2, 1, 10),
    ),
    "groups": (lambda: chain(nn.Conv1d(2, 4, 1, groups=2), nn.Conv1d(4, 2, 2, groups=2)), noise(2, 2, 5)),
    "depthwise": (
        lambda: chain(nn.Conv1d(2, 3, 1), nn.Conv1d(3, 3, 2, groups=3), nn.AvgPool1d(2), nn.Conv1d(3, 2, 1)),
        noise(2, 2, 6),
    ),
    "transposed": (lambda: chain(nn.ConvTranspose1d(2, 3, 2, 2), nn.Conv1d(3, 2, 2)), noise(2, 2, 3)),
    "maxpool over positions": (
        lambda: chain(nn.Conv2d(1, 2, 2), nn.MaxPool2d(2), nn.Flatten(), L(2, 2)),
        noise(2, 1, 3, 3),
    ),
    "weight norm of a convolution": (
        lambda: chain(nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 2)), nn.Conv1d(2, 2, 1)),
        noise(2, 2, 4),
    ),
    "layer norm, eps 0": (lambda: chain(L(2, 3), nn.LayerNorm(3, eps=0.0), L(3, 2)), noise(6, 2)),
    "hand-written layer norm, eps 0": (lambda: chain(L(2, 3), HandWrittenLayerNorm(3, 0.0), L(3, 2)), noise(6, 2)),
    "rms norm, eps 0": (lambda: chain(L(2, 3), RMSNorm(3, 0.0), nn.ReLU(), L(3, 2)), noise(6, 2)),
    "batch norm, eps 0": (lambda: exactly(chain(L(2, 3), nn.BatchNorm1d(3), nn.ReLU(), L(3, 2))), noise(6, 2)),
    "batch norm of a convolution, eps 0": (
        lambda: exactly(chain(nn.Conv1d(2, 2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Conv1d(2, 2, 1))),
        noise(3, 2, 5),
    ),
    "batch norm with statistics": (
        lambda: with_statistics(chain(L(2, 3), nn.BatchNorm1d(3), nn.ReLU(), L(3, 2))),
        noise(6, 2),
    ),
    "group norm, eps 0": (
        lambda: chain(nn.Conv1d(2, 4, 1), nn.GroupNorm(2, 4, eps=0.0), nn.Conv1d(4, 2, 1)),
        noise(3, 2, 4),
    ),
    "instance norm, eps 0": (
        lambda: chain(nn.Conv1d(2, 3, 1), nn.InstanceNorm1d(3, eps=0.0, affine=True), nn.Conv1d(3, 2, 1)),
        noise(3, 2, 4),
    ),
    "residual of a linear map": (lambda: chain(L(2, 2), Residual(L(2, 2)), L(2, 2)), noise(6, 2)),
    "pre-norm residual": (
        lambda: chain(L(2, 2), Residual(chain(RMSNorm(2, 0.0), L(2, 2), nn.GELU(), L(2, 2))), RMSNorm(2, 0.0), L(2, 2)),
        noise(6, 2),
    ),
    "head of width 3": (Scores, noise(2, 4, 2)),
    "head of width 3 without biases": (lambda: Scores(bias=False), noise(2, 4, 2)),
    "normalised queries and keys": (lambda: Scores(bias=False, norm=True), noise(2, 4, 2)),
    "attention": (lambda: Attention(2, 1), noise(2, 4, 2)),
    "hand-written attention": (lambda: Attention(2, 1, fused=False), noise(2, 4, 2)),
    "two heads": (lambda: Attention(2, 2, head_width=2, bias=False), noise(2, 4, 2)),
    "grouped query": (lambda: Attention(2, 2, 1, head_width=2, bias=False, fused=False), noise(2, 4, 2)),
    "rotary": (lambda: Attention(2, 1, head_width=4, bias=False, rope=0), noise(2, 4, 2)),
    "rotary with biases": (lambda: Attention(2, 1, head_width=4, rope=0, out=False), noise(2, 4, 2)),
    "rotary grouped query": (lambda: Attention(2, 2, 1, head_width=2, bias=False, rope=0), noise(2, 4, 2)),
    "partly rotary": (lambda: Attention(2, 1, head_width=4, rope=2, bias=False), noise(2, 4, 2)),
    "nn.MultiheadAttention": (
        lambda: Apply(lambda x, attention: attention(x, x, x)[0], nn.MultiheadAttention(2, 1, batch_first=True)),
        noise(2, 4, 2),
    ),
    "embedding": (lambda: LanguageModel(nn.Identity(), 2, 3), tokens(3, 5, 4)),
    "embedding and positions": (lambda: LanguageModel(nn.Identity(), 2, 3, positions=4), tokens(3, 5, 4)),
    "tied embedding": (lambda: LanguageModel(nn.Identity(), 2, 3, tied=True), tokens(3, 5, 4)),
    "softmax of the output": (lambda: chain(L(2, 3), nn.ReLU(), L(3, 3), nn.Softmax(-1)), noise(6, 2)),
    "log-softmax of the output": (lambda: chain(L(2, 3), nn.LogSoftmax(-1)), noise(6, 2)),
    "gatv2": (lambda: GATv2(2, 2, 1), lambda: (*noise(6, 2)(), graph()[1])),
    "swiglu": (lambda: SwiGLU(2, 3), noise(6, 2)),
    "reglu": (lambda: SwiGLU(2, 3, F.relu), noise(6, 2)),
    "glu": (lambda: chain(L(2, 4), nn.GLU(), L(2, 2)), noise(6, 2)),
    "layer scale": (
        lambda: Apply(lambda x, a, gain, b: b(gain(a(x))), L(2, 3), Gain(3), L(3, 2)),
        noise(6, 2),
    ),
    "tied linear residual": (lambda: LanguageModel(Residual(L(2, 2)), 2, 3, tied=True), tokens(3, 5, 4)),
    "recurrent with two biases": (
        lambda: Apply(
            lambda x, recurrent, head: head(recurrent(x)[0]),
            nn.RNN(2, 3, nonlinearity="relu", batch_first=True),
            L(3, 2),
        ),
        noise(3, 3, 2),
    ),
    "bidirectional recurrent": (
        lambda: Apply(
            lambda x, recurrent, head: head(recurrent(x)[0]),
            nn.RNN(2, 2, nonlinearity="relu", batch_first=True, bias=False, bidirectional=True),
            L(4, 2),
        ),
        noise(3, 3, 2),
    ),
}

# What the oracle finds beyond the laws returned: (linear, quadratic, affine). Every entry is a known gap.
GAPS = {
    "bilinear with itself": (2, 0, 0),  # what is antisymmetric in each form never acts
    "sum": (3, 0, 0),  # two biases into one sum: their difference
    "chunk": (2, 0, 0),
    "embedding and positions": (2, 0, 0),
    "recurrent with two biases": (3, 0, 0),
    "constant padding": (0, 3, 0),  # matrices that leave the padded vector alone
    "residual of a linear map": (0, 0, 3),  # the laws of I + R (T2.5) are affine in R
    "tied linear residual": (0, 0, 3),
    "batch norm in eval": (0, 4, 0),  # the same as the next with μ = 0
    "batch norm with statistics": (0, 0, 3),  # ‖w‖² + (b - μ)² - γ²
}


def counts(laws):
    """`(linear, quadratic, affine)` of the exact laws; an `eps` of 1e-300 is none."""
    exact = [law for law in laws if all(eps < 1e-100 for _, eps in law.interface.breaks)]
    linear = sum(law.count for law in exact if law.kind == "shift")
    return linear, sum(law.count for law in exact) - linear, 0


def sum_with_gap(found, name):
    return tuple(a + b for a, b in zip(found, GAPS.get(name, (0, 0, 0)), strict=True))


def test_the_oracle_counts_what_is_known():
    relu = chain(L(2, 4), nn.ReLU(), L(4, 2)).double()
    assert polynomial_laws(relu, noise(6, 2)()) == (0, 4, 0)
    assert polynomial_laws(Scores().double(), noise(2, 4, 2)()) == (3, 6, 0)  # the key bias, and Q Qᵀ - K Kᵀ
    two_five_two = chain(L(2, 5, bias=False), L(5, 2, bias=False)).double()
    assert polynomial_laws(two_five_two, noise(6, 2)()) == (0, 15, 0)


SLOW = [
    *("LSTM with projections", "bidirectional GRU", "linear before an LSTM", "linear before a GRU", "GRU cell"),
    *("rotary with biases", "rotary grouped query", "rotary", "two heads", "hand-written attention"),
    *("bidirectional recurrent", "linear before a tanh RNN, two layers", "bilinear with itself", "depthwise"),
    *("hand-written layer norm, eps 0", "instance norm, eps 0", "batch norm of a convolution, eps 0", "transposed"),
    *("grouped query", "pre-norm residual", "recurrent with two biases", "gatv2", "nn.MultiheadAttention"),
    *("products of queries and keys", "normalised queries and keys", "head of width 3 without biases", "ReLU cell"),
    *("batch norm with statistics", "concatenation", "bilinear on the data", "layer norm, eps 0", "product"),
]


@pytest.mark.parametrize("name", sampled(NETWORKS, SLOW))
def test_no_law_is_missing(name):
    torch.manual_seed(0)
    build, inputs = NETWORKS[name]
    model = build().double()
    laws = invariances(model, inputs())
    assert laws.coverage.complete
    assert polynomial_laws(model, inputs()) == sum_with_gap(counts(laws), name)


def size(network):
    return sum(parameter.numel() for parameter in network.model().parameters() if parameter.requires_grad)


@pytest.mark.parametrize("network", [each for each in CASES if size(each) <= SMALL], ids=lambda network: network.name)
def test_no_law_of_the_zoo_is_missing(derived, network):
    laws = derived(network.name)
    assert polynomial_laws(network.model(), network.inputs()) == sum_with_gap(counts(laws), network.name)


@pytest.mark.parametrize("loss", [None, "cross_entropy"])
def test_no_law_under_a_softmax_is_missing(loss):
    torch.manual_seed(0)
    model, x = chain(L(2, 3), nn.ReLU(), L(3, 3)).double(), noise(6, 2)()
    laws = invariances(model, x, loss)
    assert polynomial_laws(model, x, differences=loss is not None) == counts(laws)
    assert counts(laws)[0] == (4 if loss else 0)
