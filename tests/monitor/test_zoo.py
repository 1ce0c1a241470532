"""Architectures of the zoo in training: `eq.watch` has the laws of `eq.invariances`, and raises no alarm."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
zoo = pytest.importorskip("zoo")

SAMPLE = ("MLP, LayerNorm", "SwiGLU", "Language model, rotary")


def assert_as_it_should_be(architecture):
    for row in zoo.watched(architecture):
        assert row.good, row


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_has_the_same_laws_under_watch_and_no_alarm(name):
    (architecture,) = zoo.chosen([name])
    assert_as_it_should_be(architecture)


@pytest.mark.slow
@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_the_whole_zoo_has_the_same_laws_under_watch_and_no_alarm(family):
    pytest.importorskip(family)
    for architecture in zoo.chosen([family]):
        assert_as_it_should_be(architecture)
