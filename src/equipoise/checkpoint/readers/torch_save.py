"""Files written by `torch.save`, read with `weights_only=True` and mapped, never executed."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.checkpoint.quiet import quiet
from equipoise.checkpoint.readers.limits import read_index_of
from equipoise.checkpoint.readers.pickles import require_plain_pickle
from equipoise.checkpoint.stored import Foreign, Mapped, Stored, as_tensor, stored
from equipoise.errors import InputError

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number with which files from before torch 1.6 begin
_HEADERS = 5  # pickles before the numbers in such a file
_DEPTH = 50
_CONTAINERS = (Mapping, list, tuple, nn.Module)
_PACKED = re.compile(r"\b_packed_params\.(?P<part>_packed_weight|_packed_params\.[01])$")


def read_torch(path: Path) -> tuple[Stored, ...]:
    """The tensors in whatever dicts and lists the file holds, named by their path, as in `model.layer.weight`.

    Where all tensors are under one key (`state_dict`, say), that key is left out of the names. Files from before
    torch 1.6 cannot be mapped and are read as a whole. Raises `InputError` for a file that would run code, whose
    parts are compressed or larger than the file, or that is damaged.
    """
    with path.open("rb") as file:
        legacy = file.read(len(LEGACY)) == LEGACY
    _require_plain(path, legacy)
    tensors = _load(path, legacy)
    if legacy:
        return stored(tensors, lambda name: lambda: tensors[name])
    largest = max((tensor.nbytes for tensor in tensors.values() if isinstance(tensor, Tensor)), default=0)
    return stored(tensors, Mapped(lambda: _load(path, legacy).__getitem__, largest).reader, mapped=True)


def read_torch_index(index: Path) -> tuple[Stored, ...]:
    """The tensors of a sharded checkpoint, from its `*.bin.index.json`."""
    return read_index_of(index, read_torch)


def _load(path: Path, legacy: bool) -> dict[str, Tensor | Foreign]:
    try:
        with quiet():  # of old storages and protocols
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=not legacy)
            return unnested(loaded)
    except Exception as error:  # whatever a damaged file leads to
        raise _damaged(path, str(error).split("\n", 1)[0][:200] or type(error).__name__) from None


def _require_plain(path: Path, legacy: bool) -> None:
    if legacy:
        with path.open("rb") as file:
            for _ in range(_HEADERS):
                require_plain_pickle(file, path.name)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            pickles = [member for member in members if member.filename.split("/")[-1] == "data.pkl"]
            _require_stored(path, members)
            if len(pickles) != 1 or any(member.filename.endswith("/constants.pkl") for member in members):
                raise _damaged(path, "an archive of something else, such as TorchScript")
            with archive.open(pickles[0]) as file:
                require_plain_pickle(file, path.name)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise error if isinstance(error, InputError) else _damaged(path, str(error)) from None


def _require_stored(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """What `torch.save` writes is not compressed, so no part and no sum of parts is larger than the file."""
    size = path.stat().st_size
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    named = {member.filename.lower() for member in members}
    if packed:
        raise _damaged(path, f"a compressed part {packed[0]!r}, which torch.save does not write")
    if sum(member.file_size for member in members) > size or len(named) != len(members):
        raise _damaged(path, "parts that overlap or are larger than the file")


def _damaged(path: Path, found: str) -> InputError:
    return InputError(
        expected="a checkpoint written by torch.save", found=f"{path.name}: {found}", remedy="fetch or save it again"
    )


def unnested(loaded: Any) -> dict[str, Tensor | Foreign]:
    """Every tensor and array in nested dicts, lists and tuples by its path; a single outer key is left out.

    >>> sorted(unnested({"epoch": 3, "model": {"a": torch.ones(1), "b": [torch.ones(2)]}}))
    ['a', 'b.0']
    """
    while isinstance(loaded, Mapping) and not any(as_tensor(value) is not None for value in loaded.values()):
        holding = [value for value in loaded.values() if isinstance(value, _CONTAINERS) and tensors_in(value)]
        if len(holding) != 1:
            break
        loaded = holding[0].state_dict(keep_vars=True) if isinstance(holding[0], nn.Module) else holding[0]
    whole = as_tensor(loaded)
    return {"tensor": whole} if whole is not None else tensors_in(loaded)


def tensors_in(container: Any) -> dict[str, Tensor | Foreign]:
    """Every tensor and array by its path, depth first, each container once: one may contain itself."""
    found: dict[str, Tensor | Foreign] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", container, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        tensor = as_tensor(value)
        if tensor is not None:
            found[_PACKED.sub(_unpacked, path)] = tensor
        elif isinstance(value, _CONTAINERS) and id(value) not in seen and depth < _DEPTH:
            seen.add(id(value))
            its = value.state_dict(keep_vars=True) if isinstance(value, nn.Module) else value
            items = its.items() if isinstance(its, Mapping) else enumerate(its)
            below = [(f"{path}.{key}" if path else str(key), item, depth + 1) for key, item in items]
            waiting.extend(reversed(below))
    return found


def _unpacked(place: re.Match[str]) -> str:
    """What `torch.ao` keeps as a pair, or under a name of its own, by the names that the layer had before."""
    return {"_packed_weight": "weight", "_packed_params.0": "weight", "_packed_params.1": "bias"}[place["part"]]
