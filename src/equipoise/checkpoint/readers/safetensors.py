"""Safetensors files, single or sharded."""

import json
import math
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from equipoise.checkpoint.readers.limits import frugal, read_index_of, require_name
from equipoise.checkpoint.readers.mapping import stretch
from equipoise.checkpoint.tensor_entry import MappedFile, MmapCache, TensorEntry, dtype_name
from equipoise.errors import InputError

# the format's own names; what is missing here keeps the format's name in the table
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}


class _Described(NamedTuple):
    """The entry of the header for a tensor; `start` is where its numbers begin, from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, eq=False, slots=True)
class _MappedNumbers:
    """The numbers of one tensor, in the mapped file and past its mapping; there may be a million."""

    file: MappedFile
    path: Path
    name: str
    start: int
    dtype: torch.dtype | None

    def read(self, share: float = 1.0) -> Tensor:
        return self.file.read(self.name, share)

    def stretch(self, low: int, high: int) -> Tensor:
        assert self.dtype is not None
        return stretch(self.path, self.start, self.dtype, low, high)


def read_safetensors(path: Path, shelf: MmapCache | None = None) -> tuple[TensorEntry, ...]:
    """The tensors of one file. Tied names that `save_model` left out come from the metadata that it wrote.

    Files that share a `shelf` are mapped one at a time.

    Raises `InputError` for a file whose header does not agree with its length.
    """
    aliases: dict[str, list[str]] = {}
    with _sound(path) as file:
        metadata = file.metadata() or {}
    length, described = _header(path)
    for dropped, kept in metadata.items():
        if kept in described and dropped not in described:
            aliases.setdefault(kept, []).append(dropped)
    known = {its.dtype: _DTYPES.get(its.dtype) for its in described.values()}
    largest = max(
        (math.prod(its.shape) * dtype.itemsize for its in described.values() if (dtype := known[its.dtype])), default=0
    )
    mapped = MappedFile(lambda: _sound(path).get_tensor, largest, shelf, length)
    return tuple(
        TensorEntry(
            name,
            its.shape,
            dtype_name(dtype) if dtype else its.dtype,
            numbers.read,
            tuple(aliases.get(name, ())),
            mapped=True,
            stretch=numbers.stretch if dtype else None,
        )
        for name in sorted(described)
        for its in (described.pop(name),)
        for dtype in (known[its.dtype],)
        for numbers in (_MappedNumbers(mapped, path, name, 8 + length + its.start, dtype),)
    )


def _header(path: Path) -> tuple[int, dict[str, _Described]]:
    """The length of the header, and each tensor in it; the header has been found to be sound."""

    def once(pairs: list[tuple[str, Any]]) -> object:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _unsound(path, "a name that is there twice")
        if isinstance(found.get("shape"), list):
            return _Described(sys.intern(found["dtype"]), tuple(found["shape"]), found["data_offsets"][0])
        return found

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(frugal(file.read(length).decode()), object_pairs_hook=once)
    header.pop("__metadata__", None)
    for name in header:
        require_name(name)
    return length, header


def read_index(index: Path) -> tuple[TensorEntry, ...]:
    """The tensors of a sharded checkpoint, from its `*.index.json`; shards are looked for in the folder of the index.

    Raises `InputError` for a shard that is missing or outside that folder.
    """
    return read_index_of(index, partial(read_safetensors, shelf=MmapCache()))


def _sound(path: Path) -> safe_open:
    """The file, opened; only the header is read."""
    try:
        return safe_open(os.fspath(path), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise _unsound(path, str(error)) from None


def _unsound(path: Path, found: str) -> InputError:
    return InputError(
        expected="a sound safetensors file", found=f"{path.name}: {found}", remedy="fetch or save it again"
    )
