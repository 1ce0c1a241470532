"""Tensors in nested containers, each by its path: `model.layer.weight`."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from equipoise.checkpoint.readers.limits import NAME_LIMIT, require_name
from equipoise.checkpoint.readers.unpickler import PickledTensor
from equipoise.checkpoint.tensor_entry import Opaque, as_tensor

Leaf: TypeAlias = Tensor | Opaque | PickledTensor

_DEPTH = 50
_WRAPPERS = 8  # dicts with a single entry that holds tensors, around each other
_CONTAINERS = (Mapping, list, tuple, nn.Module)
_PACKED = re.compile(r"\b_packed_params\.(?P<part>_packed_weight|_packed_params\.[01])$")


def unnested(loaded: object) -> dict[str, Leaf]:
    """Every tensor and array in nested dicts, lists and tuples by its path; a single outer key is left out.

    Raises `InputError` for a tensor under a key that is no text or number, or whose path is too long for a name.

    >>> import torch
    >>> sorted(unnested({"epoch": 3, "model": {"a": torch.ones(1), "b": [torch.ones(2)]}}))
    ['a', 'b.0']
    """
    known: dict[int, bool] = {}
    for _ in range(_WRAPPERS):
        if not isinstance(loaded, Mapping) or any(_leaf(value) is not None for value in loaded.values()):
            break
        holding = [value for value in loaded.values() if isinstance(value, _CONTAINERS) and _holds(value, known)]
        if len(holding) != 1:
            break
        loaded = holding[0].state_dict(keep_vars=True) if isinstance(holding[0], nn.Module) else holding[0]
    whole = _leaf(loaded)
    return {"tensor": whole} if whole is not None else tensors_in(loaded)


def _holds(value: object, known: dict[int, bool], depth: int = 0) -> bool:
    """Whether there is a tensor or an array in it; each container is looked through once, as `known` keeps."""
    if _leaf(value) is not None or not isinstance(value, _CONTAINERS) or depth >= _DEPTH:
        return _leaf(value) is not None
    if id(value) not in known:
        known[id(value)] = False  # for one that contains itself
        known[id(value)] = any(_holds(item, known, depth + 1) for _, item in _items(value))
    return known[id(value)]


def tensors_in(container: object) -> dict[str, Leaf]:
    """Every tensor and array by its path, depth first, each container once: one may contain itself."""
    found: dict[str, Leaf] = {}
    repeated: Counter[str] = Counter()
    seen: set[int] = set()
    waiting: list[tuple[str | None, object, int]] = [("", container, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        tensor = _leaf(value)
        if tensor is not None:
            found[_distinct(_PACKED.sub(_unpacked, require_name(path)), found, repeated)] = tensor
        elif isinstance(value, _CONTAINERS) and id(value) not in seen and depth < _DEPTH:
            seen.add(id(value))
            below = [(_below(path, key), item, depth + 1) for key, item in _items(value)]
            waiting.extend(reversed(below))
    return found


def _items(container: Mapping[Any, Any] | list[Any] | tuple[Any, ...] | nn.Module) -> Iterable[tuple[object, object]]:
    its = container.state_dict(keep_vars=True) if isinstance(container, nn.Module) else container
    return its.items() if isinstance(its, Mapping) else enumerate(its)


def in_memory(leaves: Mapping[str, Leaf]) -> dict[str, Tensor | Opaque]:
    """Those that are no descriptions of tensors in a file."""
    return {name: value for name, value in leaves.items() if not isinstance(value, PickledTensor)}


def _leaf(value: object) -> Leaf | None:
    """A tensor, an array as a tensor, what a file says of a tensor; None for everything else."""
    return value if isinstance(value, PickledTensor) else as_tensor(value)


def _unpacked(place: re.Match[str]) -> str:
    """The name that the layer had before `torch.ao` packed it into a pair, or under a name of its own."""
    return {"_packed_weight": "weight", "_packed_params.0": "weight", "_packed_params.1": "bias"}[place["part"]]


def _below(path: str | None, key: object) -> str | None:
    """The path of what is under a key, as far as a name may be long; None where the key is no text or number."""
    if path is None or not isinstance(key, str | int | float | None):
        return None
    said = (key if isinstance(key, str) else str(key))[: NAME_LIMIT + 1]
    return f"{path}.{said}"[: NAME_LIMIT + 1] if path else said


def _distinct(name: str, taken: Mapping[str, Leaf], repeated: Counter[str]) -> str:
    """Another name where two paths read the same: `a.b` and `b` in `a`; `repeated` counts how often each has."""
    other = name
    while other in taken:
        repeated[name] += 1
        other = f"{name} ({repeated[name] + 1})"
    return other
