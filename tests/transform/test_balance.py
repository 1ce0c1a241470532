"""`eq.balance`: the same function, every conserved quantity zero, the least norm; and what cannot move (T8)."""

import copy
import re
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import equipoise as eq
from equipoise.errors import EquipoiseError, InputError
from equipoise.laws import Between, Diagonal
from equipoise.transform.model_function import ModelFunction
from equipoise.transform.movable import true_laws
from helpers.sampling import sampled
from helpers.symmetric import NETWORKS
from reference import equalised

L = nn.Linear


@cache
def balanced(number):
    network = NETWORKS[number]
    return network, eq.balance(network.model(), network.inputs())


def mlp(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*layers).double()


def x(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def norm(model):
    return float(sum(parameter.detach().square().sum() for parameter in model.parameters()))


@pytest.mark.parametrize("number", sampled(range(len(NETWORKS)), [2, 4]), ids=[network.name for network in NETWORKS])
def test_a_network_keeps_its_function_and_loses_its_imbalance(number):
    network, found = balanced(number)
    model, inputs = network.model(), network.inputs()
    with torch.no_grad():
        before, after = model(*inputs), found.model(*inputs)
        other = [each + x(*each.shape) if each.is_floating_point() else each for each in inputs]
        elsewhere = model(*other), found.model(*other)
    assert (after - before).norm() <= 1e-10 * before.norm()
    assert (elsewhere[1] - elsewhere[0]).norm() <= 1e-10 * elsewhere[0].norm()
    assert norm(found.model) < norm(model)
    report = found.report
    assert len(report.laws) == network.laws
    assert report.balanced
    assert report.sweeps <= 10
    assert report.norm_after == pytest.approx(norm(found.model) ** 0.5)


def test_the_laws_themselves_say_so():
    network, found = balanced(0)
    values = eq.invariances(network.model(), network.inputs()).value(found.model)
    assert len(values) == 6
    assert max(float(value.norm()) for value in values.values()) <= 1e-8 * norm(found.model)


def test_the_least_norm_of_a_run_of_linear_layers_is_a_schatten_norm_of_its_product():
    model = mlp(L(5, 6, bias=False), L(6, 4, bias=False), L(4, 7, bias=False), L(7, 3, bias=False))
    product = (model[3].weight @ model[2].weight @ model[1].weight @ model[0].weight).detach()
    found = eq.balance(model, x(4, 5))
    assert norm(found.model) == pytest.approx(4 * float(torch.linalg.svdvals(product).pow(0.5).sum()), rel=1e-12)
    assert sum(each.count for each in found.report.vanished) == 3 + 1 + 4  # all but the rank of the product


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_least_norm_of_units_of_any_degree(degree):
    class Power(nn.Module):
        def forward(self, z):
            return F.relu(z) ** degree

    model = mlp(L(3, 4), Power(), L(4, 2, bias=False))
    found = eq.balance(model, x(6, 3))
    a = (model[0].weight.square().sum(1) + model[0].bias.square()).detach()
    b = model[2].weight.square().sum(0).detach()
    t = (degree * b / a).log() / (2 + 2 * degree)
    assert norm(found.model) == pytest.approx(float((a * (2 * t).exp() + b * (-2 * degree * t).exp()).sum()), rel=1e-12)


def test_what_nothing_writes_or_nothing_reads_vanishes():
    model = mlp(L(3, 4), nn.ReLU(), L(4, 3), nn.ReLU(), L(3, 2))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0  # so that unit 1 is never written
        model[4].weight[:, 2] = 0  # and unit 2 of the next layer never read
    found = eq.balance(model, x(6, 3))
    assert torch.allclose(found.model(x(5, 3)), model(x(5, 3)), rtol=1e-12, atol=1e-14)
    assert [(each.law, each.unit, each.count) for each in found.report.vanished] == [
        ("0.weight → 2.weight", 1, 1),
        ("2.weight → 4.weight", 2, 1),
    ]
    assert not found.model[2].weight[:, 1].any()
    assert not found.model[2].weight[2].any()


def test_weights_of_any_size_are_balanced():
    model = mlp(*(layer for _ in range(6) for layer in (L(4, 4), nn.ReLU())), L(4, 4), L(4, 2))
    with torch.no_grad():
        model[0].weight *= 1e7
        model[6].weight *= 1e-9
        model[12].weight *= 1e4
    found = eq.balance(model, x(6, 4))
    assert found.report.balanced
    assert (found.model(x(6, 4)) - model(x(6, 4))).norm() <= 1e-10 * model(x(6, 4)).norm()


def test_a_deep_chain_takes_few_sweeps():
    model = mlp(*(layer for _ in range(12) for layer in (L(3, 3), nn.ReLU())), L(3, 1))
    found = eq.balance(model, x(6, 3))
    assert found.report.balanced
    assert found.report.sweeps <= 20  # those without Newton steps take over a hundred


def test_what_cannot_move_is_said_with_its_reason():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b, self.c = L(3, 4), nn.LayerNorm(4), L(4, 4), L(4, 4).requires_grad_(False)
            self.tied = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))

        def forward(self, z):
            z = self.c(F.relu(self.b(self.norm(self.a(z)))))
            return torch.cdist(z, z) + (torch.tanh(z @ self.tied.T) @ self.tied).sum()

    model = Several().double()
    found = eq.balance(model, x(6, 3))
    reasons = {each.name: each.reason for each in found.report.immovable}
    assert reasons["scale of a.weight"] == "its scale has no effect: no norm is the least"
    assert reasons["shift of a.weight + a.bias"] == "a translation of the weights, not a scaling"
    assert reasons["b.weight → c.weight"].startswith("frozen: ")
    assert reasons["tied"] == "used in 2 places, and no scaling suits all of them"
    assert [each.law for each in found.report.laws] == ["norm.weight → b.weight"]
    assert torch.equal(found.model.c.weight, model.c.weight)


