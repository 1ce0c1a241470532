"""Shifts that no reader sees: as many as the null space of the gradients has, however the model is written."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.laws import invariances
from equipoise.laws.check import run_backward
from helpers.cases import noise
from reference import linear_laws

L, WIDTH = nn.Linear, 4
norm = lambda x: F.layer_norm(x, (WIDTH,))  # noqa: E731


class Net(nn.Module):
    """`forward(parameters and modules by name, *inputs)`."""

    def __init__(self, forward, modules=None, **shapes):
        super().__init__()
        self.call = forward
        for name, module in (modules or {}).items():
            self.add_module(name, module)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x, more=None):
        return self.call(self, x) if more is None else self.call(self, x, more)


def tokens(*shape, vocabulary=3):
    count = torch.Size(shape).numel()
    return lambda: (torch.arange(vocabulary).repeat(count)[:count].reshape(shape),)


def both(first, second):
    return lambda: (*first(), *second())


def scattered(m, x):
    rows = torch.zeros(5, WIDTH, dtype=x.dtype).index_add(0, torch.tensor([0, 1, 1, 4]), x @ m.w)
    return norm(rows[:2])


def masked(m, x, fill):
    q, k = m.q(x), m.k(x)
    scores = q @ k.mT
    hidden = torch.ones(3, 3, dtype=torch.bool).triu(1)
    return torch.softmax(fill(scores, hidden), -1) @ x


def relative(m, x):
    """Scores with a bias for each distance, from a table with one row for each."""
    places = torch.arange(3)
    return torch.softmax(x @ x.mT + m.table[places[:, None] - places[None] + 2].permute(2, 0, 1)[0], -1) @ x


X, SEQUENCE, PICTURE = noise(5, 2), noise(2, 3, 2), noise(2, 2, 4)
SPELLINGS = {
    "x @ w": (lambda: Net(lambda m, x: norm(x @ m.w), w=(2, WIDTH)), X),
    "x @ w.T": (lambda: Net(lambda m, x: norm(x @ m.w.T), w=(WIDTH, 2)), X),
    "w @ x.T": (lambda: Net(lambda m, x: norm((m.w @ x.T).T), w=(WIDTH, 2)), X),
    "mm, addmm": (lambda: Net(lambda m, x: norm(torch.addmm(m.b, x, m.w)), w=(2, WIDTH), b=(WIDTH,)), X),
    "baddbmm": (
        lambda: Net(lambda m, x: norm(torch.baddbmm(m.b, x, m.w.expand(2, 2, WIDTH))), w=(2, WIDTH), b=(1, WIDTH)),
        SEQUENCE,
    ),
    "stacked": (lambda: Net(lambda m, x: norm(torch.bmm(x, m.w)), w=(2, 2, WIDTH)), SEQUENCE),
    "reshaped": (lambda: Net(lambda m, x: norm(x @ m.w.reshape(WIDTH, 2).T), w=(2, 2, 2)), X),
    "rows": (lambda: Net(lambda m, x: norm(x @ m.w[0]) - norm(x.exp() @ m.w[1]).tanh(), w=(2, 2, WIDTH)), X),
    "einsum": (lambda: Net(lambda m, x: norm(torch.einsum("bi,oi->bo", x, m.w)), w=(WIDTH, 2)), X),
    "einsum, three axes": (
        lambda: Net(lambda m, x: norm(torch.einsum("bth,hnd->btnd", x, m.w).flatten(2)), w=(2, 2, 2)),
        SEQUENCE,
    ),
    "einsum, norm of each head": (
        lambda: Net(lambda m, x: norm(torch.einsum("...h,hnd->...nd", x, m.w)), w=(2, 2, WIDTH)),
        SEQUENCE,
    ),
    "einsum, two summed axes": (
        lambda: Net(lambda m, x: norm(torch.einsum("btnd,hnd->bth", torch.stack([x, x**2], -1), m.w)), w=(WIDTH, 2, 2)),
        SEQUENCE,
    ),
    "tensordot": (lambda: Net(lambda m, x: norm(torch.tensordot(x, m.w, 1)), w=(2, WIDTH)), SEQUENCE),
    "two factors": (lambda: Net(lambda m, x: norm(x @ m.a @ m.b), a=(2, 2), b=(2, WIDTH)), X),
    "merged factors": (lambda: Net(lambda m, x: norm(x @ (m.w + m.a @ m.b)), w=(2, 4), a=(2, 2), b=(2, 4)), X),
    "bilinear": (lambda: nn.Sequential(Twice(nn.Bilinear(2, 2, WIDTH)), nn.LayerNorm(WIDTH)), X),
    "convolution": (lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.GroupNorm(1, 4)), PICTURE),
    "grouped convolution": (lambda: nn.Sequential(nn.Conv1d(2, 4, 2, groups=2), nn.GroupNorm(2, 4)), PICTURE),
    "channels across groups": (lambda: nn.Sequential(nn.Conv1d(2, 4, 1, groups=2), nn.GroupNorm(1, 4)), PICTURE),
    "transposed convolution": (lambda: nn.Sequential(nn.ConvTranspose1d(2, 4, 2), nn.GroupNorm(2, 4)), PICTURE),
    "grouped transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 4, 2, groups=2), nn.GroupNorm(2, 4)),
        PICTURE,
    ),
    "batch norm below a linear map": (lambda: nn.Sequential(L(2, 3), L(3, 4), nn.BatchNorm1d(4)), X),
    "written out with a variance": (
        lambda: Net(lambda m, x: (y := x @ m.w, (y - y.mean(-1, True)) / y.var(-1, keepdim=True).sqrt())[1], w=(2, 4)),
        X,
    ),
    "softmax written out": (
        lambda: Net(lambda m, x: (y := x @ m.w, z := (y - y.amax(-1, True)).exp(), z / z.sum(-1, True))[2], w=(2, 3)),
        X,
    ),
}
USES = {
    "a layer norm's bias": (lambda: nn.Sequential(L(2, 4), nn.LayerNorm(4), nn.LayerNorm(4), L(4, 2)), X),
    "a group norm's bias": (
        lambda: nn.Sequential(nn.GroupNorm(1, 2), nn.Conv1d(2, 4, 2), nn.InstanceNorm1d(4)),
        noise(2, 2, 6),
    ),
    "a batch norm's bias": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4)), noise(5, 4)),
    "an affine map's bias": (lambda: Net(lambda m, x: norm(x.tanh() * m.g + m.b), g=(WIDTH,), b=(WIDTH,)), noise(5, 4)),
    "used twice": (
        lambda: Net(lambda m, x: m.n(m.n(x + m.f(x)).tanh() + m.f(x)), {"f": L(4, 4), "n": nn.LayerNorm(4)}),
        noise(5, 4),
    ),
    "used twice, once seen": (
        lambda: Net(lambda m, x: torch.cat([norm(m.f(x)), m.f(x).tanh()], -1), {"f": L(2, WIDTH)}),
        X,
    ),
    "embedding used twice": (
        lambda: Net(lambda m, i: norm(m.e(i)) * norm(m.e(i.flip(1))).tanh(), {"e": nn.Embedding(3, WIDTH)}),
        tokens(2, 3),
    ),
    "embedding and head": (
        lambda: Net(lambda m, i: norm(m.e(i)).tanh() @ m.e.weight.T, {"e": nn.Embedding(3, WIDTH)}),
        tokens(2, 3),
    ),
    "embedding under a batch norm": (lambda: nn.Sequential(nn.Embedding(3, 2), nn.BatchNorm1d(2)), tokens(6)),
    "embedding bag": (lambda: nn.Sequential(nn.EmbeddingBag(3, 4), nn.LayerNorm(4)), tokens(4, 2)),
    "indexed by the data": (lambda: Net(lambda m, i: norm(m.w[i]), w=(3, WIDTH)), tokens(2, 3)),
    "selected by the data": (lambda: Net(lambda m, i: norm(m.w.index_select(0, i)), w=(3, WIDTH)), tokens(5)),
    "indexed on its second axis": (lambda: Net(lambda m, i: norm(m.w[:, i].T), w=(WIDTH, 3)), tokens(5)),
    "indexed by a constant": (
        lambda: Net(lambda m, x: norm(x + m.w[torch.tensor([2, 0, 2, 1])]), w=(3, WIDTH)),
        noise(2, 4, WIDTH),
    ),
    "a relative position bias": (lambda: Net(relative, table=(5, 1)), SEQUENCE),
    "nodes gathered by edges": (
        lambda: Net(lambda m, x, i: norm((x @ m.w)[i]), w=(2, WIDTH)),
        both(X, tokens(6, vocabulary=5)),
    ),
    "messages added at nodes": (lambda: Net(scattered, w=(2, WIDTH)), noise(4, 2)),
    "tokens mixed": (
        lambda: Net(lambda m, x: norm(x + m.f(x.mT).mT), {"f": L(3, 3)}),
        noise(2, 3, WIDTH),
    ),
    "a shift passes through a mixing of tokens": (
        lambda: Net(lambda m, x: norm(m.w @ (x @ m.v)), w=(2, 3), v=(2, WIDTH)),
        SEQUENCE,
    ),
    "a gate for each token": (lambda: Net(lambda m, x: norm((x @ m.w) * x.sum(-1, True)), w=(2, WIDTH)), X),
    "a gate for each unit": (lambda: Net(lambda m, x: norm((x @ m.w) * m.g), w=(2, WIDTH), g=(WIDTH,)), X),
    "mean over tokens": (lambda: Net(lambda m, x: norm((x @ m.w).mean(1)), w=(2, WIDTH)), SEQUENCE),
    "padded": (lambda: Net(lambda m, x: F.layer_norm(F.pad(x @ m.w, (0, 1)), (4,)), w=(2, 3)), X),
    "padded in time": (lambda: Net(lambda m, x: norm(F.pad(x @ m.w, (0, 0, 1, 0))), w=(2, WIDTH)), SEQUENCE),
    "a mask of zeros and ones": (
        lambda: Net(lambda m, x: norm((x @ m.w) * torch.tensor([1.0, 0, 2])[:, None]), w=(2, WIDTH)),
        SEQUENCE,
    ),
    "keys and values alike": (
        lambda: Net(lambda m, x: F.scaled_dot_product_attention(x, m.k(x), m.k(x)), {"k": L(2, 2)}),
        SEQUENCE,
    ),
    "a query is not a key": (
        lambda: Net(lambda m, x: (y := m.k(x), F.scaled_dot_product_attention(y, y, x))[1], {"k": L(2, 2)}),
        SEQUENCE,
    ),
    "masked_fill": (
        lambda: Net(lambda m, x: masked(m, x, lambda s, h: s.masked_fill(h, -1e9)), {"q": L(2, 2), "k": L(2, 2)}),
        SEQUENCE,
    ),
    "where": (
        lambda: Net(
            lambda m, x: masked(m, x, lambda s, h: torch.where(h, torch.finfo(s.dtype).min, s)),
            {"q": L(2, 2), "k": L(2, 2)},
        ),
        SEQUENCE,
    ),
    "filled with zero": (
        lambda: Net(lambda m, x: masked(m, x, lambda s, h: s.masked_fill(h, 0.0)), {"q": L(2, 2), "k": L(2, 2)}),
        SEQUENCE,
    ),
    "a cross-entropy in the model": (
        lambda: Net(lambda m, x: F.cross_entropy(x @ m.w, torch.tensor([0, 1, 2, 0, 1])), w=(2, 3)),
        X,
    ),
}


def pooled(combined):
    """What is made of the data, of a group norm of it, and of a pool of that."""

    def forward(m, x):
        y = m.n(x)
        return combined(x, y, F.avg_pool1d(y, 3, 1, 1, count_include_pad=False)).tanh()

    return Net(forward, {"n": nn.GroupNorm(1, 2)})


READ = {  # weights whose input has elements that depend on each other
    "behind a norm without gain": (lambda: Net(lambda m, x: (norm(x) @ m.w).tanh(), w=(WIDTH, 3)), noise(5, WIDTH)),
    "behind one of each head": (
        lambda: Net(lambda m, x: m.f(norm(x.unflatten(-1, (2, WIDTH))).flatten(1)).tanh(), {"f": L(8, 3)}),
        noise(5, 8),
    ),
    "behind a group norm": (
        lambda: nn.Sequential(nn.GroupNorm(2, 4, affine=False), nn.Flatten(), L(8, 3), nn.Tanh()),
        noise(5, 4, 2),
    ),
    "centred by hand": (
        lambda: nn.Sequential(Net(lambda m, x: 2 * (x - x.mean(-1, True))), L(4, 3), nn.Tanh()),
        noise(5, 4),
    ),
    "by an einsum of three axes": (
        lambda: Net(lambda m, x: torch.einsum("bi,ohi->boh", norm(x), m.w).tanh(), w=(3, 2, WIDTH)),
        noise(5, WIDTH),
    ),
    "by a part of a weight": (
        lambda: Net(lambda m, x: (norm(x) @ m.w[:2].T).tanh() + (x.exp() @ m.w[2:].T).tanh(), w=(4, WIDTH)),
        noise(5, WIDTH),
    ),
    "twice by one weight": (
        lambda: Net(lambda m, x: (norm((norm(x) @ m.w).tanh()) @ m.w).tanh(), w=(WIDTH, WIDTH)),
        noise(5, WIDTH),
    ),
    "twice by one weight, once seen": (
        lambda: Net(lambda m, x: (norm((x @ m.w).tanh()) @ m.w).tanh(), w=(WIDTH, WIDTH)),
        noise(5, WIDTH),
    ),
    "beside their difference": (
        lambda: Net(lambda m, x: m.f(torch.cat([y := x.sin(), z := x.exp(), y - z], -1)).tanh(), {"f": L(6, 3)}),
        X,
    ),
    "added to a neighbour": (lambda: Net(lambda m, x: m.f(x + x.roll(1, -1)).tanh(), {"f": L(4, 3)}), noise(5, 4)),
    "copied": (lambda: Net(lambda m, x: m.f(x.repeat(1, 2)).tanh(), {"f": L(4, 3)}), X),
    "a pool taken off": (
        lambda: Net(
            lambda m, x: (F.avg_pool1d(y := m.n(x), 3, 1, 1, count_include_pad=False) - y).tanh(),
            {"n": nn.GroupNorm(1, 2)},
        ),
        noise(2, 2, 6),
    ),
    "a pool taken off after a sum": (lambda: pooled(lambda x, y, pool: x + pool - y), noise(2, 2, 6)),
    "taken off a sum with its pool": (lambda: pooled(lambda x, y, pool: y - (x.exp() + (pool + x))), noise(2, 2, 6)),
    "two pools of it": (lambda: pooled(lambda x, y, pool: x + pool + pool.clone() - y), noise(2, 2, 6)),
    "one pool of it twice": (lambda: pooled(lambda x, y, pool: x + (pool + pool) - y), noise(2, 2, 6)),
    "a pool that is added": (lambda: pooled(lambda x, y, pool: x + pool + y), noise(2, 2, 6)),
    "a pool taken off twice": (lambda: pooled(lambda x, y, pool: torch.sub(x + pool, y, alpha=2)), noise(2, 2, 6)),
    "a pool that counts its padding": (
        lambda: Net(lambda m, x: (F.avg_pool1d(y := m.n(x), 3, 1, 1) - y).tanh(), {"n": nn.GroupNorm(1, 2)}),
        noise(2, 2, 6),
    ),
}


@pytest.mark.parametrize("count", [60, pytest.param(1100, marks=pytest.mark.slow)])
def test_long_sums_are_followed_at_once(count):
    """A sum of many summands, more than calls may be nested, and one whose paths double at each of 60 steps."""

    def forward(m, x):
        y, many, doubled = m.n(x), x, x
        for _ in range(count):
            many = many + x
        for _ in range(60):
            doubled = doubled + (doubled + x)
        return (many + doubled + F.avg_pool1d(y, 3, 1, 1, count_include_pad=False) - y).tanh()

    (law,) = (
        each
        for each in invariances(Net(forward, {"n": nn.GroupNorm(1, 2)}).double(), noise(2, 2, 6)(), verify=False)
        if each.kind == "shift"
    )
    assert law.parameters == ("n.bias",)


class Twice(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x, x.tanh())


@pytest.mark.parametrize("name", [*SPELLINGS, *USES, *READ])
def test_as_many_as_there_are_and_each_holds(name):
    torch.manual_seed(0)
    build, inputs = {**SPELLINGS, **USES, **READ}[name]
    model, data = build().double(), inputs()
    laws = [law for law in invariances(model, data) if law.kind == "shift"]
    assert laws or name not in SPELLINGS  # which all have some
    assert sum(law.count for law in laws) == linear_laws(model, data)
    run_backward(model, data, None)
    gradients = {label: parameter.grad for label, parameter in model.named_parameters()}
    for law in laws:
        assert law.residual(dict(model.named_parameters()), gradients) < 1e-14, law.name


def test_the_row_of_the_padding_does_not_move_with_the_others():
    model = nn.Sequential(nn.Embedding(3, 2, padding_idx=0), nn.BatchNorm1d(2)).double()
    assert not [law for law in invariances(model, tokens(6)()) if law.kind == "shift"]


def test_what_is_computed_in_less_precision_is_no_further_centred_than_that():
    model = Net(lambda m, x: (norm(x).bfloat16().to(x.dtype) @ m.w).tanh(), w=(WIDTH, 3)).double()
    (law,) = invariances(model, noise(5, WIDTH)())
    assert (law.name, law.precision) == ("shift of w along its input", torch.bfloat16)


@pytest.mark.parametrize("vector", [lambda x: x.softmax(-1), lambda x: torch.cat([x, torch.ones(5, 1)], -1)])
def test_what_sums_to_one_is_exchanged_with_the_bias(vector):
    model = Net(lambda m, x: m.f(vector(x)).tanh(), {"f": L(vector(torch.ones(5, 4)).shape[1], 3)}).double()
    laws = invariances(model, noise(5, 4)())
    assert not laws
    assert laws.coverage.exchanges == (("f.weight", "f.bias"),)
    assert linear_laws(model, noise(5, 4)()) == 3


def test_columns_that_depend_on_each_other_nearly_are_no_relation():
    """As those of sinusoids of few positions do, to ten digits."""

    def forward(model, x):
        place = torch.arange(1, 6, dtype=x.dtype)
        return (torch.stack([place, place + 1e-10 * place**2], -1) @ model.w * x).tanh()

    assert not list(invariances(Net(forward, w=(2, 3)).double(), noise(5, 3)(), verify=False))
