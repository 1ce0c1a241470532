"""What a step will do to every law: exact for SGD with weight decay, on a copy and labelled so for anything else."""

import copy

import pytest
import torch
from torch import nn

from equipoise.laws import invariances
from helpers.cases import case


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 3), nn.Softmax(-1)).double()


X = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


@pytest.fixture(scope="module")
def laws():
    return invariances(network(), X)


def backward(model, batch=slice(None)):
    model.zero_grad()
    nn.functional.nll_loss(model(X[batch]).log(), Y[batch]).backward()


def compare(laws, model, optimizer, tolerance=1e-14):
    """Predict, step, compare; returns whether each prediction called itself exact."""
    before, predicted = laws.value(model), laws.predict_drift(model, optimizer)
    optimizer.step()
    for name, after in laws.value(model).items():
        torch.testing.assert_close(after - before[name], predicted[name].change, atol=tolerance, rtol=1e-9)
    return {prediction.exact for prediction in predicted.values()}


def test_there_is_a_law_of_every_kind(laws):
    assert {law.kind for law in laws} == {"vertex", "linear", "shift"}


@pytest.mark.parametrize("batch", [slice(None), slice(3, 8), slice(0, 1)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_sgd_with_weight_decay_is_predicted_exactly(laws, batch, decay):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=decay)
    for _ in range(3):
        backward(model, batch)
        assert compare(laws, model, optimizer) == {True}


def test_the_prediction_is_not_the_step_itself(laws):
    """A wrong gradient moves the laws in another way than predicted: that is what makes the prediction a test."""
    model = network()
    backward(model)
    model[2].weight.grad *= 1.01
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with pytest.raises(AssertionError, match="not close"):
        compare(laws, model, optimizer)


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
    ids=["momentum", "nesterov", "Adam", "AdamW", "RMSprop"],
)
def test_other_optimizers_are_stepped_on_a_copy_and_say_so(laws, build):
    model = network()
    optimizer = build(model.parameters())
    for _ in range(2):  # the second step reads the state of the first
        backward(model)
        assert compare(laws, model, optimizer) == {False}


def test_predicting_changes_nothing(laws):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    backward(model)
    optimizer.step()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    laws.predict_drift(model, optimizer)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for number, slots in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state["state"][number][name]) for name, value in slots.items())


def test_exact_only_where_all_members_share_rate_and_decay(laws):
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.2}, {"params": [*model[2:].parameters()], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    backward(model)
    exact = {name: prediction.exact for name, prediction in laws.predict_drift(model, optimizer).items()}
    assert exact == {
        "0.weight → 2.weight": False,
        "2.weight → 3.weight": True,
        "shift of 3.weight + 3.bias": True,
    }
    compare(laws, model, optimizer)


def test_laws_that_an_eps_breaks_are_not_exact(derived):
    model, laws = case("layer norm").model(), derived("layer norm")
    model(*case("layer norm").inputs()).square().sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exact = {name: prediction.exact for name, prediction in laws.predict_drift(model, optimizer).items()}
    assert exact == {"scale of 0.weight": False, "1.weight → 2.weight": True, "shift of 0.weight + 0.bias": True}
    compare(laws, model, optimizer, tolerance=1e-12)


def test_tied_weights_are_predicted_once(derived):
    """Two names of one tensor: its gradient is the sum over all uses, and the law counts it once a side."""
    model, laws = case("gpt, tied").model(), derived("gpt, tied")
    model(*case("gpt, tied").inputs()).square().sum().backward()
    compare(laws, model, torch.optim.SGD(model.parameters(), lr=1e-3), tolerance=1e-11)
