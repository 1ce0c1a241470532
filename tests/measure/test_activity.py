import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from equipoise.errors import InputError
from equipoise.measure.activity import pattern_classes, patterns, stably_active, stably_inactive


@st.composite
def pre_activations(draw, distinct=None):
    """Random z with exact zeros, columns repeated and columns all off, on any number of examples."""
    n, neurons = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    z = torch.randint(-2, 3, (n, distinct or neurons), generator=generator).double()
    z = z[:, torch.randint(0, z.shape[1], (neurons,), generator=generator)]
    return torch.where(torch.rand(neurons, generator=generator) < 0.2, -z.abs(), z)


@given(z=pre_activations())
def test_packing_keeps_every_bit(z):
    packed = patterns(z)
    assert torch.equal(packed.unpack(), z > 0)
    assert torch.equal(packed.on_counts(), (z > 0).sum(0))
    assert packed.words.numel() == -(-z.shape[0] // 8) * z.shape[1]


@given(z=pre_activations(), seed=st.integers(0, 2**32))
def test_flips_are_the_pairs_that_differ(z, seed):
    later = z * torch.randint(-1, 2, z.shape, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(patterns(z).flips(patterns(later)), ((z > 0) != (later > 0)).sum(0))


@given(z=pre_activations(distinct=3))
def test_pattern_classes_are_those_of_pairwise_comparison(z):
    found = pattern_classes(patterns(z))
    assert {tuple(members.tolist()) for members in found.classes} == reference.pattern_classes(z)
    assert found.all_off.tolist() == [u for u in range(z.shape[1]) if not (z[:, u] > 0).any()]
    sizes = [len(members) for members in found.classes]
    assert sizes == sorted(sizes, reverse=True)
    for index, members in enumerate(found.classes):
        assert (found.labels[members] == index).all()
    assert (found.labels[found.all_off] == -1).all()


def test_patterns_that_differ_in_the_last_example_only_are_two_classes():
    z = torch.ones(17, 2)
    z[16, 1] = -1
    assert len(pattern_classes(patterns(z)).classes) == 2


def test_a_layer_that_is_off_everywhere_has_no_class():
    found = pattern_classes(patterns(-torch.ones(5, 3)))
    assert found.classes == ()
    assert found.all_off.tolist() == [0, 1, 2]


def test_stable_means_in_every_snapshot():
    first = patterns(torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]))
    second = patterns(torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 0.0, 1.0]]))
    assert stably_active([first, second]).tolist() == [True, False, False, False]
    assert stably_inactive([first, second]).tolist() == [False, False, True, False]
    assert stably_active([first]).tolist() == [True, True, False, False]


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match=r"without NaN.*found shape \(1, 2\) with 1 NaN"):
        patterns(torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(InputError, match=r"at least one example and one neuron; found shape \(0, 2\)"):
        patterns(torch.zeros(0, 2))
    with pytest.raises(InputError, match="the same 9 examples; found 2 neurons on 10 examples"):
        patterns(torch.ones(9, 2)).flips(patterns(torch.ones(10, 2)))
    with pytest.raises(InputError, match="one or more snapshots"):
        stably_active([])
