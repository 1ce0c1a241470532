import copy

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.losses import (
    AdjustedCrossEntropy,
    class_dependent,
    label_dependent,
    logit_adjustment,
    measured_geometry,
    predicted_geometry,
)
from equipoise.optim import minimise
from helpers.sampling import sampled

COUNTS = [10, 10, 1, 1]
LOSSES = {"label_dependent": label_dependent, "class_dependent": class_dependent, "logit_adjustment": logit_adjustment}


def printed(name, scores, labels, counts):
    """The mean over the examples, each class and example by itself, as the papers print it."""
    n, delta = torch.tensor(counts).double(), (torch.tensor(counts).double() / max(counts)).sqrt()
    total = 0.0
    for z, y in zip(scores, labels.tolist(), strict=True):
        others = [c for c in range(len(z)) if c != y]
        term = {
            "label_dependent": lambda c, z=z, y=y: delta[y] * (z[c] - z[y]),
            "class_dependent": lambda c, z=z, y=y: delta[c] * z[c] - delta[y] * z[y],
            "logit_adjustment": lambda c, z=z, y=y: z[c] + (n[c] / n.sum()).log() - z[y] - (n[y] / n.sum()).log(),
        }[name]
        total = total + torch.log1p(sum(term(c).exp() for c in others))
    return total / len(scores)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_and_its_gradient_are_as_printed(name):
    torch.manual_seed(0)
    scores, labels = torch.randn(7, 4).double().requires_grad_(), torch.arange(7) % 4
    value, expected = LOSSES[name](COUNTS)(scores, labels), printed(name, scores, labels, COUNTS)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    for ours, theirs in zip(torch.autograd.grad(value, scores), torch.autograd.grad(expected, scores), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def features(width=6, scale=1.0):
    return eq.networks.deep_features(COUNTS, width, 1, scale=scale), eq.data.one_hot_examples(COUNTS)


def geometry(model):
    return measured_geometry(model[-1].weight, model[0].weight.T, eq.data.one_hot_examples(COUNTS)[1])


@pytest.mark.parametrize("name", [None, *LOSSES])
def test_free_features_come_to_the_predicted_geometry_as_the_ridge_falls(name):
    loss = nn.functional.cross_entropy if name is None else LOSSES[name](COUNTS)
    expected = predicted_geometry(None if name is None else LOSSES[name](COUNTS), COUNTS)
    assert expected.certified
    model, (X, y) = features()
    found = []
    for ridge in (1e-4, 1e-8):
        model = minimise(model, lambda model: loss(model(X), y), ridge=ridge, tolerance=1e-12).model
        found.append(geometry(model).cosines(expected))
    for part in ("classifiers", "features", "logits"):
        assert found[0][part] < found[1][part]
        assert found[1][part] > (0.97 if name == "logit_adjustment" else 0.99)  # shifts of an eighth of the logits


def test_label_dependent_temperatures_lead_to_the_simplex_and_others_do_not():
    simplex = torch.eye(4).double() - 0.25
    simplex = simplex / simplex.norm()
    cosine = lambda loss: float((predicted_geometry(loss, COUNTS).classifiers * simplex).sum())  # noqa: E731
    assert cosine(label_dependent(COUNTS)) == pytest.approx(1, abs=1e-12)
    assert max(map(cosine, (None, class_dependent(COUNTS), logit_adjustment(COUNTS)))) < 0.97


@pytest.mark.parametrize("name", ["label_dependent", pytest.param("class_dependent", marks=pytest.mark.slow)])
def test_gradient_flow_goes_there_and_a_run_is_read_back(name, tmp_path):
    loss, (model, data) = LOSSES[name](COUNTS), features(scale=0.3)
    eq.init.balanced_(model, data[0][:2])
    run = eq.flow(model, data, loss=loss, until=eq.LogLoss(-1e5), observe=[], out=tmp_path / "run")
    measured = geometry(run.model)
    cosines = measured.cosines(predicted_geometry(loss, COUNTS))
    assert min(cosines.values()) > 0.99
    again = eq.load(tmp_path / "run", model, data)
    assert torch.equal(again.loss.scale, loss.scale)
    certificate = eq.certify(run)
    assert {each.name: each.standing for each in certificate.assumptions}["separated"] == "verified"


@pytest.mark.parametrize(
    ("name", "count"),
    sampled([("label_dependent", 1), ("logit_adjustment", 1), ("class_dependent", 0)], [("logit_adjustment", 1)]),
)
def test_laws_know_which_scores_may_shift(name, count):
    loss, model = LOSSES[name]([3, 1]), nn.Sequential(nn.Linear(3, 2)).double()
    laws = eq.invariances(model, torch.randn(4, 3).double(), loss=loss)
    assert sum(law.kind == "shift" for law in laws) == count
    loss(model(torch.randn(6, 3).double()), torch.tensor([0, 0, 1, 1, 0, 1])).backward()
    assert all(residual < 1e-13 for residual in laws.residual(model).values())


def test_it_trains_digits_in_two_lines():
    X, y = eq.data.load("digits", n=600)
    keep = (y < 5) | (torch.arange(600) % 10 == 0)
    X, y = X[keep], y[keep]
    torch.manual_seed(0)
    model = nn.Linear(64, 10).double()
    rare = lambda model: float((model(X).argmax(1) == y)[y >= 5].double().mean())  # noqa: E731
    accuracy = {}
    for name in (None, "logit_adjustment"):
        trained = copy.deepcopy(model)
        counts = torch.bincount(y).tolist()
        criterion = nn.functional.cross_entropy if name is None else eq.losses.logit_adjustment(counts)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
        for _ in range(30):
            optimizer.zero_grad()
            criterion(trained(X), y).backward()
            optimizer.step()
        accuracy[name] = rare(trained)
    assert accuracy["logit_adjustment"] > accuracy[None] + 0.2


def test_the_state_is_that_of_a_module():
    loss = label_dependent(COUNTS).float()
    assert loss(torch.randn(3, 4), torch.tensor([0, 1, 2])).dtype == torch.float32
    assert copy.deepcopy(loss).load_state_dict(loss.state_dict()).missing_keys == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_dependent([3]), "examples of each of two classes or more"),
        (lambda: label_dependent([3, 0]), "at least one each"),
        (lambda: class_dependent([3, 1], gamma=float("inf")), "a finite gamma"),
        (lambda: logit_adjustment([3, 1], tau=float("nan")), "a finite tau"),
        (lambda: AdjustedCrossEntropy(torch.zeros(2, 2)), "positive scales"),
        (lambda: AdjustedCrossEntropy(torch.ones(2, 3)), "a square matrix"),
        (lambda: AdjustedCrossEntropy(torch.ones(2, 2), torch.ones(3)), "2 finite shifts"),
        (lambda: label_dependent([3, 1])(torch.ones(1, 3), torch.tensor([0])), "expected 2 classes"),
        (lambda: predicted_geometry(label_dependent([3, 1]), [3, 1, 1]), "counts of 2 classes"),
        (
            lambda: predicted_geometry(AdjustedCrossEntropy(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), [1, 1]),
            "label alone or on the class alone",
        ),
        (lambda: measured_geometry(torch.ones(2, 3), torch.ones(4, 3), torch.zeros(4).long()), "examples of each"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
