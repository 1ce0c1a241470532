"""A run on disk: what it was asked, what was recorded, its weights, and the point from which it can go on.

    manifest.json              format, versions, and what the run was asked to do
    records.sqlite             tidy records and the latest checkpoint, in WAL mode
    weights/NAME.safetensors   weights at chosen times, among them initial and final
    result.json                the summary, once the run is finished

Whatever instant a process is killed at, each file is whole, and records and checkpoint belong together. Nothing is
pickled. Folders of the same run are the same, whatever the machine: no paths, no host names, no times of day.
"""

import errno
import json
import math
import os
import platform
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pandas as pd
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from equipoise.errors import StoreError

FORMAT, VERSION = "equipoise-run", 1
MANIFEST, RECORDS, WEIGHTS, RESULT, LOCK = "manifest.json", "records.sqlite", "weights", "result.json", ".lock"

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    step INTEGER NOT NULL, growth REAL, log_loss REAL, log_time REAL,
    observer TEXT NOT NULL, place TEXT NOT NULL, quantity TEXT NOT NULL, value REAL
);
CREATE TABLE IF NOT EXISTS checkpoint (
    only INTEGER PRIMARY KEY CHECK (only = 1), step INTEGER NOT NULL, metadata TEXT NOT NULL, tensors BLOB NOT NULL
);
"""


class Record(NamedTuple):
    """One number seen by an observer at a step: a row of the tidy table.

    `growth` is `s = log(‖w‖/‖w0‖)`, `log_time` the logarithm of the flow's time; `place` is a layer, a law or empty.
    """

    step: int
    growth: float
    log_loss: float
    log_time: float
    observer: str
    place: str
    quantity: str
    value: float


@dataclass(frozen=True)
class Checkpoint:
    """The point from which a run can go on: tensors by name, and whatever else JSON can hold."""

    step: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """A run folder. One process at a time may write it (`create`, `resume`); any number may read it (`open`).

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "run"
    >>> with Store.create(folder, {"seed": 0}) as store:
    ...     store.save_weights("initial", {"layer1.weight": torch.zeros(2, 3, dtype=torch.float64)})
    ...     store.commit([Record(1, 0.1, -2.0, 0.0, "spectrum", "layer1", "stable_rank", 1.5)])
    ...     store.finish({"status": "reached"})
    >>> with Store.open(folder) as store:
    ...     store.manifest["seed"], store.result(), store.table()[["step", "value"]].values.tolist()
    (0, {'status': 'reached'}, [[1.0, 1.5]])

    Everything raises `StoreError`, one line, when the folder is not what it should be, the disk is full, or another
    process is writing. What was committed before is never lost.
    """

    folder: Path
    manifest: dict[str, Any]
    _connection: sqlite3.Connection = field(repr=False)
    _lock: FileLock | None = field(repr=False)

    @classmethod
    def create(cls, folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> "Store":
        """A new run in a new or empty folder; versions and the format are added to its manifest.

        Raises `StoreError` if there is a run already, or anything else.
        """
        path = Path(folder)
        with _in_one_line(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
            with _released_on_error(lock):
                _check_empty(path)
                versions = {"equipoise": version("equipoise"), "torch": str(torch.__version__)}
                versions["python"] = platform.python_version()
                whole = {"format": FORMAT, "version": VERSION, "versions": versions, **manifest}
                _place(path / MANIFEST, _json(whole))
                return cls(path, _read_json(path / MANIFEST), _writing(path), lock)

    @classmethod
    def resume(cls, folder: str | os.PathLike[str]) -> "Store":
        """A run to go on with from its checkpoint: later records are dropped, and so is the result of before.

        Raises `StoreError` if the folder is no run of this version, or another process is writing it.
        """
        path = Path(folder)
        with _in_one_line(path):
            manifest = _read_manifest(path)
            lock = _locked(path)
            with _released_on_error(lock):
                connection = _writing(path)
                with connection:
                    connection.execute("DELETE FROM records WHERE step > ifnull((SELECT step FROM checkpoint), -1)")
                (path / RESULT).unlink(missing_ok=True)
                return cls(path, manifest, connection, lock)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Store":
        """A run to read, also while another process writes it.

        Raises `StoreError` if the folder is no run of this version, or damaged.
        """
        path = Path(folder)
        with _in_one_line(path):
            return cls(path, _read_manifest(path), _reading(path), None)

    def close(self) -> None:
        """Let go of the folder; leaving a `with` block does it too."""
        self._connection.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def commit(self, records: Iterable[Record], checkpoint: Checkpoint | None = None) -> None:
        """Append records and replace the checkpoint, both or neither.

        Records that come with a checkpoint are of its step or before. NaN and infinities are kept.
        """
        with _in_one_line(self.folder), self._connection as connection:
            connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", map(_row, records))
            if checkpoint is not None:
                row = (checkpoint.step, json.dumps(dict(checkpoint.metadata)), _pack(checkpoint.tensors))
                connection.execute("REPLACE INTO checkpoint VALUES (1, ?, ?, ?)", row)

    def checkpoint(self) -> Checkpoint | None:
        """The latest checkpoint, its tensors on the CPU and in the order of their names; None before the first."""
        with _in_one_line(self.folder):
            row = self._connection.execute("SELECT step, metadata, tensors FROM checkpoint").fetchone()
            if row is None:
                return None
            step, metadata, tensors = row
            return Checkpoint(step, dict(sorted(safetensors.torch.load(tensors).items())), json.loads(metadata))

    def table(self) -> pd.DataFrame:
        """All records in the order of their insertion, one a row, with the columns of `Record`."""
        floats = dict.fromkeys(("growth", "log_loss", "log_time", "value"), "float64")
        with _in_one_line(self.folder):
            # sqlite stores NaN as NULL, which comes back as NaN
            rows = self._connection.execute("SELECT * FROM records ORDER BY rowid").fetchall()
        return pd.DataFrame(rows, columns=list(Record._fields)).astype({"step": "int64", **floats})

    def save_weights(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
        """Write `weights/NAME.safetensors`, in the dtype of the tensors, under their names.

        `metadata`, whatever JSON can hold, goes as JSON under the one key "equipoise": the order of several keys
        would differ from one process to the next, and so would the files of equal runs.
        """
        path = self._weights(name)
        with _in_one_line(self.folder):
            path.parent.mkdir(exist_ok=True)
            _place(path, _pack(tensors, {"equipoise": json.dumps(dict(metadata or {}), sort_keys=True)}))

    def load_weights(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of `weights/NAME.safetensors`, on the CPU and in the order of their names, and their metadata.

        Raises `StoreError` that names the file when it is missing or damaged.
        """
        path = self._weights(name)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {}).get("equipoise", "{}"))
                return {name: file.get_tensor(name) for name in sorted(file.keys())}, metadata
        except (OSError, SafetensorError, ValueError) as error:
            found = "nothing there" if isinstance(error, FileNotFoundError) else _first_line(error)
            raise StoreError(
                expected=f"weights in {path}", found=found, remedy=f"there are: {', '.join(self.weights()) or 'none'}"
            ) from None

    def weights(self) -> list[str]:
        """The names under which weights were saved, in alphabetical order."""
        return sorted(path.stem for path in (self.folder / WEIGHTS).glob("*.safetensors"))

    def between(self) -> list[str]:
        """Those of weights saved on the way: all but `initial` and `final`."""
        return [name for name in self.weights() if name not in ("initial", "final")]

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write `result.json`; NaN and infinities, which JSON lacks, become null."""
        with _in_one_line(self.folder):
            _place(self.folder / RESULT, _json(summary))

    def result(self) -> dict[str, Any] | None:
        """What `finish` wrote, or None while the run is not finished."""
        with _in_one_line(self.folder):
            path = self.folder / RESULT
            return _read_json(path) if path.exists() else None

    def _weights(self, name: str) -> Path:
        if not re.fullmatch(r"\w[\w.=+-]*", name):
            raise StoreError(
                expected="a name of letters, digits and ._=+-", found=repr(name), remedy="call them e.g. 'step-100'"
            )
        return self.folder / WEIGHTS / f"{name}.safetensors"


# ---- records ----


def _writing(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / RECORDS)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(SCHEMA)
    return connection


def _reading(folder: Path) -> sqlite3.Connection:
    path = folder / RECORDS
    if os.access(folder, os.W_OK):
        mode = "mode=rw"  # a connection that may not write would leave its shared memory file behind
    elif path.with_name(f"{RECORDS}-wal").exists():
        mode = "mode=ro"
    else:
        mode = "immutable=1"  # without this, sqlite cannot read a WAL database where it cannot write
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)
    connection.execute("PRAGMA query_only = 1")
    return connection


def _row(record: Record) -> tuple[int | float | str, ...]:
    # sqlite3 would store a numpy integer as its bytes
    step, growth, log_loss, log_time, observer, place, quantity, value = record
    return int(step), float(growth), float(log_loss), float(log_time), observer, place, quantity, float(value)


def _pack(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    # safetensors refuses tensors that share memory, so each is copied
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return safetensors.torch.save(plain, metadata)


# ---- files ----


def _place(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there: to a neighbour, to the disk, then into its place."""
    neighbour = path.with_name(f".{path.name}.tmp")
    try:
        with open(neighbour, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(neighbour, path)
    except OSError:
        neighbour.unlink(missing_ok=True)
        raise


def _json(fields: Mapping[str, Any]) -> bytes:
    """Strict JSON with one line for each top-level key."""
    lines = [f"  {json.dumps(key)}: {json.dumps(finite(value), allow_nan=False)}" for key, value in fields.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def finite(value: Any) -> Any:
    """What JSON can hold: lists for tuples, and null for NaN and infinity, of which it knows none.

    >>> finite({"bound": float("inf"), "rests on": ("laws",)})
    {'bound': None, 'rests on': ['laws']}
    """
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, _first_line(error)) from None
    if not isinstance(fields, dict):
        raise _damaged(path, type(fields).__name__)
    return fields


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        found = f"no {MANIFEST}" if folder.is_dir() else "no such folder"
        raise StoreError(
            expected=f"the folder of a run at {folder}", found=found, remedy="pass --out of an earlier run"
        )
    manifest = _read_json(path)
    if manifest.get("format") != FORMAT:
        raise StoreError(
            expected=f'"format": "{FORMAT}" in {path}',
            found=f"another program's folder, format {manifest.get('format')!r}",
            remedy="pass --out of an earlier run",
        )
    if manifest.get("version") != VERSION:
        raise StoreError(
            expected=f'"version": {VERSION} in {path}',
            found=repr(manifest.get("version")),
            remedy="read it with the equipoise that wrote it: see its versions",
        )
    return manifest


def _check_empty(folder: Path) -> None:
    if (folder / MANIFEST).exists():
        _read_manifest(folder)
        raise StoreError(
            expected="a new or empty folder", found=f"a run in {folder}", remedy=f"--resume {folder}, or choose another"
        )
    # a process killed while it made the folder leaves these
    if strangers := sorted({path.name for path in folder.iterdir()} - {LOCK, f".{MANIFEST}.tmp"}):
        raise StoreError(
            expected="a new or empty folder",
            found=f"another program's files in {folder}, {strangers[0]} among them",
            remedy="choose another folder",
        )


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


# ---- refusals ----


@contextmanager
def _in_one_line(folder: Path) -> Iterator[None]:
    """Whatever sqlite or the system says becomes one line with a remedy."""
    try:
        yield
    except StoreError:
        raise
    except (sqlite3.Error, SafetensorError, OSError) as error:
        raise _refusal(folder, error) from None


def _refusal(folder: Path, error: Exception) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of the bits says where it happened
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            expected=f"room on the disk for {folder}",
            found="a full disk",
            remedy=f"free some and --resume {folder}: what was committed is safe",
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return _damaged(folder / RECORDS, _first_line(error))
    return StoreError(
        expected=f"to read and write {folder}", found=_first_line(error), remedy="check the folder and its permissions"
    )


def _damaged(path: Path, found: str) -> StoreError:
    return StoreError(expected=f"an intact {path}", found=found, remedy="restore it, or run again in another folder")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
