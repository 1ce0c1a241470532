"""The geometry that cross-entropy leads to, beside the measured one, in the notes of a certificate."""

import re

import pytest
import torch
from torch import nn

import equipoise as eq

COUNTS = [10, 10, 1, 1]


def cosines(certificate):
    """Classifiers, features and logits of the note; none where there is no note."""
    notes = [note for note in certificate.notes if note.startswith("geometry of ")]
    return [tuple(map(float, re.findall(r"(?:classifiers|features|logits) (-?[\d.]+)", note))) for note in notes]


def corners(loss):
    """A network with the predicted logits, its features and classifiers their balanced factors."""
    predicted = eq.losses.predicted_geometry(loss, COUNTS)
    left, values, right = torch.linalg.svd(predicted.logits)
    root = values[:3].sqrt()
    labels = eq.data.one_hot_examples(COUNTS)[1]  # each example has an input of its own
    model = nn.Sequential(nn.Linear(len(labels), 3, bias=False), nn.Linear(3, 4, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_((root[:, None] * right[:3])[:, labels])
        model[1].weight.copy_(left[:, :3] * root)
    return model


@pytest.mark.parametrize("make", [None, eq.losses.label_dependent, eq.losses.class_dependent])
def test_the_cosines_are_those_of_the_two_geometries(make):
    loss = None if make is None else make(COUNTS)
    X, y = eq.data.one_hot_examples(COUNTS)
    model = corners(loss)
    found = cosines(eq.certify(model, (X, y), loss="cross_entropy" if loss is None else loss))
    means = torch.stack([model[0](X)[y == label].mean(0) for label in range(4)]).detach()
    weight = model[1].weight.detach()
    predicted = eq.losses.predicted_geometry(loss, COUNTS)
    expected = [
        float((gram / gram.norm() * theirs).sum())
        for gram, theirs in (
            (weight @ weight.T, predicted.classifiers),
            (means @ means.T, predicted.features),
            (weight @ means.T, predicted.logits),
        )
    ]
    assert found == [pytest.approx(expected, abs=0.0051)]
    assert expected[2] == pytest.approx(1, abs=1e-12)  # the logits are the predicted ones by construction


def test_another_direction_is_seen():
    X, y = eq.data.one_hot_examples(COUNTS)
    model = corners(None)
    with torch.no_grad():
        model[1].weight.copy_(model[1].weight.roll(1, 0))  # each class is given the scores of another
    assert cosines(eq.certify(model, (X, y), loss="cross_entropy"))[0][2] < 0.5


@pytest.mark.parametrize(
    ("loss", "weights", "zero"),
    [
        ("multiclass_exponential", None, False),
        ("cross_entropy", torch.arange(1.0, 23.0).double(), False),
        ("cross_entropy", None, True),
        (eq.losses.AdjustedCrossEntropy(torch.rand(4, 4) + 1), None, False),
    ],
)
def test_nothing_is_said_where_nothing_is_predicted_or_measured(loss, weights, zero):
    X, y = eq.data.one_hot_examples(COUNTS)
    model = corners(None)
    if zero:
        nn.init.zeros_(model[1].weight)
    assert cosines(eq.certify(model, (X, y), loss=loss, example_weights=weights)) == []
