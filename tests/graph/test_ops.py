"""One line for each operation: its laws, its degree and the shifts that no reader of it sees, against numbers.

The laws are all that a null-space test of the gradients finds, or the coverage names the operation at which others may
be missing; the degree is that of scaled weights.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.graph.capture import capture
from equipoise.graph.degrees import homogeneity
from equipoise.graph.ops import OPERATORS, Operator
from equipoise.graph.ops.operator import declare
from equipoise.laws import invariances
from helpers.null_space import null_space

WIDTH = 4


class Around(nn.Module):
    """An operation on one or two vectors that linear maps write, and another linear map that reads what it returns."""

    def __init__(self, operation, writers, reads, bias):
        super().__init__()
        self.writers = nn.ModuleList(nn.Linear(2, WIDTH, bias) for _ in range(writers))
        self.reader = nn.Linear(reads, 2, bias=False)
        self.operation = operation

    def forward(self, x):
        written = (writer(x**power) for power, writer in enumerate(self.writers, 1))
        return self.reader(self.operation(*written))


@dataclass(frozen=True)
class Case:
    """A module `Around` an operation: kinds and counts of its laws, its degree (None: not homogeneous)."""

    operation: object
    laws: tuple[tuple[str, int], ...]
    degree: int | None
    writers: int = 1
    reads: int = WIDTH
    bias: bool = True
    missing: int = 0  # generators beyond the laws, where the coverage names an operation that is not followed
    exchanged: int = 0  # linear laws that are not stated, where the coverage names what is exchanged


class Rotary(nn.Module):
    """Scores of queries and keys that are rotated by their places, pairs of coordinates as complex numbers."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(2, WIDTH, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, x):
        x = x.unflatten(0, (2, 3))
        angles = torch.outer(torch.arange(3.0), torch.tensor([1.0, 0.1])).double()
        turns = torch.polar(torch.ones_like(angles), angles)
        q, k = (torch.view_as_complex(map(x).unflatten(-1, (2, 2))) * turns for map in (self.q, self.k))
        q, k = (torch.view_as_real(each).flatten(-2) for each in (q, k))
        return q @ k.mT


CASES = {
    "relu": Case(torch.relu, (("vertex", 4),), 2),
    "gelu": Case(F.gelu, (), None),
    "view_as_complex": Case(Rotary, (("vertex", 2),), 2, missing=2),
    "logsumexp": Case(lambda h: h - h.logsumexp(-1, keepdim=True), (("shift", 3),), None),
    "lerp": Case(lambda a, b: torch.lerp(a, b, 0.3), (("linear", 10),), 2, writers=2, exchanged=4),
    "addcmul": Case(
        lambda a, b, c: torch.addcmul(a, b, c, value=0.5), (("vertex", 4), ("vertex", 4)), None, writers=3, bias=False
    ),
    "addcdiv": Case(
        lambda a, b, c: torch.addcdiv(a, b, c, value=0.5), (("vertex", 4), ("vertex", 4)), None, writers=3, bias=False
    ),
    "sort": Case(lambda h: h.sort(-1).values, (("scalar", 1),), 2, missing=1),  # I + t 11ᵀ passes as well
    "topk": Case(lambda h: h.topk(2, -1).values, (("scalar", 1),), 2, reads=2),
    "constant_pad_nd": Case(lambda h: F.pad(h, (1, 1)), (("linear", 10),), 2, reads=6),
}


def model_of(case):
    torch.manual_seed(0)
    whole = isinstance(case.operation, type)
    return (case.operation() if whole else Around(case.operation, case.writers, case.reads, case.bias)).double()


def inputs(seed):
    return 3 * torch.randn(6, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_its_laws_are_all_there_are(name):
    case = CASES[name]
    model = model_of(case)
    laws = invariances(model, inputs(0))
    assert tuple((law.kind, law.count) for law in laws) == case.laws
    assert laws.coverage.complete
    found = null_space(model, inputs, lambda model, x: [model(x)], laws)
    assert found.false == ()
    assert (found.linear, found.conserved + found.identities) == (case.exchanged, case.missing), str(found)
    assert bool(case.exchanged) == bool(laws.coverage.exchanges)
    assert bool(case.missing) == bool(laws.coverage.unfollowed)


@pytest.mark.parametrize("name", CASES)
def test_its_degree_is_that_of_scaled_weights(name):
    case = CASES[name]
    model, x = model_of(Case(case.operation, (), None, case.writers, case.reads, bias=False)), inputs(1)
    captured, weights = capture(model, x), dict(model.named_parameters())
    assert homogeneity(captured).degree == case.degree
    if case.degree is not None:
        scaled = captured.run({name: 1.7 * w for name, w in weights.items()}, x)
        torch.testing.assert_close(scaled, 1.7**case.degree * captured.run(weights, x), rtol=1e-12, atol=1e-12)


def test_an_operation_is_declared_once():
    with pytest.raises(ValueError, match="relu is declared twice"):
        declare("relu", Operator())
    assert OPERATORS["relu"].degree is not None
