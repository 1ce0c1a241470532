"""Safetensors files, single or sharded."""

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from equipoise.checkpoint.readers.limits import read_index_of
from equipoise.checkpoint.stored import Mapped, Stored
from equipoise.errors import InputError

# the format's own names; what is missing here keeps the format's name in the table
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def read_safetensors(path: Path) -> tuple[Stored, ...]:
    """The tensors of one file. Tied names that `save_model` left out come from the metadata that it wrote.

    Raises `InputError` for a file whose header does not agree with its length.
    """
    aliases: dict[str, list[str]] = {}
    with _sound(path) as file:
        names = dict.fromkeys(file.keys())
        for dropped, kept in (file.metadata() or {}).items():
            if kept in names and dropped not in names:
                aliases.setdefault(kept, []).append(dropped)
        slices = [(name, file.get_slice(name)) for name in names]
        described = [(name, tuple(its.get_shape()), str(its.get_dtype())) for name, its in slices]
    mapped = Mapped(lambda: _sound(path).get_tensor)
    return tuple(
        Stored(name, shape, _DTYPES.get(dtype, dtype), mapped.reader(name), tuple(aliases.get(name, ())))
        for name, shape, dtype in described
    )


def read_index(index: Path) -> tuple[Stored, ...]:
    """The tensors of a sharded checkpoint, from its `*.index.json`; shards are looked for in the folder of the index.

    Raises `InputError` for a shard that is missing or outside that folder.
    """
    return read_index_of(index, read_safetensors)


def _sound(path: Path) -> Any:
    """The file, opened; only the header is read."""
    try:
        return safe_open(os.fspath(path), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            expected="a sound safetensors file",
            found=f"{path.name}: {error}",
            remedy="fetch or save it again",
        ) from None
