"""Inputs and labels with their provenance, and the check that all data passes before it is trained on."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from equipoise.errors import InputError


@dataclass(frozen=True)
class Provenance:
    """Where a data set comes from: enough to rebuild it, and to know that it is the same.

    `indices` count in the original training set; `shape` is that of one example; `sha256` is over the bytes of `X`,
    then of `y`, little-endian. Data of your own has the name "user" and no classes, seed or indices.

    `dataclasses.asdict` gives what JSON can hold.
    """

    name: str
    n: int
    shape: tuple[int, ...]
    sha256: str
    classes: tuple[int, ...] | None = None
    seed: int | None = None
    indices: tuple[int, ...] | None = None

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Provenance":
        """From what JSON made of it: lists become tuples again.

        >>> Provenance.from_json({"name": "user", "n": 3, "shape": [8, 8], "sha256": "6e34"}).shape
        (8, 8)
        """
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return Provenance(**values)


class Dataset(tuple[Tensor, Tensor]):
    """Inputs and labels that unpack as `X, y`, with their provenance.

    `X` is float64 of shape (n, ...). `y` is float64 in {-1, +1}, or int64 class indices.
    """

    provenance: Provenance

    def __new__(
        cls,
        X: Float64[Tensor, "n ..."],
        y: Float64[Tensor, " n"] | Int64[Tensor, " n"],
        provenance: Provenance,
    ) -> "Dataset":
        """The pair and where it is from, unchecked; `from_tensors` checks."""
        self = super().__new__(cls, (X, y))
        self.provenance = provenance
        return self

    def __getnewargs__(self) -> tuple[Tensor, Tensor, Provenance]:  # type: ignore[override]
        return self.X, self.y, self.provenance

    @property
    def X(self) -> Float64[Tensor, "n ..."]:
        """The inputs."""
        return self[0]

    @property
    def y(self) -> Float64[Tensor, " n"] | Int64[Tensor, " n"]:
        """The labels."""
        return self[1]

    @classmethod
    def from_tensors(cls, X: object, y: object, multiclass: bool = False) -> "Dataset":
        """Data of your own, checked: float64 `X` of shape (n, ...), and `y` of shape (n,) beside it on its device.

        Tensors, arrays and lists of any real dtype will do. Labels are {-1, +1} or {0, 1}, which become {-1, +1}; with
        `multiclass`, whole numbers from 0, which become int64.

        >>> X, y = Dataset.from_tensors([[0.5, 1.0], [2.0, 0.0]], [0, 1])
        >>> y
        tensor([-1.,  1.], dtype=torch.float64)

        Raises:
            InputError: for no examples, NaN or infinite inputs, another number of labels than of examples, labels
                outside those sets, and examples of one class only.
        """
        inputs = _real("X", X)
        if inputs.ndim < 2 or inputs.numel() == 0:
            raise InputError(
                expected="X of shape (n, ...) with at least one example",
                found=f"shape {tuple(inputs.shape)}",
                remedy="pass one row per example",
            )
        _check_finite(inputs)
        labels = _labels(_real("y", y).to(inputs.device), len(inputs), multiclass)
        shape = tuple(inputs.shape[1:])
        return cls(inputs, labels, Provenance("user", len(inputs), shape, checksum(inputs, labels)))


def validate(data: object, multiclass: bool = False) -> Dataset:
    """A pair `(X, y)`, or a `Dataset`, checked and converted as `Dataset.from_tensors` does.

    A `Dataset` keeps its provenance, unless its tensors have been changed since: then it is the user's own.

    >>> validate(([[0.5], [2.0]], [-1, 1])).provenance.name
    'user'

    Raises:
        InputError: for what is no pair, and as `Dataset.from_tensors` does.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise InputError(expected="a pair (X, y)", found=type(data).__name__, remedy="pass (X, y) or eq.data.load(...)")
    checked = Dataset.from_tensors(*data, multiclass=multiclass)
    if isinstance(data, Dataset) and data.provenance.sha256 == checked.provenance.sha256:
        return Dataset(*checked, data.provenance)
    return checked


def _real(what: str, values: Any) -> Float64[Tensor, "..."]:
    if isinstance(values, Tensor) and not values.is_complex():
        return values.detach().to(torch.float64)
    try:
        if np.iscomplexobj(values):
            raise TypeError("complex numbers")  # numpy would drop the imaginary parts
        # a copy: the array may be read-only, or have negative strides
        return torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            expected=f"{what} of real numbers", found=str(error).splitlines()[0], remedy="pass a tensor or an array"
        ) from None


def _check_finite(X: Float64[Tensor, "n ..."]) -> None:
    finite = torch.isfinite(X)
    if not finite.all():
        first = tuple((~finite).nonzero()[0].tolist())
        raise InputError(
            expected="finite inputs",
            found=f"{X[first].item()} at X[{', '.join(map(str, first))}]",
            remedy="clean the data",
        )


def _labels(y: Float64[Tensor, "..."], n: int, multiclass: bool) -> Float64[Tensor, " n"] | Int64[Tensor, " n"]:
    if y.shape != (n,):
        raise InputError(
            expected=f"{n} labels of shape ({n},), one per example",
            found=f"shape {tuple(y.shape)}",
            remedy="pass y with one entry per row of X",
        )
    if multiclass:
        return _class_indices(y)
    values = set(y.unique().tolist())
    if not (values <= {-1.0, 1.0} or values <= {0.0, 1.0}):
        raise InputError(
            expected="labels in {-1, +1} or {0, 1}",
            found=_first_values(y),
            remedy="choose two classes, or a loss for several",
        )
    check_two_classes(y)
    return 2 * y - 1 if 0.0 in values else y


def _class_indices(y: Float64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    if not ((y >= 0) & (y == y.round()) & torch.isfinite(y)).all():
        raise InputError(
            expected="class indices 0, 1, 2, …", found=_first_values(y), remedy="number the classes from 0"
        )
    check_two_classes(y)
    return y.to(torch.int64)


def check_two_classes(y: Float64[Tensor, " n"] | Int64[Tensor, " n"]) -> None:
    """Raises `InputError` if all labels are the same."""
    if len(y.unique()) < 2:
        raise InputError(
            expected="examples of two classes or more",
            found=f"only label {y[0].item():g} in {len(y)} examples",
            remedy="add examples of another class",
        )


def _first_values(y: Tensor) -> str:
    values = [f"{value:g}" for value in y.unique().tolist()]
    return "labels " + ", ".join(values[:5]) + (", …" if len(values) > 5 else "")


def checksum(X: Float64[Tensor, "n ..."], y: Float64[Tensor, " n"] | Int64[Tensor, " n"]) -> str:
    """SHA-256 over the bytes of `X`, then of `y`, little-endian."""
    digest = hashlib.sha256()
    for tensor in (X, y):
        array = np.ascontiguousarray(tensor.cpu().numpy())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()
