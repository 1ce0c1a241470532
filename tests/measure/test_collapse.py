import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from equipoise import measure
from equipoise.data import load
from equipoise.errors import InputError


def features(n, d, classes, seed, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (n,), generator=generator)])
    centres = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    return centres[labels] + spread * torch.randn(len(labels), d, generator=generator, dtype=torch.float64), labels


@given(n=st.integers(1, 30), d=st.integers(2, 8), classes=st.integers(3, 6), seed=st.integers(0, 2**32))
def test_every_figure_is_its_formula(n, d, classes, seed):
    rows, labels = features(n, d, classes, seed)
    weight = torch.randn(classes, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = measure.neural_collapse(rows, labels, weight)
    for name, value in reference.collapse_figures(rows, labels, weight).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-7, abs=1e-10)
    variation = measure.cluster_variation(rows, labels)
    within, total = reference.cluster_sums(rows, labels)
    assert variation.within == pytest.approx(within, rel=1e-10)
    assert variation.share == pytest.approx(within / total, rel=1e-10)
    assert measure.centre_mismatch(rows, labels) == pytest.approx(reference.mismatched(rows, labels))


def test_a_collapsed_layer_has_every_figure_zero():
    """An orthogonal frame, as a ReLU layer collapses to, and the classifier that is dual to it."""
    labels = torch.arange(4).repeat(5)
    frame = torch.eye(6, dtype=torch.float64)[:4] * 3
    found = measure.neural_collapse(frame[labels], labels, weight=0.1 * (frame - frame.mean(0)))
    assert max(vars(found).values()) < 1e-14
    assert measure.cluster_variation(frame[labels], labels).within == 0
    assert measure.centre_mismatch(frame[labels], labels) == 0


def test_class_means_that_coincide_are_no_collapse():
    rows = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    assert measure.neural_collapse(rows, torch.tensor([0, 0, 1, 1])).within == math.inf
    assert measure.cluster_variation(rows, torch.tensor([0, 0, 1, 1])).share == 1


def test_variation_outside_the_span_of_the_means_is_seen_by_the_share_alone():
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert measure.neural_collapse(rows, labels).within == 0
    assert measure.cluster_variation(rows, labels).share == 0.5


def test_centres_of_the_training_set_judge_other_examples():
    X, y = load("digits", n=1200, seed=0)
    train, test = slice(0, 800), slice(800, None)
    mismatch = measure.centre_mismatch(X[train], y[train], (X[test], y[test]))
    centres = torch.stack([X[train][y[train] == c].mean(0) for c in range(10)])
    nearest = [(centres - x).square().sum(1).argmin() for x in X[test]]
    assert mismatch == pytest.approx(float((torch.stack(nearest) != y[test]).double().mean()))
    assert 0.02 < mismatch < 0.3


def test_effective_depth():
    assert measure.effective_depth([0.5, 0.01, 0.0], epsilon=0.01) == 2
    assert measure.effective_depth([0.5, 0.4]) == 2
    with pytest.raises(InputError, match="one layer or more"):
        measure.effective_depth([])


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match="two classes or more; found 1 in 3 examples"):
        measure.neural_collapse(torch.ones(3, 2), torch.zeros(3).long())
    with pytest.raises(InputError, match=r"labels of shape \(2,\)"):
        measure.cluster_variation(torch.ones(3, 2), torch.zeros(2).long())
    with pytest.raises(InputError, match="1 entries not finite"):
        measure.centre_mismatch(torch.tensor([[1.0], [math.nan]]), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"classifier of shape \(2, 3\)"):
        measure.neural_collapse(torch.eye(3)[:2], torch.tensor([0, 1]), torch.ones(3, 3))
