"""Laws of a piece of the network: neurons with equal patterns on the whole training set may mix (T2, T2.1, T2.4)."""

import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.laws import invariances

X = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).abs()


def network(signs):
    """A two-layer ReLU network whose neurons are on (+), off (-) or on for half of the examples (0)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, len(signs)), nn.ReLU(), nn.Linear(len(signs), 2)).double()
    with torch.no_grad():
        weight, bias = model[0].weight, model[0].bias
        weight.abs_()
        bias.copy_(torch.tensor([{"+": 0.1, "-": -20.0, "0": 0.0}[sign] for sign in signs]))
        for unit, sign in enumerate(signs):
            if sign == "0":  # on where the first feature is large, whatever the size of the weights
                weight[unit] = torch.tensor([1.0, 0.0, 0.0]) * (1 + unit)
                bias[unit] = -X[:, 0].median() * (1 + unit) - 1e-3
    return model


def classes(signs):
    model = network(signs)
    laws = invariances(model, X)
    return model, laws.given(laws.activity(model, X))


@pytest.mark.parametrize(
    ("signs", "counts"),
    [
        ("++++", [("linear", 10)]),  # all stably active: the whole matrix
        ("++00", [("blocks", 6)]),  # two classes of two
        ("++0-", [("linear", 3), ("vertex", 2)]),
        ("--++", [("linear", 3), ("vertex", 2)]),  # neurons that are off stay by themselves
        ("+0", [("vertex", 2)]),
    ],
)
def test_classes_of_coactive_neurons(signs, counts):
    model, laws = classes(signs)
    assert sorted((law.kind, law.count) for law in laws) == sorted(counts)
    assert laws.check(model, X).passed


def test_pattern_laws_need_their_patterns():
    """The same laws fail for weights under which the class is no longer co-active: the check is not vacuous."""
    _, laws = classes("++00")
    other = network("0+0+")
    assert not laws.check(other, X).passed


def images(channels):
    """A convolution whose first two channels are proportional, hence on together, and images."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, channels, 3, bias=False), nn.ReLU(), nn.Conv2d(channels, 2, 3), nn.Flatten())
    with torch.no_grad():
        model[0].weight[1] = 2.5 * model[0].weight[0]
    return model.double(), torch.randn(6, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("channels", "counts"), [(2, [("linear", 3)]), (4, [("linear", 3), ("vertex", 2)])])
def test_channels_mix_that_agree_at_every_position(channels, counts):
    model, x = images(channels)
    laws = invariances(model, x)
    found = laws.given(laws.activity(model, x))
    assert sorted((law.kind, law.count) for law in found) == counts
    assert found.check(model, x).passed


def test_channels_that_agree_at_most_positions_do_not_mix():
    model, x = images(2)
    laws = invariances(model, x)
    states = laws.activity(model, x)
    (name,) = states
    states[name][0, 1, 2, 2] ^= True
    assert [(law.kind, law.count) for law in laws.given(states)] == [("vertex", 2)]


def test_tokens_are_positions_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].weight[2] = 0.5 * model[0].weight[0]
    x = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    laws = invariances(model, x)
    found = laws.given(laws.activity(model, x))
    assert sorted((law.kind, law.count) for law in found) == [("linear", 3), ("vertex", 1)]
    assert found.check(model, x).passed


def test_vertex_laws_need_none():
    torch.manual_seed(3)
    laws = invariances(network("++++"), X)
    assert laws.check(network("0-0+"), X).passed


def test_defects_of_pairs_are_as_predicted():
    """T2.4: `-Σ_i (1_u - 1_v)(⟨c_u, δ_i⟩ z_v - ⟨c_v, δ_i⟩ z_u)` is how fast `⟨w_u, w_v⟩ - ⟨c_u, c_v⟩` changes."""
    model = network("++0-0")
    z = model[0](X)
    on = (z > 0).double()
    out = model[2](torch.relu(z))
    delta = torch.autograd.grad(out.square().sum(), out, retain_graph=True)[0]
    out.square().sum().backward()
    (w, b, v), (gw, gb, gv) = zip(*((p.detach(), p.grad) for p in (model[0].weight, model[0].bias, model[2].weight)))  # noqa: B905
    defect = -(gw @ w.T + torch.outer(gb, b) - v.T @ gv)
    rate = defect + defect.T
    backwards = delta @ v  # ⟨c_u, δ_i⟩
    pairs = torch.einsum("iuv,iu,iv->uv", on[:, :, None] - on[:, None, :], backwards, z.detach())
    torch.testing.assert_close(rate, -(pairs + pairs.T))
    assert rate.diagonal().abs().max() < 1e-12
    assert rate.abs().max() > 1e-2


def test_activity_is_named_by_the_nodes_of_the_graph():
    model = network("++0-")
    laws = invariances(model, X)
    (name, states), *rest = laws.activity(model, X).items()
    assert rest == []
    assert torch.equal(states, model[0](X) > 0)
    with pytest.raises(InputError, match=r"of shape \(0, 4\)"):
        laws.given({name: states[:0]})
