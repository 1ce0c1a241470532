"""Gradients judged by laws that an `eps` breaks; what is reported; a backward pass of one's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.laws import invariances
from equipoise.testing import assert_laws


class Normed(nn.Module):
    """The embedding is in no law but one that the eps breaks; the last bias is in none."""

    def __init__(self):
        super().__init__()
        self.e, self.n = nn.Embedding(9, 6), nn.RMSNorm(6, eps=1e-6)
        self.f, self.o = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, tokens):
        return self.o(F.relu(self.f(self.n(self.e(tokens)))))


TOKENS = torch.arange(20).reshape(4, 5) % 9


def backward(change=None, parts=1):
    """A backward pass of one's own, in so many parts, and a change to the gradient of the embedding."""

    def run(model):
        for part in TOKENS.chunk(parts):
            model(part).square().sum().backward()
        if change is not None:
            model.e.weight.grad = change(model.e.weight.grad)

    return run


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Normed()


@pytest.mark.parametrize(("dtype", "parts"), [(torch.float32, 1), (torch.float64, 2)])
def test_a_right_gradient_passes_with_laws_that_an_eps_breaks(model, dtype, parts):
    found = assert_laws(model.to(dtype), TOKENS, backward=backward(parts=parts))
    assert not found.unjudged
    assert found.unseen == ("o.bias",)
    assert "in no law: o.bias" in str(found)
    assert assert_laws(model, TOKENS).passed


@pytest.mark.parametrize("change", [torch.randn_like, lambda g: 1.01 * g + 1e-3 * g.norm(), torch.zeros_like])
def test_a_wrong_gradient_seen_only_by_such_a_law(model, change):
    model.double()
    with pytest.raises(AssertionError, match=r"suspect the gradient of e\.weight"):
        assert_laws(model, TOKENS, backward=backward(change))
    found = invariances(model, TOKENS).check(model, TOKENS, backward=backward(change))
    assert not found.passed
    assert found.suspects == ("e.weight",)


def test_what_other_processes_add_is_allowed_for(model):
    model.double()

    def averaged(twin):  # as after an all-reduce with a process that had other data
        backward()(twin)
        other = torch.autograd.grad(twin(TOKENS.flip(0) // 2).square().sum(), list(twin.parameters()))
        for weight, gradient in zip(twin.parameters(), other, strict=True):
            weight.grad = (weight.grad + gradient) / 2

    assert_laws(model, TOKENS, backward=averaged)


def test_laws_of_which_nothing_is_known_are_named(model):
    net = nn.Sequential(model.e, model.n, nn.Dropout(0.5), model.f)  # the graph's random numbers are not the gradient's
    found = assert_laws(net, TOKENS)
    assert found.unjudged == ("scale of 0.weight",)
    assert "not judged, for an eps breaks them: scale of 0.weight" in str(found)


def test_all_members_of_the_one_law_that_fails_are_named(model):
    def exchanged(twin):
        backward()(twin)
        twin.f.bias.grad *= 2

    with pytest.raises(
        AssertionError, match=r"1 of 3 laws fail; suspect the gradient of f\.bias, then of o\.weight, f\.weight"
    ):
        assert_laws(model.double(), TOKENS, backward=exchanged)


class Moved(Normed):
    """Rows are left out, in another shape, normalised twice; some are never read."""

    def __init__(self, norm):
        super().__init__()
        self.n = norm

    def forward(self, tokens):
        rows = self.e(tokens % 4)
        return self.o(F.relu(self.f(self.n(rows)))).sum() + self.f(self.n(rows[:, 1:].flatten(0, 1))).exp().sum()


@pytest.mark.parametrize("norm", [nn.RMSNorm(6, eps=1e-2), nn.LayerNorm(6, eps=1e-2)])
def test_an_eps_is_taken_off_each_row_of_a_table(norm):
    torch.manual_seed(0)
    model = Moved(norm).double()
    laws = invariances(model, TOKENS)
    (law,) = (law for law in laws if law.name == "scale of e.weight")
    assert law.count == 9
    defects = laws.defects(model, TOKENS)
    assert defects[law.name].count_nonzero() == 4
    assert laws.check(model, TOKENS).passed
    with pytest.raises(AssertionError, match=r"suspect the gradient of e\.weight"):
        assert_laws(model, TOKENS, backward=lambda twin: turned(twin, model))


def turned(twin, model):
    """A gradient of which one row is along the row, by more than the eps adds (of which a part may be others')."""
    twin(TOKENS).square().sum().backward()
    twin.e.weight.grad[2] += 1e4 * model.e.weight.detach()[2]


def test_large_outputs_leave_gradients_to_judge():
    """Without a loss, what is differentiated must not saturate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4, eps=1e-2), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[2].bias.fill_(1e3)
    x = torch.randn(5, 3).double()
    defects = invariances(model, x).defects(model, x)
    assert float(defects["scale of 0.weight"].norm()) > 0


def test_outputs_that_are_opposite_do_not_cancel():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4, eps=1e-2), nn.Linear(4, 2))

        def forward(self, x):
            return (y := self.f(x)), -y

    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(5, 3).double()
    assert float(invariances(model, x).defects(model, x)["scale of f.0.weight"].norm()) > 1e-6
