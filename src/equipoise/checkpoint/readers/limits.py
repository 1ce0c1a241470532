"""Limits of the demands of a file: paths inside its folder, and a bounded amount of text."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from equipoise.checkpoint.tensor_entry import Json, TensorEntry
from equipoise.errors import EquipoiseError, InputError, one_line

JSON_LIMIT = 64 << 20  # the index of a model with half a million tensors
_TEXT_A_CONTAINER = 8  # characters: a list takes eight times as many bytes
_FEW = 10_000  # of them, of which none is too many
NAME_LIMIT = 1024  # characters of a name


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turn any exception of a reader or its library into one line."""
    try:
        yield
    except (EquipoiseError, OSError):
        raise
    except Exception as error:
        raise InputError(
            expected=f"a sound checkpoint in {what}", found=one_line(error), remedy="fetch or save it again"
        ) from None


def require_name(name: object) -> str:
    """A name as it may be listed; `InputError` for one that is no text, or too long."""
    if not isinstance(name, str):
        raise InputError(
            expected="tensors under keys that are text",
            found="one under a key of another type",
            remedy="save a state dict: torch.save(model.state_dict(), path)",
        )
    if len(name) > NAME_LIMIT:
        raise InputError(
            expected=f"names of at most {NAME_LIMIT} characters",
            found=f"one of {len(name)} or more, {name[:40]!r} …",
            remedy="rename the tensor and save it again",
        )
    return name


def inside(folder: Path, name: str) -> Path:
    """The file `name` in `folder`.

    A link in the folder is followed: the cache of the Hugging Face hub consists of links.

    Raises:
        InputError: where it is not there, and where the name leads out of the folder.
    """
    path, parts = folder / name, Path(name).parts
    leads_out = Path(name).is_absolute() or ".." in parts
    try:
        there = path.is_file()
    except ValueError:  # a name that no file can have
        there = False
    if leads_out or not there:
        raise InputError(
            expected=f"the file {name[:200]!r} in {folder}",
            found="a path out of the folder" if leads_out else "no such file there",
            remedy="fetch the missing file, or do not trust this checkpoint",
        )
    return path


def frugal(text: str) -> str:
    """The text of JSON, unless its lists and objects would take far more memory than the text."""
    containers = text.count("[") + text.count("{")
    if containers > len(text) // _TEXT_A_CONTAINER + _FEW:
        raise ValueError(f"{containers} lists and objects in {len(text)} characters")
    return text


def read_json(path: Path) -> Json:
    """The JSON object in a file of bounded size."""
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise ValueError(f"{path.stat().st_size} bytes")
        found = json.loads(frugal(path.read_text(encoding="utf-8")))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            expected=f"a JSON object in {path.name}, of at most {JSON_LIMIT >> 20} MB",
            found=str(error),
            remedy="fetch or save it again",
        ) from None
    return found


def _identity(path: Path) -> tuple[int, int]:
    """The same for a file under all of its names."""
    its = path.stat()
    return its.st_dev, its.st_ino


def read_index_of(index: Path, read: Callable[[Path], tuple[TensorEntry, ...]]) -> tuple[TensorEntry, ...]:
    """The tensors of every shard that an index names, in the index's own folder, each shard by `read`.

    A tensor that the index promises and no shard holds is there with its reason.

    Raises:
        InputError: for an index that is none, and as `inside` and `read` do.
    """
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise InputError(
            expected="an index whose weight_map gives the shard of each tensor",
            found=f"none in {index.name}",
            remedy="pass the index that was saved with the shards",
        )
    for name in shards:
        require_name(name)
    files = {_identity(path): path for name in dict.fromkeys(shards.values()) if (path := inside(index.parent, name))}
    tensors = [entry for path in files.values() for entry in read(path)]
    lost = sorted(set(shards).difference(*(entry.names for entry in tensors)))
    return (
        *tensors,
        *(TensorEntry(name, (), "", Tensor, reason=f"it is in no shard of {index.name}") for name in lost),
    )
