"""Deriving the laws of a network costs an export: each network of the zoo is derived once."""

import warnings
from functools import cache

import pytest
from cases import case

from equipoise.laws import invariances


@cache
def _derived(name):
    network = case(name)
    with warnings.catch_warnings():
        # torch 2.13's own nn.RNN and nn.LSTM rebuild their list of weights while being exported
        warnings.filterwarnings("ignore", message="The tensor attributes .*_flat_weights.*", category=UserWarning)
        return invariances(network.model(), network.inputs())


@pytest.fixture(scope="session")
def derived():
    """The laws of a network of the zoo, by its name."""
    return _derived
