"""Named data sets, float64 and rebuildable.

`digits` comes with scikit-learn; `mnist` and `fashion_mnist` from the folder named by EQUIPOISE_DATA, else from the
user's cache, where they are downloaded once; `separable` is synthetic. Problems of the literature
are drawn by functions of their own: `modular_addition`, `low_rank_matrix`, `stochastic_block_model`.
"""

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
import torch

from equipoise.arguments import checked, require_integer
from equipoise.data import files
from equipoise.data.dataset import Dataset, Provenance, check_two_classes, checksum, validate
from equipoise.data.problems import (
    Communities,
    LowRankMatrix,
    TrainTest,
    low_rank_matrix,
    modular_addition,
    one_hot_examples,
    stochastic_block_model,
)
from equipoise.errors import InputError

__all__ = [
    "NAMES",
    "Communities",
    "Dataset",
    "LowRankMatrix",
    "Provenance",
    "TrainTest",
    "load",
    "low_rank_matrix",
    "modular_addition",
    "one_hot_examples",
    "rebuild",
    "stochastic_block_model",
    "validate",
]

NAMES = ("digits", "mnist", "fashion_mnist", "separable")
MARGIN = 0.5
"""The least distance of a `separable` example from the separating plane."""


@checked
def load(
    name: str, classes: Sequence[int] | None = None, n: int | None = None, seed: int = 0, d: int | None = None
) -> Dataset:
    """The named training set, or `n` examples of it, drawn without replacement by `seed`, in their original order.

    `digits` (8 × 8), `mnist` and `fashion_mnist` (28 × 28) have classes 0 … 9, all unless `classes` names some, and
    pixels scaled to [0, 1]. Two classes are labelled -1 (the first named) and +1 in float64; more by their position in
    `classes`, in int64. `separable` holds `n` (100) Gaussian examples in `d` (20) dimensions, moved along the normal of
    a random plane through the origin, to the side of their label and at least `MARGIN` away from it.

    >>> X, y = load("digits", classes=(0, 1), n=100)
    >>> X.shape, X.dtype, y.unique()
    (torch.Size([100, 64]), torch.float64, tensor([-1.,  1.], dtype=torch.float64))

    Raises:
        InputError: for an unknown name, classes that are not in the set or not distinct, fewer than two classes, more
            examples than there are, and files that are missing, truncated or wrong.
    """
    _check_name(name)
    require_integer("seed", seed, "pass seed=0")
    if n is not None:
        require_integer("n", n, "pass n=100", least=1)
    if name == "separable":
        if classes is not None:
            raise InputError(expected="no classes for separable", found=str(classes), remedy="leave them out")
        return _separable(n or 100, 20 if d is None else d, seed)
    if d is not None:
        raise InputError(expected="d only for separable", found=f"d={d} for {name}", remedy="leave d out")
    pixels, labels = _source(name)
    chosen = _classes(name, labels, classes)
    return _subset(name, pixels, labels, chosen, _draw(labels, chosen, n, seed), seed)


def rebuild(provenance: Provenance) -> Dataset:
    """The data set that `provenance` describes, from its recorded indices, with its checksum compared.

    >>> data = load("digits", classes=(3, 5), n=4)
    >>> rebuild(data.provenance).X.equal(data.X)
    True

    Raises:
        InputError: for data of the user's own, and for data that is no longer the same.
    """
    if provenance.name == "separable":
        data = load("separable", n=provenance.n, seed=provenance.seed or 0, d=provenance.shape[0])
    elif provenance.name in NAMES and provenance.classes and provenance.indices:
        indices = np.array(provenance.indices)
        data = _subset(provenance.name, *_source(provenance.name), provenance.classes, indices, provenance.seed)
    else:
        raise InputError(
            expected="a named data set", found=f"data {provenance.name!r}", remedy="pass the same X and y again"
        )
    if data.provenance != provenance:
        raise InputError(
            expected=f"{provenance.name} with SHA-256 {provenance.sha256}",
            found=data.provenance.sha256,
            remedy="use the data that the run was made with",
        )
    return data


def _check_name(name: str) -> None:
    if name in NAMES:
        return
    close = get_close_matches(name.lower().replace("-", "_"), NAMES, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else "pass one of them"
    raise InputError(expected=f"a data set among {', '.join(NAMES)}", found=repr(name), remedy=remedy)


def _source(name: str) -> tuple[np.ndarray, np.ndarray]:
    """All pixels as (n, d), unscaled, and all labels."""
    if name == "digits":
        from sklearn.datasets import load_digits  # slow to import, and needed here only

        pixels, labels = map(np.asarray, load_digits(return_X_y=True))
        return pixels, labels
    images, labels = files.read(name)
    return images.reshape(len(images), -1), labels


def _classes(name: str, labels: np.ndarray, classes: Sequence[int] | None) -> tuple[int, ...]:
    there = tuple(np.unique(labels).tolist())
    chosen = there if classes is None else tuple(classes)
    if not set(chosen) <= set(there):
        raise InputError(
            expected=f"classes of {name} among {', '.join(map(str, there))}",
            found=", ".join(str(label) for label in chosen if label not in there),
            remedy=f"pass classes={there[:2]}",
        )
    if len(set(chosen)) < max(len(chosen), 2):
        raise InputError(
            expected="two or more different classes", found=str(chosen), remedy=f"pass classes={there[:2]}"
        )
    return chosen


def _draw(labels: np.ndarray, classes: tuple[int, ...], n: int | None, seed: int) -> np.ndarray:
    candidates = np.flatnonzero(np.isin(labels, classes))
    if n is None:
        return candidates
    if n > len(candidates):
        raise InputError(
            expected=f"n at most {len(candidates)}, all examples of classes {classes}",
            found=str(n),
            remedy=f"pass n={len(candidates)} or leave n out",
        )
    return np.sort(np.random.default_rng(seed).permutation(candidates)[:n])


def _subset(
    name: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    classes: tuple[int, ...],
    indices: np.ndarray,
    seed: int | None,
) -> Dataset:
    brightest = 16 if name == "digits" else 255
    X = torch.from_numpy(pixels[indices] / float(brightest))
    positions = (labels[indices][:, None] == np.array(classes)).argmax(axis=1)
    y = torch.from_numpy(2.0 * positions - 1.0 if len(classes) == 2 else positions)
    check_two_classes(y)
    where = tuple(int(i) for i in indices)
    return Dataset(X, y, Provenance(name, len(X), (X.shape[1],), checksum(X, y), classes, seed, where))


def _separable(n: int, d: int, seed: int) -> Dataset:
    if n < 2 or d < 1:
        raise InputError(expected="n from 2 and d from 1", found=f"n={n}, d={d}", remedy="pass n=100, d=20")
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(d)
    normal /= np.linalg.norm(normal)
    y = np.where(np.arange(n) % 2 == 0, -1.0, 1.0)
    X = rng.standard_normal((n, d))
    heights = X @ normal
    X += (y * (np.abs(heights) + MARGIN) - heights)[:, None] * normal
    inputs, labels = torch.from_numpy(X), torch.from_numpy(y)
    return Dataset(inputs, labels, Provenance("separable", n, (d,), checksum(inputs, labels), seed=seed))
