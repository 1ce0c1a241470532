"""Weights that are computed from factors: weight and spectral normalisation, pruning, `parametrize`."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from equipoise.checkpoint.effective.tensor_index import AssembledTensor, TensorIndex, put_together, refused, working
from equipoise.checkpoint.tensor_entry import TensorEntry

_PARAMETRIZED = re.compile(r"(?P<prefix>(.*\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<part>.+)$")
_WEIGHT_NORM, _SPECTRAL_NORM = {"original0", "original1"}, {"original", "0._u", "0._v"}


def masked(parts: TensorIndex) -> Iterator[AssembledTensor]:
    """`torch.nn.utils.prune`: `NAME_orig × NAME_mask`."""
    for name, original in parts.ending("_orig"):
        mask = parts.get(f"{name}_mask")
        if mask is not None and mask.shape == original.shape:
            note = f"{_last(original.name)} × {_last(mask.name)}"
            yield put_together(name, original.shape, (original, mask), _masked, note, ("_orig", ""))


def _masked(original: Tensor, mask: Tensor) -> Tensor:
    return working(original) * mask.to(working(original))


def weight_norms(parts: TensorIndex) -> Iterator[AssembledTensor]:
    """`torch.nn.utils.weight_norm`: `g v/‖v‖` of `NAME_g` and `NAME_v` (Salimans & Kingma 2016)."""
    for name, direction in parts.ending("_v"):
        length = parts.get(f"{name}_g")
        if "weight" in _last(name) and length is not None and _are_lengths(length, direction):
            yield _weight_norm(name, direction, length, ("_v", ""))


def _weight_norm(name: str, direction: TensorEntry, length: TensorEntry, suffixes: tuple[str, str]) -> AssembledTensor:
    note = f"weight_norm of {_last(length.name)} and {_last(direction.name)}"
    return put_together(name, direction.shape, (direction, length), _normalised, note, suffixes)


def _are_lengths(length: TensorEntry, direction: TensorEntry) -> bool:
    """Whether this has one number for each index of at most one dimension."""
    if length.shape == () or all(size == 1 for size in length.shape):
        return True
    same_rank = len(length.shape) == len(direction.shape)
    wide = [(its, all_) for its, all_ in zip(length.shape, direction.shape, strict=False) if its != 1]
    return same_rank and len(wide) == 1 and wide[0][0] == wide[0][1]


def _normalised(direction: Tensor, length: Tensor) -> Tensor:
    v, g = working(direction), working(length)
    dims = [dim for dim in range(v.ndim) if g.ndim < v.ndim or g.shape[dim] == 1]
    return v * (g / torch.linalg.vector_norm(v, dim=dims, keepdim=True, dtype=torch.float64)).to(v.dtype)


def spectral_norms(parts: TensorIndex) -> Iterator[AssembledTensor]:
    """`torch.nn.utils.spectral_norm`: `W/(uᵀ W v)` of `NAME_orig`, `NAME_u` and `NAME_v` (Miyato et al. 2018)."""
    for name, original in parts.ending("_orig"):
        u, v = parts.get(f"{name}_u"), parts.get(f"{name}_v")
        if u is not None and v is not None:
            yield _spectral_norm(name, original, u, v, ("_orig", ""))
        elif u is not None:
            reason = "spectral_norm as saved before torch 1.1: load the model, and pass it"
            yield refused(name, original.shape, original.dtype, (original, u), reason)


def _spectral_norm(
    name: str, original: TensorEntry, u: TensorEntry, v: TensorEntry, suffixes: tuple[str, str]
) -> AssembledTensor:
    dims = [dim for dim, size in enumerate(original.shape) if u.shape == (size,) and size * v.count == original.count]
    if not dims:
        reason = f"spectral_norm with vectors of {u.count} and {v.count}, which do not fit"
        return refused(name, original.shape, original.dtype, (original, u, v), reason)

    def compute(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
        w, left, right = working(weight), working(left), working(right)
        images = [w.movedim(dim, 0).flatten(1) @ right for dim in dims]  # u is the image of v, along the right one
        return w / max((left @ image for image in images), key=float)

    return put_together(name, original.shape, (original, u, v), compute, "spectral_norm", suffixes)


def parametrized(parts: TensorIndex) -> Iterator[AssembledTensor]:
    """`torch.nn.utils.parametrize`: weight and spectral norm; of others a file does not hold the function."""
    found: dict[str, dict[str, TensorEntry]] = {}
    for entry in parts.tensors:
        if place := _PARAMETRIZED.match(entry.name):
            found.setdefault(f"{place['prefix']}parametrizations.{place['name']}", {})[place["part"]] = entry
    for path, held in found.items():
        yield _parametrized(path, held)


def _parametrized(path: str, held: dict[str, TensorEntry]) -> AssembledTensor:
    owner, _, last = path.rpartition("parametrizations.")
    name, stem = owner + last, f"parametrizations.{last}"
    if set(held) == _WEIGHT_NORM and _are_lengths(held["original0"], held["original1"]):
        return _weight_norm(name, held["original1"], held["original0"], (f"{stem}.original1", last))
    if set(held) == _SPECTRAL_NORM:
        return _spectral_norm(name, held["original"], held["0._u"], held["0._v"], (f"{stem}.original", last))
    first = held.get("original") or next(iter(held.values()))
    reason = "it is computed by a parametrization that is not in the file: load the model, and pass it"
    return refused(name, first.shape, first.dtype, tuple(held.values()), reason)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
