"""Rounding is judged by the narrowest dtype between the members of a law."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.laws import invariances
from equipoise.testing import assert_laws


class CastNorm(nn.Module):
    """RMSNorm in float32 whatever the model's dtype, and a cast of queries and keys."""

    def __init__(self):
        super().__init__()
        self.e, self.q, self.k = nn.Embedding(9, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.gain, self.f, self.o = nn.Parameter(torch.rand(6) + 0.5), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, tokens):
        x = self.e(tokens)
        scores = self.q(x).float() @ self.k(x).float().mT
        x = x + torch.softmax(scores, -1).to(x.dtype) @ x
        wide = x.float()
        x = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.gain
        return self.o(F.relu(self.f(x)))


TOKENS = torch.arange(10).reshape(2, 5) % 9


def precisions(laws):
    return {law.name: law.precision for law in laws}


def test_the_narrowest_dtype_on_the_path_of_each_law():
    found = precisions(invariances(CastNorm().double(), TOKENS))
    assert found["q.weight → k.weight"] == torch.float32
    assert found["shift of k.bias"] == torch.float32
    assert found["gain → f.weight"] is None
    assert found["f.weight → o.weight"] is None


def test_a_float64_check_of_a_float32_model_with_casts_in_it():
    torch.manual_seed(0)
    model = CastNorm()
    laws = invariances(model, TOKENS)
    found = {finding.law: finding for finding in laws.check(model, TOKENS).findings}
    assert all(finding.passed for finding in found.values())
    assert found["f.weight → o.weight"].tolerance < 1e-14 < 1e-7 < found["q.weight → k.weight"].tolerance
    assert found["q.weight → k.weight"].residual > 1e-14  # so it would have been a false alarm


def test_laws_read_in_float32_audit_a_model_that_has_become_wider():
    torch.manual_seed(0)
    model = CastNorm()
    laws, wide = invariances(model, TOKENS), copy.deepcopy(model).double()
    wide(TOKENS).exp().mean().backward()
    assert laws.audit(wide).passed


class Autocast(nn.Module):
    """Autocast that begins inside `forward`."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.b(F.relu(self.a(x)))
        return self.c(F.relu(x.float()))


def test_autocast_inside_forward():
    torch.manual_seed(0)
    model, x = Autocast(), torch.randn(5, 6)
    assert set(precisions(invariances(model, x)).values()) == {torch.bfloat16}
    found = assert_laws(model, x)
    assert max(finding.residual for finding in found.findings) > 1e-5


def test_precision_does_not_hide_a_bug_in_a_law_that_does_not_pass_the_cast():
    torch.manual_seed(0)
    model = CastNorm().double()

    def halved(twin):
        twin(TOKENS).exp().mean().backward()
        twin.o.weight.grad *= 1 + 1e-9

    with pytest.raises(AssertionError, match=r"f\.weight → o\.weight"):
        assert_laws(model, TOKENS, backward=halved)
