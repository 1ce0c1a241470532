"""Data of the user's own: what is accepted, what it becomes, what is refused."""

import copy
import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from equipoise.data import Dataset, Provenance, load, validate
from equipoise.errors import InputError

X = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "int8", "bool"])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_any_real_dtype_becomes_float64(dtype, kind):
    values = np.array([[0, 1], [1, 1]]).astype(dtype)
    data = Dataset.from_tensors(kind(values), kind(np.array([0, 1]).astype(dtype)))
    assert data.X.tolist() == [[0, 1], [1, 1]]
    assert data.y.tolist() == [-1, 1]
    assert (data.X.dtype, data.y.dtype) == (torch.float64, torch.float64)


@pytest.mark.parametrize("labels", [[-1, 1, 1], [0, 1, 1], [False, True, True], np.array([-1.0, 1.0, 1.0])])
def test_binary_labels(labels):
    assert validate((X, labels)).y.tolist() == [-1, 1, 1]


def test_class_indices():
    y = validate((X, [2.0, 0.0, 1.0]), multiclass=True).y
    assert y.tolist() == [2, 0, 1]
    assert y.dtype == torch.int64


def test_images_keep_their_shape():
    data = validate((np.zeros((3, 1, 8, 8)), [0, 1, 1]))
    assert data.X.shape == (3, 1, 8, 8)
    assert (data.provenance.n, data.provenance.shape) == (3, (1, 8, 8))


def test_awkward_arrays():
    backwards = np.arange(6.0).reshape(3, 2)[::-1]
    backwards.flags.writeable = False
    assert validate((backwards, [0, 1, 1])).X.tolist() == [[4, 5], [2, 3], [0, 1]]
    weights = torch.tensor(X, requires_grad=True)
    assert not validate((weights, [0, 1, 1])).X.requires_grad


def test_unpacks_as_a_pair_and_survives_a_copy():
    data = load("digits", classes=(0, 1), n=10)
    inputs, labels = data
    assert inputs is data.X
    assert labels is data.y
    again = copy.deepcopy(data)
    assert again.X.equal(data.X)
    assert again.provenance == data.provenance


def test_checksum_is_over_the_bytes_of_inputs_then_labels():
    data = validate((X, [0, 1, 1]))
    content = np.array(X, "<f8").tobytes() + np.array([-1, 1, 1], "<f8").tobytes()
    assert data.provenance == Provenance("user", 3, (2,), hashlib.sha256(content).hexdigest())


def test_checksum_of_a_transposed_tensor():
    columns = torch.tensor(X, dtype=torch.float64).T.contiguous()
    assert validate((columns.T, [0, 1, 1])).provenance == validate((X, [0, 1, 1])).provenance


def test_provenance_survives_json():
    provenance = load("digits", classes=(3, 5), n=4).provenance
    assert Provenance.from_json(json.loads(json.dumps(asdict(provenance)))) == provenance


def test_named_data_keeps_its_provenance_until_it_is_changed():
    data = load("digits", classes=(0, 1), n=10)
    assert validate(data).provenance == data.provenance
    data.X[0, 0] += 1
    assert validate(data).provenance.name == "user"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.tensor([[0.0, 1.0], [float("nan"), 2.0]]), [0, 1]), r"finite inputs; found nan at X\[1, 0\]"),
        (([[0.0, 1.0], [1.0, -np.inf]], [0, 1]), r"finite inputs; found -inf at X\[1, 1\]"),
        ((X, [0, 1, 2]), r"labels in \{-1, \+1\} or \{0, 1\}; found labels 0, 1, 2"),
        ((X, [-1, 0, 1]), r"labels in \{-1, \+1\} or \{0, 1\}; found labels -1, 0, 1"),
        ((X, [0, 1, np.nan]), r"labels in \{-1, \+1\} or \{0, 1\}; found labels 0, 1, nan"),
        ((X, [1, 1, 1]), "examples of two classes or more; found only label 1 in 3 examples"),
        ((X, [0, 0, 0]), "examples of two classes or more; found only label 0 in 3 examples"),
        ((np.zeros((0, 2)), []), r"at least one example; found shape \(0, 2\)"),
        (([], []), r"at least one example; found shape \(0,\)"),
        (([1.0, 2.0], [0, 1]), r"X of shape \(n, ...\) .*; found shape \(2,\)"),
        ((X, [0, 1]), r"3 labels of shape \(3,\), one per example; found shape \(2,\)"),
        ((X, [[0], [1], [1]]), r"3 labels of shape \(3,\), one per example; found shape \(3, 1\)"),
        ((np.array(X) * 1j, [0, 1, 1]), "X of real numbers; found complex numbers"),
        ((torch.tensor(X) * 1j, [0, 1, 1]), "X of real numbers; found complex numbers"),
        (([["a", "b"]] * 3, [0, 1, 1]), "X of real numbers; found could not convert"),
        (([[1.0, 2.0], [3.0], [1.0, 1.0]], [0, 1, 1]), "X of real numbers; found setting an array element"),
        ((X, None), "labels of shape|y of real numbers"),
        (np.array(X), r"a pair \(X, y\); found ndarray"),
        ((X, [0, 1, 1], 3), r"a pair \(X, y\); found tuple"),
    ],
)
def test_refused(data, message):
    with pytest.raises(InputError, match=message) as error:
        validate(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [[0, 1, -1], [0, 1, 0.5], [0, 1, np.inf], [0, 1, np.nan]])
def test_senseless_class_indices(labels):
    with pytest.raises(InputError, match="class indices 0, 1, 2, …; found labels"):
        validate((X, labels), multiclass=True)


def test_one_class_of_several():
    with pytest.raises(InputError, match="found only label 2 in 3 examples"):
        validate((X, [2, 2, 2]), multiclass=True)
