"""How many laws there can be (T2.3), by the rank of a Lie algebra, beside how many were found."""

import pytest
import torch
from torch import nn

from equipoise.laws import invariances
from helpers.cases import noise


def linear(n, r, m):
    return nn.Sequential(nn.Linear(n, r, bias=False), nn.Linear(r, m, bias=False))


def formula(n, r, m):
    return r * (r + 1) // 2 if n + m >= r else (n + m) * r - (n + m) * (n + m - 1) // 2


@pytest.mark.parametrize(
    ("widths", "functions", "quadratics"),
    [
        ((2, 2, 2), 3, 3),
        ((1, 3, 1), 5, 6),
        pytest.param((3, 2, 4), 3, 3, marks=pytest.mark.slow),
        pytest.param((2, 5, 2), 14, 15, marks=pytest.mark.slow),
        pytest.param((1, 4, 1), 7, 10, marks=pytest.mark.slow),
    ],
)
def test_two_layer_linear_networks(widths, functions, quadratics):
    laws = invariances(linear(*widths), torch.ones(3, widths[0]))
    found = laws.completeness()
    assert functions == formula(*widths)
    assert (found.possible, found.found, laws.conserved) == (functions, functions, quadratics)


def test_a_network_whose_only_relu_may_be_off_for_an_input():
    """Of a field that is zero at the point, nothing is divided by its size."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    found = invariances(model, torch.ones(3, 2)).completeness()
    assert (found.possible, found.found) == (1, 1)


@pytest.mark.parametrize("hidden", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_two_layer_relu_networks_have_one_for_each_hidden_neuron(hidden):
    laws = invariances(nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 2)), torch.ones(3, 2))
    found = laws.completeness()
    assert (found.possible, found.missing) == (hidden, 0)


@pytest.mark.parametrize(
    ("build", "inputs", "possible"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)), noise(4, 2), 0),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 1)),
            noise(4, 1),
            5,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["gelu", "relu and a tail"],
)
def test_no_conserved_function_is_missing(build, inputs, possible):
    torch.manual_seed(0)
    found = invariances(build(), tuple(x.float() for x in inputs())).completeness()
    assert (found.possible, found.missing) == (possible, 0)


def test_softmax_in_the_loss_counts_differences_only():
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 3))
    with_loss = invariances(model, torch.ones(3, 2), loss="cross_entropy").completeness()
    assert (with_loss.possible, with_loss.missing) == (1 + 2, 0)


def test_a_law_left_out_is_missing():
    laws = invariances(linear(2, 2, 1), torch.ones(3, 2))
    assert laws[:0].completeness().missing == 3
