import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import InputError
from equipoise.measure.margins import (
    binary_margins,
    class_margins,
    inverse_loss,
    normalised_margin,
    smoothed_normalised_margin,
    support,
)


def precise_inverse_logistic(log_total):
    """`-log(e^t - 1)` with 60 digits and room for the cancellation of `e^t - 1`."""
    with mpmath.workdps(60 + int(abs(log_total))):
        return float(-mpmath.log(mpmath.expm1(mpmath.exp(mpmath.mpf(log_total)))))


@pytest.mark.parametrize("log_total", [-1000.0, -745.0, -708.0, -36.7, -5.0, -0.1, 0.0, 1e-9, 0.7, 3.0, 6.5])
def test_the_logistic_inverse_has_full_precision(log_total):
    assert inverse_loss(log_total, "logistic") == pytest.approx(precise_inverse_logistic(log_total), rel=4e-16)


def test_the_logistic_inverse_near_its_zero():
    log_total = math.log(math.log(2)) + 1e-9
    assert inverse_loss(log_total, "logistic") == pytest.approx(precise_inverse_logistic(log_total), abs=1e-15)


@given(margin=st.floats(-600, 700), loss=st.sampled_from(["exponential", "logistic"]))
def test_the_inverse_undoes_the_loss(margin, loss):
    softplus = max(-margin, 0) + math.log1p(math.exp(-abs(margin)))
    log_loss = -margin if loss == "exponential" or margin > 40 else math.log(softplus)
    assert inverse_loss(log_loss, loss) == pytest.approx(margin, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("loss", ["exponential", "logistic", "cross_entropy", "multiclass_exponential"])
def test_nothing_underflows_at_the_end_of_the_flow(loss):
    found = smoothed_normalised_margin(-1e15, examples=500, norm=800.0, degree=5, loss=loss)
    assert found == pytest.approx((1e15 - math.log(500)) / 800.0**5, rel=1e-14)


@given(margins=st.lists(st.floats(0.5, 30), min_size=1, max_size=8), norm=st.floats(0.5, 50), degree=st.integers(1, 6))
def test_the_smoothed_margin_is_below_the_margin_by_at_most_log_n(margins, norm, degree):
    log_risk = float(torch.logsumexp(-torch.tensor(margins, dtype=torch.float64), 0)) - math.log(len(margins))
    smoothed = smoothed_normalised_margin(log_risk, len(margins), norm, degree) * norm**degree
    hard = normalised_margin(torch.tensor(margins, dtype=torch.float64), norm, degree) * norm**degree
    assert hard - math.log(len(margins)) - 1e-12 <= smoothed <= hard + 1e-12


@pytest.mark.parametrize("margin", [1e13, 3.0, 0.0, -2.0])
def test_the_normalised_margin_is_exact_and_homogeneous(margin):
    exact = float(Fraction(margin) / Fraction(7) ** 5)
    assert normalised_margin(torch.tensor([margin, 1e14], dtype=torch.float64), 7, 5) == pytest.approx(exact, rel=1e-14)
    scaled = normalised_margin(torch.tensor([margin, 1e14], dtype=torch.float64) * 3.0**5, 21, 5)
    assert scaled == pytest.approx(exact, rel=1e-14)


def test_a_deep_network_does_not_overflow_the_norm():
    assert normalised_margin(torch.tensor([1.0]), norm=1e10, degree=31) == pytest.approx(1e-310, rel=1e-6)


def test_binary_margins():
    scores, labels = torch.tensor([2.0, -1.0, 4.0]), torch.tensor([1, -1, -1])
    assert binary_margins(scores, labels).tolist() == [2, 1, -4]
    assert binary_margins(scores[:, None], labels.double()).tolist() == [2, 1, -4]


def test_class_margins_leave_the_true_class_out():
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 3, 0])
    found = class_margins(scores, labels)
    for i, y in enumerate(labels.tolist()):
        assert found[i].tolist() == [float(scores[i, y] - scores[i, c]) for c in range(4) if c != y]


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=30), st.sampled_from([0.5, 0.01, 1e-6]))
def test_what_support_leaves_out_weighs_less_than_the_stated_share(margins, discard):
    margins = torch.tensor(margins, dtype=torch.float64)
    kept = support(margins, discard)
    assert kept[margins.argmin()]
    assert torch.softmax(-margins, 0)[~kept].sum() < discard


def test_support_of_class_margins_counts_each_margin():
    kept = support(torch.tensor([[1.0, 90.0], [1.5, 1.0], [80.0, 70.0]]))
    assert kept.any(dim=1).tolist() == [True, True, False]


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match=r"labels in \{-1, \+1\}; found labels \[0, 1\]; map the classes"):
        binary_margins(torch.ones(2), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"one score and one label.*use class_margins"):
        binary_margins(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(InputError, match=r"2 labels in 0 … 2; found .* in \[1, 3\]"):
        class_margins(torch.ones(2, 3), torch.tensor([1, 3]))
    with pytest.raises(InputError, match=r"finite margins .*found 1 of 2 margins NaN or infinite"):
        normalised_margin(torch.tensor([1.0, float("nan")]), 1.0, 2)
    with pytest.raises(InputError, match="positive finite norm"):
        normalised_margin(torch.tensor([1.0]), 0.0, 2)
    with pytest.raises(InputError, match=r"a loss among exponential, .*found 'hinge'"):
        smoothed_normalised_margin(-3.0, 5, 1.0, 2, loss="hinge")
    with pytest.raises(InputError, match="finite logarithm of a total loss; found nan"):
        inverse_loss(float("nan"))
    with pytest.raises(InputError, match="finite logarithm of a total loss; found 1000"):
        inverse_loss(1000.0, "logistic")
    with pytest.raises(InputError, match="between 0 and 1; found discard=2"):
        support(torch.ones(2), discard=2.0)
