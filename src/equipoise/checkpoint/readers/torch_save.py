"""Files written by `torch.save`: their pickle is read by `unpickler`, never executed, and their numbers are mapped."""

import io
import mmap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from equipoise.checkpoint.readers.limits import read_index_of
from equipoise.checkpoint.readers.mapping import mapped, stretch
from equipoise.checkpoint.readers.paths import unnested
from equipoise.checkpoint.readers.pickled_tensor import shown
from equipoise.checkpoint.readers.recognised import foreign_archive
from equipoise.checkpoint.readers.unpickler import LIMIT, Damaged, PickledTensor, Refused, unpickled
from equipoise.checkpoint.tensor_entry import TensorEntry
from equipoise.errors import InputError

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number with which files from before torch 1.6 begin
_LIGHTNING = b"pytorch-lightning_version"
_LOCAL = 30  # bytes of a part's own header in a zip archive, before its name
_VIEWS = 8  # of one storage: tensors that share their numbers in other ways than as the same tensor
_CODES = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}


class _Lightning(Refused):
    """In a checkpoint of Lightning."""


class _Place(NamedTuple):
    """Where in the file a storage is, in bytes."""

    offset: int
    size: int


class _Contents(NamedTuple):
    """The content of a file: the description in its pickle, and the place of each storage."""

    tree: object
    places: Mapping[str, _Place]
    swapped: bool = False  # whether the numbers are in the other order of bytes


def read_torch(path: Path) -> tuple[TensorEntry, ...]:
    """The tensors in all dicts and lists of a file, named by their path, as in `model.layer.weight`.

    Where all tensors are under one key (`state_dict`, say), that key is left out of the names. Zip archives and files
    from before torch 1.6 are read, what `torch.load(weights_only=True)` reads among them. Raises `InputError` for a
    file that would run code, whose parts are compressed, appear twice or are larger than the file, whose storages are
    not of the size that the pickle says, or that is something else, by its name.
    """
    with path.open("rb") as file:
        legacy = file.read(len(LEGACY)) == LEGACY
    with _one_line_for_damage(path):
        contents = _legacy(path) if legacy else _archive(path)
        tensors = unnested(contents.tree)
        held = {name: value for name, value in tensors.items() if isinstance(value, PickledTensor)}
        return _stored(path, held, contents)


def read_torch_index(index: Path) -> tuple[TensorEntry, ...]:
    """The tensors of a sharded checkpoint, from its `*.bin.index.json`."""
    return read_index_of(index, read_torch)


@contextmanager
def _one_line_for_damage(path: Path) -> Iterator[None]:
    """Whatever a damaged file leads to, as one line."""
    try:
        yield
    except InputError:
        raise
    except Refused as refused:
        lightning = isinstance(refused, _Lightning)
        raise InputError(
            expected="a checkpoint of tensors",
            found=f"{path.name}: {'a checkpoint of Lightning, ' if lightning else ''}a pickle that {refused}",
            remedy="if you trust it, torch.save(torch.load(path, weights_only=False)"
            + ("['state_dict'], 'weights.pt') and pass that" if lightning else ", …) with its tensors alone"),
        ) from None
    except Damaged as damaged:
        raise _damaged(path, str(damaged)) from None
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise _damaged(path, str(error)) from None
    except Exception as error:
        raise _damaged(path, f"a damaged pickle ({type(error).__name__})") from None


def _damaged(path: Path, found: str) -> InputError:
    return InputError(
        expected="a checkpoint written by torch.save", found=f"{path.name}: {found}", remedy="fetch or save it again"
    )


# ---- the two layouts ----


