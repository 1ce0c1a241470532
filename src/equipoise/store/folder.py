"""A run on disk: what it was asked, what was recorded, its weights, and the point from which it can go on.

    weights/NAME.safetensors   weights at chosen times, among them initial and final
    records.sqlite             tidy records and the last checkpoints, in WAL mode
    manifest.json              format, versions, and what the run was asked to do
    config.toml                the options of the command, where one was typed
    result.json                the summary, once the run is finished, and the hashes of all the rest

If a process is killed, at any instant, each file is whole, and records and checkpoints belong together. The manifest
comes last when a folder is made: a folder with one holds all that a run needs to go on. Every value is covered by a
SHA-256, and one that differs is refused with the name of its file. Nothing is pickled. Folders of the same run are the
same on every machine: no paths, no host names, no times of day.
"""

import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from equipoise.errors import StoreError
from equipoise.store.database import Database, Record, ResumePoint
from equipoise.store.files import (
    MANIFEST,
    RECORDS,
    RESULT,
    WEIGHTS,
    Json,
    damaged,
    file_hash,
    first_line,
    in_one_line,
    parse_json,
    place,
    place_json,
    place_weights,
    read_json,
    read_weights,
    remove,
    weights_hash,
)
from equipoise.store.options import CONFIG, options_text

FORMAT, VERSION = "equipoise-run", 2
LOCK = ".lock"
_MAKING = ".making"  # there while a folder is made: what is in it without a manifest is ours
_HASHES = "sha256 of"  # in result.json: manifest, records, last checkpoint and files, by name


