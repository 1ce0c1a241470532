"""Files that are whole or not there, and that say so themselves: JSON and weights with their own SHA-256."""

import errno
import hashlib
import json
import math
import os
import shlex
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from equipoise.errors import StoreError

MANIFEST, RECORDS, WEIGHTS, RESULT = "manifest.json", "records.sqlite", "weights", "result.json"
Json: TypeAlias = dict[str, Any]  # an object that JSON has read

_HASH = "sha256"  # the key under which a JSON file keeps its own hash
_HEADER = "equipoise"  # the one key of a weights file's header: the order of several differs between processes


# ---- placing ----


def place(path: Path, written: bytes) -> None:
    """Write a file that is whole or not there: to a neighbour, to the disk, then into its place."""
    neighbour = path.with_name(f".{path.name}.tmp")
    try:
        with open(neighbour, "wb") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        os.replace(neighbour, path)
        sync_folder(path.parent)
    except OSError:
        neighbour.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Remove a file, on the disk too; one that is not there is no error."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the entries of a folder to the disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def content(path: Path) -> bytes:
    """The bytes of a file. Raises `StoreError` for what is none: reading from a pipe may never end."""
    if path.exists() and not path.is_file():
        raise damaged(path, "no file, but a folder, a pipe or a device")
    return path.read_bytes()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- JSON ----


def finite(value: object) -> Any:
    """The value as JSON holds it: lists for tuples, and null for NaN and infinity, of which it knows none.

    >>> finite({"bound": float("inf"), "rests on": ("laws",)})
    {'bound': None, 'rests on': ['laws']}
    """
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def place_json(path: Path, fields: Mapping[str, object]) -> None:
    """Write strict JSON with one line for each top-level key, the last of them the SHA-256 of the others."""
    plain = finite(fields)
    whole = {**plain, _HASH: _json_hash(plain)}
    lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in whole.items()]
    place(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_json(path: Path) -> Json:
    """The fields that `place_json` wrote, without their hash, which they must match."""
    fields = parse_json(path)
    expected = fields.pop(_HASH, None)
    if _json_hash(fields) != expected:
        raise damaged(path, "contents that do not match their SHA-256")
    return fields


def parse_json(path: Path) -> Json:
    """Any JSON object, unchecked."""
    try:
        fields = json.loads(content(path))
    except (ValueError, RecursionError) as error:
        raise damaged(path, first_line(error)) from None
    if not isinstance(fields, dict):
        raise damaged(path, type(fields).__name__)
    return fields


def _json_hash(fields: Mapping[str, object]) -> str:
    """Of the values, not of how they are laid out."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def append_json(path: Path, fields: Mapping[str, object]) -> None:
    """Add a line to a file of JSON lines, whole or not at all; the torn end that a crash left is cut off first."""
    line = (json.dumps(finite(fields), allow_nan=False) + "\n").encode()
    with open(path, "a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[Json]:
    """The whole lines of a file of JSON lines; one that is being written, or that a crash tore, is none."""
    try:
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except (ValueError, RecursionError) as error:
        raise damaged(path, first_line(error)) from None


# ---- tensors ----


def pack(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors as safetensors bytes."""
    # safetensors refuses tensors that share memory, so each is copied
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return safetensors.torch.save(plain, metadata)


def place_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> str:
    """Write a safetensors file whose header holds the SHA-256 of name, metadata and tensors; return that hash."""
    digest = weights_hash(path.stem, tensors, metadata)
    header = {"metadata": dict(metadata), "sha256": digest}
    place(path, pack(tensors, {_HEADER: json.dumps(header, sort_keys=True)}))
    return digest


def read_weights(path: Path) -> tuple[dict[str, Tensor], Json, str]:
    """Tensors in the order of their names, metadata, and their hash, which they must match.

    Raises:
        ValueError: for tensors that do not match it; `OSError` and `SafetensorError` come from reading.
    """
    found = content(path)
    tensors = dict(sorted(safetensors.torch.load(found).items()))
    length = int.from_bytes(found[:8], "little")
    header = json.loads(json.loads(found[8 : 8 + length])["__metadata__"][_HEADER])
    metadata, expected = header["metadata"], header["sha256"]
    if weights_hash(path.stem, tensors, metadata) != expected:
        raise ValueError("tensors that do not match their SHA-256")
    return tensors, metadata, expected


def weights_hash(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> str:
    """SHA-256 over the name of the file, its metadata, and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps([name, metadata], sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- refusals ----


@contextmanager
def in_one_line(folder: Path) -> Iterator[None]:
    """Turn the errors of SQLite and of the system into one line with a remedy."""
    try:
        yield
    except StoreError:
        raise
    except UnicodeDecodeError:  # SQLite quotes damaged names in its message
        raise damaged(folder / RECORDS, "names that are no text") from None
    except (sqlite3.Error, SafetensorError, OSError) as error:
        raise _refusal(folder, error) from None


def _refusal(folder: Path, error: Exception) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of the bits says where it happened
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            expected=f"room on the disk for {folder}",
            found="a full disk",
            remedy=f"free some and --resume {shlex.quote(str(folder))}: what was committed is safe",
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT):
        return damaged(folder / RECORDS, first_line(error))
    return StoreError(
        expected=f"to read and write {folder}", found=first_line(error), remedy="check the folder and its permissions"
    )


def damaged(path: Path, found: str) -> StoreError:
    """The refusal of a file that is not as it was written."""
    return StoreError(expected=f"an intact {path}", found=found, remedy="restore it, or run again in another folder")


def first_line(error: BaseException) -> str:
    """The first line of a message, or the error's name where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