class Softened(nn.Module):
    """The scale of the first layer passes a normalisation with a large eps and, beside it, a linear map."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.c = L(3, 4), nn.LayerNorm(4, eps=1e-3), L(4, 2), L(4, 2)

    def forward(self, z):
        z = self.a(z)
        return self.b(self.norm(z)) + self.c(z)


def test_laws_broken_by_an_eps_move_only_when_asked_and_the_change_is_reported():
    torch.manual_seed(0)
    model, batch = Softened().double(), x(6, 3)
    exact, moved = eq.balance(model, batch), eq.balance(model, batch, approximate=True)
    (held,) = [each for each in exact.report.immovable if each.name == "a.weight → c.weight"]
    assert held.reason == "eps = 0.001 of layer_norm breaks it (approximate=True moves it)"
    assert exact.report.function_change < 1e-12
    change = (moved.model(batch) - model(batch)).abs().max() / model(batch).abs().max()
    assert 1e-8 < moved.report.function_change == pytest.approx(float(change.detach()), rel=1e-6)
    assert "a.weight → c.weight" in [each.law for each in moved.report.laws]


def test_the_model_is_left_alone_and_its_dtype_kept():
    torch.manual_seed(0)
    model = nn.Sequential(L(3, 8), nn.BatchNorm1d(8), nn.ReLU(), L(8, 4), L(4, 2))
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    found = eq.balance(model, x(6, 3).float())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}
    assert 0 < found.report.output_change < 1e-5
    assert found.report.function_change < 1e-12
    assert torch.equal(found.model[1].running_mean, model[1].running_mean)


def test_tied_weights_stay_tied():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = L(3, 4, bias=False), L(3, 4, bias=False)
            self.c, self.b.weight = L(4, 2), self.a.weight

        def forward(self, z):
            return self.c(F.relu(self.a(z)) + F.relu(self.b(z.exp())))

    found = eq.balance(Shared().double(), x(6, 3))
    assert found.model.b.weight is found.model.a.weight
    assert [each.law for each in found.report.laws] == ["a.weight → c.weight"]
    assert found.report.balanced


def test_a_false_law_is_refused():
    model = mlp(L(3, 4), nn.Tanh(), L(4, 4), nn.ReLU(), L(4, 2))
    false = Between(("0.weight", "0.bias"), ("2.weight",), Diagonal(4)).law(model)
    true = Between(("2.weight", "2.bias"), ("4.weight",), Diagonal(4)).law(model)
    kept, faults = true_laws([false, true], ModelFunction.in_double(model, x(6, 3), {}), 1e-9)
    assert kept == [true]
    assert [each.name for each in faults] == [false.name]
    assert faults[0].reason.startswith("a fault of equipoise: moving along it changes the outputs by ")


def test_ranges_are_those_of_cross_layer_equalisation():
    conv = nn.Conv2d
    model = mlp(conv(2, 4, 3), nn.ReLU(), conv(4, 4, 3, groups=4), nn.ReLU(), conv(4, 3, 1), nn.Tanh())
    batch = x(3, 2, 8, 8)
    found = eq.balance(model, batch, objective="range")
    expected = equalised([model[0], model[2], model[4]])
    for ours, (weight, bias) in zip((found.model[0], found.model[2], found.model[4]), expected, strict=True):
        torch.testing.assert_close(ours.weight, weight, rtol=1e-6, atol=0)
        torch.testing.assert_close(ours.bias, bias, rtol=1e-6, atol=0)
    assert found.report.range_ratio_before > 1.1
    assert found.report.range_ratio_after <= 1 + 1e-6
    assert found.report.balanced
    assert (found.model(batch) - model(batch)).norm() <= 1e-10 * model(batch).norm()


def test_ranges_of_a_weight_on_both_sides_are_left_alone():
    network = NETWORKS[3]
    found = eq.balance(network.model(), network.inputs(), objective="range")
    assert [each.name for each in found.report.immovable if each.reason.startswith("the same weight writes and reads")]
    assert found.report.function_change < 1e-12


def test_the_result_reads_well():
    model = mlp(L(3, 4), nn.ReLU(), L(4, 2))
    found = eq.balance(model, x(6, 3))
    assert re.match(r"Balanced\(norm [\d.]+ → [\d.]+, largest law \d\.\de-01 → ", repr(found))
    assert "\n" not in repr(found)
    table = found.table()
    assert list(table["law"]) == ["0.weight → 2.weight", "2.bias"]
    assert list(table["left alone"]) == ["", "no scaling of it leaves the function alone"]
    assert "<table" in found._repr_html_()
    assert str(found.report).splitlines()[1] == "left alone: 2.bias: no scaling of it leaves the function alone"


def spoiled(layer):
    if isinstance(layer, L):
        nn.init.constant_(layer.weight, float("nan"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: {"objective": "size"}, "expected objective= to be 'norm' or 'range'; found 'size'; "),
        (lambda model: {"model": model.apply(spoiled)}, "found NaN or infinity in 0.weight"),
        (lambda model: {"example_inputs": torch.full((2, 3), float("nan"))}, "found NaN on example_inputs"),
        (lambda model: {"example_inputs": x(2, 5)}, "expected inputs that the model accepts"),
        (lambda model: {"model": model.to("meta")}, "found 0.weight on the meta device"),
    ],
)
def test_bad_input_is_one_clear_line(spoil, message):
    model = mlp(L(3, 4), nn.ReLU(), L(4, 2))
    arguments = {"model": model, "example_inputs": x(2, 3)} | spoil(model)
    with pytest.raises(EquipoiseError) as raised:
        eq.balance(**arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_parameters_that_are_no_floats_are_refused():
    model = mlp(L(3, 4), nn.ReLU(), L(4, 2))
    model[0].weight = nn.Parameter(torch.ones(4, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"found 0\.weight of dtype torch\.int8; use the model as it was before"):
        eq.balance(model, x(2, 3))


def test_models_without_values_of_their_own_are_refused_and_those_of_zeros_are_balanced():
    lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    for verb in (lambda: eq.balance(lazy, x(2, 3)), lambda: eq.align(lazy, lazy, x(2, 3))):
        with pytest.raises(InputError, match=r"expected initialised parameters; found lazy 0\.weight"):
            verb()
    zero = mlp(L(3, 4), nn.ReLU(), L(4, 2)).requires_grad_(True)
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    report = eq.balance(zero, x(2, 3)).report
    assert report.balanced
    assert [each.before for each in report.laws] == [0.0]