@dataclass(frozen=True)
class Store:
    """A run folder. One process at a time may write it (`create`, `resume`); any number may read it (`open`).

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "run"
    >>> start = {"layer1.weight": torch.zeros(2, 3, dtype=torch.float64)}
    >>> with Store.create(folder, {"seed": 0}, {"initial": start}) as store:
    ...     store.commit([Record(1, 0.1, -2.0, 0.0, "spectrum", "layer1", "stable_rank", 1.5)])
    ...     store.finish({"status": "reached"})
    >>> with Store.open(folder) as store:
    ...     store.manifest["seed"], store.result(), store.table()[["step", "value"]].values.tolist()
    (0, {'status': 'reached'}, [[1.0, 1.5]])

    Everything raises `StoreError`, one line, when the folder is not what it should be, the disk is full, or another
    process is writing. What was committed before is never lost.
    """

    folder: Path
    manifest: Json
    _database: Database = field(repr=False)
    _lock: FileLock | None = field(repr=False)
    _home: Path = field(repr=False)  # the same, wherever the process goes

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        manifest: Mapping[str, object],
        weights: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> "Store":
        """Make a new run in a new or empty folder; versions and the format are added to its manifest.

        `weights` are saved with it, by name: the folder is a run with all of them or none yet. Raises `StoreError` if
        there is a run already, or anything else.
        """
        path = Path(folder)
        with in_one_line(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
            with _released_on_error(lock):
                _check_empty(path)
                place(path / _MAKING, b"")
                (path / WEIGHTS).mkdir(exist_ok=True)
                saved = {name: place_weights(_weights(path, name), each, {}) for name, each in (weights or {}).items()}
                database = Database.writing(path)
                versions = {"equipoise": version("equipoise"), "torch": str(torch.__version__)}
                versions["python"] = platform.python_version()
                whole = {"format": FORMAT, "version": VERSION, "versions": versions, **manifest, _HASHES: saved}
                place_json(path / MANIFEST, whole)
                remove(path / _MAKING)
                return cls(path, _read_manifest(path), database, lock, path.absolute())

    @classmethod
    def resume(cls, folder: str | os.PathLike[str]) -> "Store":
        """Open a run to go on with. Nothing is changed before `rewind`.

        Raises:
            StoreError: if the folder is no run of this version or damaged, or another process is writing it.
        """  # noqa: DOC501 - a helper makes the error
        path = Path(folder)
        with in_one_line(path):
            manifest = _read_manifest(path)
            lock = _locked(path)
            with _released_on_error(lock):
                if not (path / RECORDS).exists():
                    raise damaged(path / RECORDS, "nothing there")
                return cls(path, manifest, Database.writing(path), lock, path.absolute())

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Store":
        """Open a run to read, also while another process writes it.

        Raises `StoreError` if the folder is no run of this version, or damaged.
        """
        path = Path(folder)
        with in_one_line(path):
            return cls(path, _read_manifest(path), Database.reading(path), None, path.absolute())

    def close(self) -> None:
        """Let go of the folder; leaving a `with` block does it too."""
        self._database.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def rewind(self, changes: Mapping[str, object] | None = None) -> None:
        """Go back to the last good checkpoint: later records are dropped, and so is the result of before.

        `changes` replace entries of the manifest. At every instant the folder is a run that can go on.
        """
        with in_one_line(self.folder):
            remove(self._home / RESULT)  # first: it holds the hashes of what is dropped
            self._database.rewind()
            self._change(changes)

    def go_on(self) -> int:
        """Go on after all that is on record, and return its last step: for records that need no checkpoint."""
        with in_one_line(self.folder):
            self._database.rows()  # what is there must be whole
            remove(self._home / RESULT)
            return self._database.last_step()

    def _change(self, changes: Mapping[str, object] | None) -> None:
        if changes:
            place_json(self._home / MANIFEST, self.manifest | dict(changes))
            self.manifest.update(changes)

    def save_options(self, options: Mapping[str, object]) -> None:
        """Write `config.toml`, which is for people: it may be edited, and no run is read from it."""
        with in_one_line(self.folder):
            place(self._home / CONFIG, options_text(options).encode())

    def commit(self, records: Iterable[Record], checkpoint: ResumePoint | None = None) -> None:
        """Append records and a checkpoint, both or neither.

        Records that come with a checkpoint are of its step or before. NaN and infinities are kept.
        """
        with in_one_line(self.folder):
            self._database.commit(records, checkpoint)

    def checkpoint(self) -> ResumePoint | None:
        """The checkpoint to go on from, its tensors on the CPU and in the order of their names; None before the first.

        Of a finished run the last one; of another the last that is whole, as its records are.
        """
        with in_one_line(self.folder):
            result = self._result()
            if result is None:
                return self._database.last_good()
            found = self._database.newest()
            self._compare("checkpoint", None if found is None else found[1], self._home / RECORDS)
            return None if found is None else found[0]

    def table(self) -> pd.DataFrame:
        """All records in the order of their insertion, one a row, with the columns of `Record`."""
        with in_one_line(self.folder):
            if self._result() is not None:
                self._compare("records", self._database.rows()[1], self._home / RECORDS)
            return self._database.table()

    def table_of_checkpoint(self) -> pd.DataFrame:
        """The records that belong to the last good checkpoint."""
        with in_one_line(self.folder):
            return self._database.table_of_checkpoint()

    def save_weights(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
    ) -> None:
        """Write `weights/NAME.safetensors`, in the dtype of the tensors, under their names.

        `metadata` is an object that JSON can hold. The file is covered by a SHA-256 in its own header.
        """
        path = _weights(self._home, name)
        with in_one_line(self.folder):
            path.parent.mkdir(exist_ok=True)
            place_weights(path, tensors, metadata or {})

    def load_weights(self, name: str) -> tuple[dict[str, Tensor], Json]:
        """The tensors of `weights/NAME.safetensors`, on the CPU and in the order of their names, and their metadata.

        Raises:
            StoreError: that names the file when it is missing, damaged, or not the one that the run wrote.
        """  # noqa: DOC501 - a helper makes the error
        path = _weights(self._home, name)
        try:
            tensors, metadata, digest = read_weights(path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            found = "nothing there" if isinstance(error, FileNotFoundError) else first_line(error)
            raise StoreError(
                expected=f"weights in {path}", found=found, remedy=f"there are: {', '.join(self.weights()) or 'none'}"
            ) from None
        if digest != self.manifest[_HASHES].get(name, digest):
            raise damaged(path, "weights that are not those of the manifest")
        if self._result() is not None:
            self._compare(f"{WEIGHTS}/{path.name}", file_hash(path), path)
        return tensors, metadata

    def wrote(self, name: str, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these are the weights that `create` saved under that name, by the hash in the manifest."""
        return self.manifest[_HASHES].get(name) == weights_hash(name, tensors, {})

    def weights(self) -> list[str]:
        """The names of saved weights in alphabetical order; in a finished run also of those that are missing."""
        there = {path.stem for path in (self._home / WEIGHTS).glob("*.safetensors")}
        hashed = (self._result() or {}).get(_HASHES, {})
        return sorted(there | {Path(name).stem for name in hashed if name.startswith(f"{WEIGHTS}/")})

    def between(self) -> list[str]:
        """Those of weights saved on the way: all but `initial` and `final`."""
        return [name for name in self.weights() if name not in ("initial", "final")]

    def finish(self, summary: Mapping[str, object]) -> None:
        """Write `result.json`, with the hashes of all the rest; NaN and infinities, which JSON lacks, become null."""
        with in_one_line(self.folder):
            newest = self._database.newest()
            hashes: dict[str, str | None] = {
                MANIFEST: file_hash(self._home / MANIFEST),
                "records": self._database.rows()[1],
                "checkpoint": None if newest is None else newest[1],
            }
            files = [*(self._home / WEIGHTS).glob("*.safetensors"), *self._home.glob("*.parquet")]
            hashes |= {path.relative_to(self._home).as_posix(): file_hash(path) for path in sorted(files)}
            place_json(self._home / RESULT, {**summary, _HASHES: hashes})

    def result(self) -> Json | None:
        """The summary that `finish` wrote, or None while the run is not finished."""
        with in_one_line(self.folder):
            result = self._result()
            return None if result is None else {key: value for key, value in result.items() if key != _HASHES}

    def _result(self) -> Json | None:
        path = self._home / RESULT
        if not path.exists():
            return None
        result = read_json(path)
        if not isinstance(result.get(_HASHES), dict) or MANIFEST not in result[_HASHES]:
            raise damaged(path, "no hashes of the run's files")
        if result[_HASHES][MANIFEST] != file_hash(self._home / MANIFEST):
            raise damaged(self._home / MANIFEST, f"another manifest than {RESULT} was written with")
        return result

    def _compare(self, name: str, found: str | None, path: Path) -> None:
        """With the hash in the result."""
        result = self._result()
        if result is not None and result[_HASHES].get(name) != found:
            raise damaged(path, f"contents that do not match their SHA-256 in {RESULT}")


def _weights(folder: Path, name: str) -> Path:
    if not re.fullmatch(r"\w[\w.=+-]*", name):
        raise StoreError(
            expected="a name of letters, digits and ._=+-", found=repr(name), remedy="call them e.g. 'step-100'"
        )
    return folder / WEIGHTS / f"{name}.safetensors"


def _read_manifest(folder: Path) -> Json:
    path = folder / MANIFEST
    if not path.is_file():
        found = "no such folder"
        if folder.is_dir():
            found = "a run that was killed before its first step" if (folder / _MAKING).exists() else f"no {MANIFEST}"
        raise StoreError(
            expected=f"the folder of a run at {folder}",
            found=found,
            remedy="pass the folder that a run was written to with --out",
        )
    stated = parse_json(path)
    if stated.get("format") != FORMAT:
        raise StoreError(
            expected=f'"format": "{FORMAT}" in {path}',
            found=f"another program's folder, format {stated.get('format')!r}",
            remedy="pass the folder that a run was written to with --out",
        )
    if stated.get("version") != VERSION:
        raise StoreError(
            expected=f'"version": {VERSION} in {path}',
            found=repr(stated.get("version")),
            remedy="read it with the equipoise that wrote it: see its versions",
        )
    manifest = read_json(path)
    if not isinstance(manifest.get(_HASHES), dict):
        raise damaged(path, "no hashes of the first weights")
    return manifest


def _check_empty(folder: Path) -> None:
    """Refuse a folder that holds anything; what a process killed in `create` has left is removed."""
    if (folder / MANIFEST).exists():
        kind, resume = _read_manifest(folder).get("kind"), f"--resume {shlex.quote(str(folder))}"
        raise StoreError(
            expected="a new or empty folder",
            found=f"{'a watched training' if kind == 'watch' else 'a run'} in {folder}",
            remedy="choose another folder" if kind == "watch" else f"{resume}, or choose another",
        )
    ours = {LOCK, _temporary(_MAKING)}
    if (folder / _MAKING).exists():
        for path in folder.iterdir():
            if path.name in (MANIFEST, _temporary(MANIFEST), *_databases()):
                path.unlink()
        shutil.rmtree(folder / WEIGHTS, ignore_errors=True)
        ours |= {_MAKING}
    if strangers := sorted({path.name for path in folder.iterdir()} - ours):
        raise StoreError(
            expected="a new or empty folder",
            found=f"another program's files in {folder}, {strangers[0]} among them",
            remedy="choose another folder",
        )


def _temporary(name: str) -> str:
    return f".{name}.tmp"


def _databases() -> tuple[str, ...]:
    return tuple(RECORDS + end for end in ("", "-wal", "-shm", "-journal"))


def _locked(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreError(
            expected=f"{folder} to oneself",
            found="another process writing this run",
            remedy="wait until it ends, or choose another folder",
        ) from None
    return lock


@contextmanager
def _released_on_error(lock: FileLock) -> Iterator[None]:
    try:
        yield
    except BaseException:
        lock.release()
        raise
