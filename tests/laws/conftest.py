"""Deriving the laws of a network costs an export: each network of the zoo is derived once."""

from functools import cache

import pytest

from equipoise.laws import invariances
from helpers.cases import case


@cache
def _derived(name):
    network = case(name)
    return invariances(network.model(), network.inputs())


@pytest.fixture(scope="session")
def derived():
    """The laws of a network of the zoo, by its name."""
    return _derived
