"""Safetensors files, single or sharded."""

import json
import math
import os
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from equipoise.checkpoint.readers.limits import read_index_of, require_name
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


def read_safetensors(path: Path, shelf: MmapCache | None = None) -> tuple[TensorEntry, ...]:
    """The tensors of one file. Tied names that `save_model` left out come from the metadata that it wrote.

    Files that share a `shelf` are mapped one at a time.

    Raises `InputError` for a file whose header does not agree with its length.
    """
    aliases: dict[str, list[str]] = {}
    with _sound(path) as file:
        starts = _starts(path)
        names = dict.fromkeys(file.keys())
        for dropped, kept in (file.metadata() or {}).items():
            if kept in names and dropped not in names:
                aliases.setdefault(kept, []).append(dropped)
        slices = [(name, file.get_slice(name)) for name in names]
        described = [(name, tuple(its.get_shape()), str(its.get_dtype())) for name, its in slices]
    known = {dtype: _DTYPES.get(dtype) for _, _, dtype in described}
    largest = max(
        (math.prod(shape) * its.itemsize for _, shape, dtype in described if (its := known[dtype])), default=0
    )
    mapped = MappedFile(lambda: _sound(path).get_tensor, largest, shelf)
    return tuple(
        TensorEntry(
            name,
            shape,
            dtype_name(its) if its else dtype,
            mapped.reader(name),
            tuple(aliases.get(name, ())),
            mapped=True,
            stretch=partial(stretch, path, starts[name], its) if its else None,
        )
        for name, shape, dtype in described
        for its in (known[dtype],)
    )


def _starts(path: Path) -> dict[str, int]:
    """Where in the file the numbers of each tensor begin; the header has been found to be sound."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _unsound(path, "a name that is there twice")
        return found

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length), object_pairs_hook=once)
    return {
        require_name(name): 8 + length + its["data_offsets"][0]
        for name, its in header.items()
        if name != "__metadata__"
    }


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
