"""Operations that look harmless: each has the law that its formula allows, and no more."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.laws import invariances

PLACES = torch.tensor([0, 1, 0, 2, 1, 2])


def gathered(reduce):
    """What a graph network does with its neighbours' messages."""
    return lambda h: torch.zeros(6, 4, dtype=h.dtype).scatter_reduce(0, PLACES[:, None].expand(6, 4), h, reduce)


def halves_assigned(h):
    out = torch.zeros_like(h)
    out[:, :2], out[:, 2:] = h[:, :2].relu(), h[:, 2:]
    return out


def entries_put(h):
    out = h.clone()
    out[:, [3]] = h[:, 3:].relu()
    return out


HALF = [("linear", 3), ("vertex", 2)]
OPERATIONS = {
    # linear: any matrix
    "a number times": (lambda h: 2.5 * h - h / 3, [("linear", 10)]),
    "scatter sum": (gathered("sum"), [("linear", 10)]),
    "scatter mean": (gathered("mean"), [("linear", 10)]),
    "tensordot": (lambda h: torch.tensordot(h, torch.eye(4).double() * 3, ([1], [0])), [("scalar", 1)]),
    "interpolated": (lambda h: torch.lerp(h, 3 * h, 0.3), [("linear", 10)]),
    "copied": (lambda h: torch.zeros_like(h).copy_(h), [("linear", 10)]),
    # parts by themselves
    "half written over": (lambda h: torch.cat([h[:, :2], h[:, 2:]], -1).slice_scatter(h[:, 2:].relu(), 1, 2, 4), HALF),
    "assigned": (halves_assigned, [("vertex", 2), ("linear", 3)]),
    "a unit written over": (lambda h: h.select_scatter(h[:, 3].relu(), 1, 3), [("linear", 6), ("vertex", 1)]),
    "entries put": (entries_put, [("linear", 6), ("vertex", 1)]),
    # unit by unit
    "maximum with zero": (lambda h: torch.maximum(h, torch.zeros(4)), [("vertex", 4)]),
    "where positive": (lambda h: torch.where(h > 0, h, 0.5 * h), [("vertex", 4)]),
    "filled with zero": (lambda h: h.masked_fill(h < 0, 0.0), [("vertex", 4)]),
    "times its sign": (lambda h: h * h.sign(), [("vertex", 4)]),
    "scatter amax": (gathered("amax"), [("vertex", 4)]),
    "an odd power": (lambda h: h.abs().pow(0.3333), [("vertex", 4)]),
    "a floor": (lambda h: h.clamp(min=1e-7), [("vertex", 4)]),  # a ReLU up to 1e-7
    "a pair's maximum": (lambda h: torch.maximum(h, h.flip(-1)), [("vertex", 2)]),
    # all together
    "F.normalize": (lambda h: F.normalize(h, dim=-1), [("scalar", 1)]),
    "standard deviation": (lambda h: h / h.std(-1, keepdim=True), [("scalar", 1)]),
    "one norm": (lambda h: h / h.norm(p=1, dim=-1, keepdim=True), [("scalar", 1)]),
    "neighbours": (lambda h: h + F.relu(h.roll(1, -1)), [("scalar", 1)]),
    "sort": (lambda h: h.sort(-1).values, [("scalar", 1)]),
    "largest": (lambda h: h.topk(4, -1).values, [("scalar", 1)]),
    # nothing
    "a constant": (lambda h: F.relu(h) + 1, []),
    "filled with one": (lambda h: h.masked_fill(h < 0, 1.0), []),
    "where large": (lambda h: torch.where(h > 1, h, 2 * h), []),
    "a zeroth power": (lambda h: h * (1 + h.pow(0)) + h.pow(0), []),
    "alpha dropout": (lambda h: F.alpha_dropout(h, 0.4, True), []),
    "integers": (lambda h: h * h.int(), []),
    "scatter prod": (gathered("prod"), []),
    "distances": (lambda h: torch.cdist(h, h)[:, :4], []),
}


class Between(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.inward, self.outward, self.operation = nn.Linear(3, 4), nn.Linear(4, 2), operation

    def forward(self, x):
        return self.outward(self.operation(self.inward(x)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_law_is_the_operations(name):
    torch.manual_seed(0)
    operation, expected = OPERATIONS[name]
    model, x = Between(operation).double(), 3 * torch.randn(6, 3, dtype=torch.float64)
    laws = invariances(model, x)
    assert [(law.kind, law.count) for law in laws] == expected
    assert not laws.coverage.untested
    model(x).mul(torch.randn(6, 2)).sum().backward()
    for law, residual in zip(laws, laws.residual(model).values(), strict=True):
        assert residual < (1e-15 if law.exact else 1e-6)
        assert law.exact is (name != "a floor")


class Bags(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(7, 4, mode=mode), nn.Linear(4, 2)

    def forward(self, tokens):
        return self.head(self.table(tokens))


@pytest.mark.parametrize(
    ("mode", "expected"), [("sum", ("linear", 10)), ("mean", ("linear", 10)), ("max", ("vertex", 4))]
)
def test_bags_of_rows_of_a_table(mode, expected):
    model, tokens = Bags(mode).double(), torch.randint(7, (5, 3))
    (law,) = laws = invariances(model, tokens)
    assert (law.kind, law.count) == expected
    model(tokens).mul(torch.randn(5, 2)).sum().backward()
    assert laws.residual(model)[law.name] < 1e-15


class Heads(nn.Module):
    """A weight of three axes in a `tensordot`: what it writes is one vector, head by head."""

    def __init__(self):
        super().__init__()
        self.inward = nn.Linear(3, 4)
        self.heads, self.head = nn.Parameter(torch.randn(4, 2, 3)), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.tensordot(self.inward(x), self.heads, ([1], [0])).relu().flatten(1))


def test_tensordot_by_a_weight():
    model, x = Heads().double(), torch.randn(5, 3).double()
    laws = invariances(model, x)
    assert [(law.name, law.kind, law.count) for law in laws] == [
        ("inward.weight → heads", "linear", 10),
        ("heads → head.weight", "vertex", 6),
    ]
    model(x).mul(torch.randn(5, 2)).sum().backward()
    assert max(laws.residual(model).values()) < 1e-15


def test_operations_that_are_not_read_are_listed():
    laws = invariances(Between(lambda h: h.cummax(-1).values).double(), torch.ones(2, 3).double())
    assert [(u.operation, u.parameters) for u in laws.coverage.unmatched] == [
        ("cummax", ("inward.weight", "inward.bias"))
    ]


@pytest.mark.parametrize(("dim", "groups", "count"), [(0, 1, 4), (0, 2, 4), (1, 2, 2), (2, 1, 3), (2, 2, 3)])
def test_weight_norm_of_a_convolution_keeps_the_scale_of_each_slice(dim, groups, count):
    torch.manual_seed(0)
    convolution = nn.Conv1d(4, 4, 3, groups=groups)
    model = nn.utils.parametrizations.weight_norm(convolution, dim=dim).double()
    x = torch.randn(2, 4, 9).double()
    (scale,) = laws = invariances(model, x)
    model(x).mul(torch.randn(2, 4, 7)).sum().backward()
    assert (scale.kind, scale.count) == ("vertex", count)
    assert laws.residual(model)[scale.name] < 1e-15
