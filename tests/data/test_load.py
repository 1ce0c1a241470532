"""The named data sets: shapes, labels, subsets, provenance, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from equipoise import data
from equipoise.errors import InputError
from helpers.images import needs_images


def test_digits_are_scikit_learns_in_the_unit_interval():
    X, y = data.load("digits")
    pixels, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal(X, pixels / 16)
    np.testing.assert_array_equal(y, labels)
    assert (X.dtype, y.dtype) == (torch.float64, torch.int64)
    assert (X.min(), X.max()) == (0, 1)


def test_first_class_is_minus_one():
    forth, back = data.load("digits", classes=(3, 5)), data.load("digits", classes=(5, 3))
    digits = load_digits().target[list(forth.provenance.indices)]
    np.testing.assert_array_equal(forth.y, np.where(digits == 3, -1.0, 1.0))
    torch.testing.assert_close(forth.y, -back.y)
    assert forth.X.equal(back.X)


def test_several_classes_are_numbered_by_their_place():
    X, y = data.load("digits", classes=(7, 2, 4), n=50)
    indices = data.load("digits", classes=(7, 2, 4), n=50).provenance.indices
    np.testing.assert_array_equal(np.array([7, 2, 4])[y], load_digits().target[list(indices)])
    assert len(X) == 50


def test_subset_is_drawn_by_the_seed_without_replacement():
    draws = [data.load("digits", classes=(0, 1), n=100, seed=seed).provenance.indices for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 100
    assert list(draws[0]) == sorted(draws[0])


def test_smaller_subset_of_a_seed_is_within_the_larger():
    few, many = (data.load("digits", classes=(0, 1), n=n).provenance.indices for n in (20, 40))
    assert set(few) < set(many)


def test_loading_leaves_the_global_generators_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    data.load("digits", n=100)
    data.load("separable", n=10)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_separable_has_its_margin_and_its_gaussian_spread():
    X, y = data.load("separable", n=2000, d=3, seed=4)
    assert (X.shape, X.dtype, y.dtype) == ((2000, 3), torch.float64, torch.float64)
    assert y.sum() == 0
    # the normal is what the mean points along: E[y x] = (MARGIN + sqrt(2/pi)) normal
    mean = (y[:, None] * X).mean(0)
    normal = mean / mean.norm()
    assert mean.norm().item() == pytest.approx(data.MARGIN + (2 / np.pi) ** 0.5, rel=0.05)
    assert (y * (X @ normal)).min() > 0.7 * data.MARGIN  # the estimated normal is a few degrees off
    across = X - (X @ normal)[:, None] * normal
    assert across.square().sum(1).mean().item() == pytest.approx(2, rel=0.1)


def test_separable_by_default():
    assert data.load("separable").X.shape == (100, 20)


@needs_images
@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("mnist", "b98e6792ceede1e5ce34429a3891c8d9f7726fa94484adf5790333388041d063"),
        ("fashion_mnist", "dda5ec3c3522ba18c499a1696aa53ed63908a2306253cd37de3b0d756f457794"),
    ],
)
def test_images_of_two_classes(name, sha256):
    X, y = chosen = data.load(name, classes=(0, 1), n=500, seed=0)
    assert (X.shape, X.dtype) == ((500, 784), torch.float64)
    assert (X.min(), X.max()) == (0, 1)
    assert set(y.tolist()) == {-1, 1}
    assert chosen.provenance.sha256 == sha256
    assert data.rebuild(chosen.provenance).X.equal(X)


@pytest.mark.parametrize(
    "arguments",
    [("digits", (3, 5), 40, 7), ("digits", (1, 2, 3), None, 0), ("separable", None, 12, 3, 5)],
)
def test_rebuilt_from_its_provenance(arguments):
    first = data.load(*arguments)
    again = data.rebuild(first.provenance)
    assert again.X.equal(first.X)
    assert again.y.equal(first.y)
    assert again.provenance == first.provenance


def test_rebuilding_what_has_changed_is_refused():
    provenance = data.load("digits", classes=(3, 5), n=40).provenance
    with pytest.raises(InputError, match=r"expected digits with SHA-256 6e34; found [0-9a-f]{64}"):
        data.rebuild(replace(provenance, sha256="6e34"))


def test_rebuilding_the_users_own_is_refused():
    provenance = data.validate(([[1.0], [2.0]], [0, 1])).provenance
    with pytest.raises(InputError, match="a named data set; found data 'user'; pass the same X and y again"):
        data.rebuild(provenance)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fashion-mnst"}, "found 'fashion-mnst'; did you mean 'fashion_mnist'?"),
        ({"name": "cifar"}, "among digits, mnist, fashion_mnist, separable; found 'cifar'; pass one of them"),
        ({"name": "digits", "classes": (0, 17)}, "among 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; found 17"),
        ({"name": "digits", "classes": (3, 3)}, r"two or more different classes; found \(3, 3\)"),
        ({"name": "digits", "classes": (3,)}, r"two or more different classes; found \(3,\)"),
        ({"name": "digits", "classes": ()}, r"two or more different classes; found \(\)"),
        ({"name": "digits", "classes": (0, 1), "n": 361}, "n at most 360, .*; found 361"),
        ({"name": "digits", "n": 0}, "n to be a whole number, at least 1; found 0; pass n=100"),
        ({"name": "digits", "seed": -1}, "seed to be a whole number, at least 0; found -1; pass seed=0"),
        ({"name": "digits", "classes": (0, 1), "n": 1}, "two classes or more; found only label -?1 in 1 examples"),
        ({"name": "digits", "d": 3}, "d only for separable; found d=3 for digits"),
        ({"name": "separable", "classes": (0, 1)}, r"no classes for separable; found \(0, 1\)"),
        ({"name": "separable", "n": 1}, "n from 2 and d from 1; found n=1, d=20"),
        ({"name": "separable", "d": 0}, "n from 2 and d from 1; found n=100, d=0"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        data.load(**arguments)
    assert "\n" not in str(error.value)