def _archive(path: Path) -> _Contents:
    """A zip archive: one `data.pkl`, and a part for each storage in `data/` beside it."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        parts = archive.infolist()  # of a million tensors half a kilobyte each: closed before the pickle is read
        pickles = [part for part in parts if part.filename.casefold().rpartition("/")[2] == "data.pkl"]
        names = {part.filename.casefold() for part in parts}
        if foreign := foreign_archive([part.filename for part in parts]):
            raise foreign.refusal(path)
        _require_stored(path, parts, names)
        if len(pickles) != 1 or not pickles[0].filename.endswith("/data.pkl"):
            raise _damaged(path, f"an archive with {len(pickles) or 'no'} data.pkl")
        top = pickles[0].filename.removesuffix("data.pkl")
        if pickles[0].file_size > LIMIT:
            raise _damaged(path, f"a pickle of {pickles[0].file_size} bytes")
        pickled = archive.read(pickles[0])
        order = archive.read(f"{top}byteorder")[:8] if f"{top}byteorder" in archive.NameToInfo else b"little"
        size = path.stat().st_size
        places = {
            part.filename.removeprefix(f"{top}data/"): _place(path, file, part, size)
            for part in parts
            if part.filename.startswith(f"{top}data/")
        }
    try:
        tree = unpickled(io.BytesIO(pickled))
    except Refused as refused:
        raise (_Lightning(str(refused)) if _LIGHTNING in pickled else refused) from None
    return _Contents(tree, places, swapped=order == b"big")


def _require_stored(path: Path, parts: list[zipfile.ZipInfo], names: set[str]) -> None:
    """Check that nothing is compressed, as `torch.save` writes it: no sum of parts is larger than the file."""
    packed = next((part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED), None)
    if packed:
        raise _damaged(path, f"a compressed part {packed[:80]!r}, which torch.save does not write")
    if sum(part.file_size for part in parts) > path.stat().st_size or any(
        part.file_size != part.compress_size for part in parts
    ):
        raise _damaged(path, "parts that overlap or are larger than the file")
    if len(names) != len(parts) or any("\0" in part.orig_filename for part in parts):
        raise _damaged(path, "two parts of the same name")


def _place(path: Path, file: BinaryIO, part: zipfile.ZipInfo, size: int) -> _Place:
    """Where the bytes of a part begin: after its own header, which has to name it as the directory does."""
    file.seek(part.header_offset)
    header = file.read(_LOCAL)
    length, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    offset = part.header_offset + _LOCAL + length + extra
    named = part.orig_filename.encode("utf-8" if part.flag_bits & 0x800 else "cp437", "replace")
    if header[:4] != ZIP or file.read(length) != named or offset + part.file_size > size:
        raise _damaged(path, f"no part {part.filename[:80]!r} where its directory says")
    return _Place(offset, part.file_size)


def _legacy(path: Path) -> _Contents:
    """Five pickles (a number, the version, the system, the tree, the keys), then each storage after its length."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as bytes_:
        _, _, system = (unpickled(bytes_) for _ in range(3))
        sizes: dict[str, int] = {}
        tree, keys = unpickled(bytes_, sizes), unpickled(bytes_)
        swapped = isinstance(system, dict) and system.get("little_endian") is False
        places: dict[str, _Place] = {}
        for key in keys if isinstance(keys, list) else ():
            if (
                not isinstance(key, str) or key not in sizes or key in places
            ):  # of how many bytes a number is, nothing else says
                raise Damaged(f"the numbers {shown(key)}, which are of no tensor or there twice")
            count = int.from_bytes(bytes_.read(8), "big" if swapped else "little", signed=True)
            places[key] = _Place(bytes_.tell(), count * sizes[key])
            if not 0 <= count * sizes[key] <= len(bytes_) - bytes_.tell():
                raise Damaged(f"{count} numbers in {key[:80]!r}, and the file ends before")
            bytes_.seek(count * sizes[key], io.SEEK_CUR)
    return _Contents(tree, places, swapped)


# ---- tensors ----


