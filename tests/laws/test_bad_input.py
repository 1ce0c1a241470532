"""Whatever is passed in: one line that says what was expected, found, and what to type."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.errors import CaptureError, InputError
from equipoise.graph.export.program import arguments  # the public functions' signatures are checked while tests run
from equipoise.laws import Between, Diagonal, invariances
from equipoise.models import require_readable
from helpers.cases import LowRank


def relu():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()


X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def laws():
    return invariances(relu(), X)


@pytest.fixture
def trained():
    model = relu()
    model(X).square().sum().backward()
    return model


class Mutating(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x.mul_(2)
        return self.outward(F.relu_(self.inward(x)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = F.relu(self.inward(x))
        return self.outward(hidden) if hidden.sum() > -1 else hidden


class Quantised(nn.Module):
    """A frozen int8 weight beside a trained one, and a pair that is all trained."""

    def __init__(self):
        super().__init__()
        codes = torch.randint(-9, 9, (4, 3), dtype=torch.int8)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.beside, self.middle, self.outward = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.outward(F.relu(self.middle(x @ self.codes.to(x.dtype).T + self.beside(x))))


def refused(message, call, error=InputError):
    with pytest.raises(error, match=message) as info:
        call()
    assert "\n" not in str(info.value)


# Before there are laws


@pytest.mark.parametrize("inputs", [5, None, torch.ones(0, 3)])
def test_inputs_of_another_kind(inputs):
    refused("expected a tensor, a sequence of arguments", lambda: arguments(inputs))


def test_models_of_another_kind():
    refused("found function", lambda: require_readable(lambda x: x))
    refused("_orig_mod", lambda: invariances(torch.compile(relu()), X))
    refused("lazy 0.weight", lambda: invariances(nn.Sequential(nn.LazyLinear(3)), X))
    refused("torch.complex64", lambda: invariances(nn.Linear(2, 2, dtype=torch.complex64), torch.ones(2, 2)))
    refused("crossentropy", lambda: invariances(relu(), X, loss="crossentropy"))


def test_a_model_that_export_refuses_can_be_stated_by_hand(capfd):
    model = Branching()
    refused("GuardOnDataDependent.*interfaces=", lambda: invariances(model, torch.ones(2, 3)), CaptureError)
    assert capfd.readouterr() == ("", "")
    stated = Between(("inward.weight", "inward.bias"), ("outward.weight",), Diagonal(4))
    laws = invariances(model, torch.ones(2, 3), interfaces=[stated])
    assert laws.check(model, torch.randn(5, 3)).passed
    refused("stated by hand", laws.completeness)


@pytest.mark.parametrize(("producer", "units"), [("inwards.weight", 4), ("inward.weight", 3)])
def test_interfaces_that_do_not_fit(producer, units):
    stated = Between((producer,), ("outward.weight",), Diagonal(units))
    refused(f"carries {units} components", lambda: invariances(Branching(), X, interfaces=[stated]))


# Weights without values, without gradients, without training


def test_meta_weights_have_laws_but_no_values():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    laws = invariances(model, torch.ones(2, 3))
    assert [(law.kind, law.count) for law in laws] == [("vertex", 4)]
    for call in (
        lambda: laws.value(model),
        lambda: laws.check(model, torch.ones(2, 3)),
        lambda: laws.predict_drift(model, torch.optim.SGD(model.parameters())),
    ):
        refused("0.weight on the meta device; load the weights first", call)


def test_no_gradients_yet(laws):
    for call in (laws.residual, laws.audit, lambda m: laws.predict_drift(m, torch.optim.SGD(m.parameters()))):
        refused("call loss.backward", lambda call=call: call(relu()))
    refused("beside a mapping", lambda: laws.residual(dict(relu().named_parameters())))


def test_laws_with_frozen_parameters_are_dropped_and_named(laws):
    model = relu()
    model[0].weight.requires_grad_(False)
    frozen = invariances(model, X)
    assert list(frozen) == []
    assert frozen.dropped == {laws[0].name: ("0.weight", "0.bias", "2.weight")}
    assert "frozen: 0.weight" in str(frozen.coverage)
    assert invariances(LowRank(), X.float()).dropped == {}


def test_integer_weights_count_as_frozen():
    torch.manual_seed(0)
    model = Quantised()
    laws = invariances(model, torch.ones(2, 3))
    assert [law.name for law in laws] == ["middle.weight → outward.weight"]
    assert list(laws.dropped) == ["codes + beside.weight → middle.weight"]
    assert laws.check(model, torch.randn(5, 3)).passed


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",  # and there is no other way to build one
    "ignore:torch.quantize_per_tensor:UserWarning",
)
def test_packed_weights_are_refused():
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear})
    refused("expected a model that torch.export can read", lambda: invariances(model, X.float()), CaptureError)


# Numbers that do not fit


def test_another_model(laws, trained):
    refused("0.weight with 12 elements; found none", lambda: laws.value(nn.Linear(3, 4)))
    wider = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    refused(r"found shape \(5, 3\)", lambda: laws.value(wider))
    refused("0.bias", lambda: laws.residual(trained, {"0.weight": torch.ones(4, 3)}))
    refused("'nonsense'", lambda: laws.named("nonsense"))


def test_data_that_do_not_fit(laws):
    refused("cannot be multiplied", lambda: laws.check(relu(), torch.ones(2, 4)))
    refused("batch_size", lambda: laws.check(relu(), (X, torch.ones(7).long()), "cross_entropy"))
    refused("'mse'", lambda: laws.check(relu(), (X, X), "mse"))
    refused("'nonsense'", lambda: laws.given({"nonsense": X > 0}))
    refused(r"\(5, 3\)", lambda: laws.given({"relu": X > 0}))
    wide = nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 2))
    refused("at most 400 parameters", lambda: invariances(wide, torch.ones(2, 30)).completeness())


def test_nan_is_never_passed(laws, trained):
    trained[0].weight.grad[0, 0] = float("nan")
    found = laws.audit(trained)
    assert not found.passed
    assert "0.weight" in found.suspects


# What looks odd and is fine


def test_inputs_changed_in_place_are_the_callers():
    model, x = Mutating().double(), X.clone()
    laws = invariances(model, x)
    assert [(law.kind, law.count) for law in laws] == [("vertex", 4)]
    assert laws.check(model, x).passed
    assert torch.equal(x, X)


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2)).double()
    tokens = torch.tensor([[1, 2], [2, 4]])
    laws = invariances(model, tokens)
    assert laws.check(model, tokens).passed
    model(tokens).square().sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, change = laws[0].value(model), laws.predict_drift(model, optimizer)[laws[0].name].change
    optimizer.step()
    torch.testing.assert_close(laws[0].value(model), before + change)


def test_no_parameters_no_laws():
    laws = invariances(nn.ReLU(), X)
    assert len(laws) == 0
    assert len(laws.table()) == 0
    assert laws.value(nn.ReLU()) == {}


@pytest.mark.parametrize("size", [1, 2, 9])
def test_laws_derived_from_two_examples_hold_for_any_batch(laws, size):
    assert laws.check(relu(), torch.randn(size, 3)).passed
