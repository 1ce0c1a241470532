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


OPERATIONS = {
    # linear: any matrix
    "a number times": (lambda h: 2.5 * h - h / 3, [("linear", 10)]),
    "scatter sum": (gathered("sum"), [("linear", 10)]),
    "scatter mean": (gathered("mean"), [("linear", 10)]),
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
    # nothing
    "a constant": (lambda h: F.relu(h) + 1, []),
    "filled with one": (lambda h: h.masked_fill(h < 0, 1.0), []),
    "where large": (lambda h: torch.where(h > 1, h, 2 * h), []),
    "a zeroth power": (lambda h: h * (1 + h.pow(0)) + h.pow(0), []),
    "alpha dropout": (lambda h: F.alpha_dropout(h, 0.4, True), []),
    "integers": (lambda h: h * h.int(), []),
    "scatter prod": (gathered("prod"), []),
    "sort": (lambda h: h.sort(-1).values, []),
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
    model(x).mul(torch.randn(6, 2)).sum().backward()
    for law, residual in zip(laws, laws.residual(model).values(), strict=True):
        assert residual < (1e-15 if law.exact else 1e-6)
        assert law.exact is (name != "a floor")


def test_operations_that_are_not_read_are_listed():
    laws = invariances(Between(lambda h: h.sort(-1).values).double(), torch.ones(2, 3).double())
    assert [(u.operation, u.parameters) for u in laws.coverage.unmatched] == [
        ("sort", ("inward.weight", "inward.bias"))
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