def _stored(path: Path, tensors: Mapping[str, PickledTensor], contents: _Contents) -> tuple[TensorEntry, ...]:
    """Each tensor once, with all of its names, after its storage has been found to be as long as it should."""
    named: dict[object, list[str]] = {}
    for name, held in tensors.items():
        same = (held.storage, held.offset, held.shape, held.strides) if held.storage and held.count else name
        named.setdefault(same, []).append(name)
    total = 0
    found = []
    for name, *aliases in named.values():
        held = tensors[name]
        total += held.count * held.storage.dtype.itemsize if held.storage and not held.reason else 0
        found.append(_one(path, name, tuple(aliases), held, contents))
    if total > _VIEWS * path.stat().st_size:
        raise Damaged(f"{total} bytes of tensors that overlap")
    return tuple(found)


def _one(path: Path, name: str, aliases: tuple[str, ...], held: PickledTensor, contents: _Contents) -> TensorEntry:
    reason, storage = held.reason, held.storage
    if storage is None:
        return TensorEntry(name, held.shape, held.dtype, Tensor, aliases, reason=reason)
    place = contents.places.get(storage.key)
    needed = storage.size * storage.dtype.itemsize
    if place is None or not needed <= place.size < needed + max(storage.dtype.itemsize, storage.unit):
        there = "none" if place is None else str(place.size)
        raise Damaged(f"{name} needs a storage of {needed} bytes, and the file has {there}")
    start = place.offset + held.offset * storage.dtype.itemsize
    if contents.swapped and held.scale is None:
        return TensorEntry(name, held.shape, held.dtype, partial(_swapped, path, start, held), aliases, reason=reason)
    numbers = _StoredNumbers(path, start, held)
    if held.scale is not None and reason is None and not contents.swapped:
        read, note = _dequantized(path, numbers.read, held, contents), f"dequantised: {held.dtype}"
        return TensorEntry(name, held.shape, "float32", read, aliases, computed=True, note=note)
    slice_ = numbers.stretch if _contiguous(held) else None
    return TensorEntry(name, held.shape, held.dtype, numbers.read, aliases, reason=reason, mapped=True, stretch=slice_)


def _dequantized(
    path: Path, codes: Callable[..., Tensor], held: PickledTensor, contents: _Contents
) -> Callable[..., Tensor]:
    """`scale · (q - zero point)` of a tensor of `torch.ao`, in one or along an axis."""
    along, scale = [-1 if place == held.axis else 1 for place in range(len(held.shape))], held.scale
    assert scale is not None

    def numbers(value: int | float | PickledTensor) -> int | float | Tensor:
        return (
            _one(path, "a scale", (), value, contents).read().double().reshape(along)
            if isinstance(value, PickledTensor)
            else value
        )

    def read(*_: float) -> Tensor:
        return ((codes().double() - numbers(held.zero)) * numbers(scale)).float()

    return read


@dataclass(frozen=True, eq=False, slots=True)
class _StoredNumbers:
    """The numbers of one tensor; there may be a million."""

    path: Path
    start: int
    held: PickledTensor

    def read(self, share: float = 1.0) -> Tensor:
        return _view(self.path, self.start, self.held)

    def stretch(self, low: int, high: int) -> Tensor:
        assert self.held.storage is not None
        return stretch(self.path, self.start, self.held.storage.dtype, low, high)


def _view(path: Path, start: int, held: PickledTensor) -> Tensor:
    """The tensor, a view of the mapped file."""
    assert held.storage is not None
    dtype = _CODES.get(held.storage.dtype, held.storage.dtype)
    if not held.count:
        return torch.empty(held.shape, dtype=dtype)
    span = 1 + sum((size - 1) * stride for size, stride in zip(held.shape, held.strides, strict=True))
    return mapped(path, start, span * dtype.itemsize).view(dtype).as_strided(held.shape, held.strides)


def _swapped(path: Path, start: int, held: PickledTensor, share: float = 1.0) -> Tensor:
    """The tensor of a file from a machine with the other order of bytes."""
    found = _view(path, start, held).contiguous()
    return found.view(torch.uint8).reshape(*found.shape, found.itemsize).flip(-1).contiguous().view(found.dtype)[..., 0]


def _contiguous(held: PickledTensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(held.shape), reversed(held.strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
