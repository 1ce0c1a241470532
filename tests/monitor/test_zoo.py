"""Architectures of the zoo in training: `eq.watch` has the laws of `eq.invariances`, and raises no alarm."""

import pytest

import equipoise as eq
import zoo

pytest.importorskip("accelerate")
SAMPLE = ("MLP, LayerNorm", "SwiGLU", "reader of a difference")


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


def test_an_encoder_and_a_decoder_that_are_fed_views_of_one_tensor_are_read():
    pytest.importorskip("transformers")
    (architecture,) = zoo.chosen(["T5"])
    laws = eq.invariances(architecture.model(4), architecture.arguments(4))
    assert len(laws) > 10
