"""Records and checkpoints in SQLite, in pages that are chained by SHA-256.

A page holds the records of one commit. Its hash covers them and the hash of the page before, so that a changed, missing
or exchanged row is noticed; a checkpoint's hash covers its tensors and the page up to which records belong to it. The
last few checkpoints are kept: where the newest is damaged, a run goes on from the one before.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from equipoise.errors import StoreError
from equipoise.store.files import RECORDS, Json, damaged, pack

KEPT = 3
"""Checkpoints kept, the newest last."""

_STRICT = " STRICT" if sqlite3.sqlite_version_info >= (3, 37) else ""
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS pages (
    page INTEGER PRIMARY KEY, rows INTEGER NOT NULL, sha256 TEXT NOT NULL
){_STRICT};
CREATE TABLE IF NOT EXISTS records (
    step INTEGER NOT NULL, growth REAL, log_loss REAL, log_time REAL,
    observer TEXT NOT NULL, place TEXT NOT NULL, quantity TEXT NOT NULL, value REAL,
    page INTEGER NOT NULL REFERENCES pages (page)
){_STRICT};
CREATE TABLE IF NOT EXISTS checkpoints (
    number INTEGER PRIMARY KEY, step INTEGER NOT NULL, page INTEGER NOT NULL,
    metadata TEXT NOT NULL, tensors BLOB NOT NULL, sha256 TEXT NOT NULL
){_STRICT};
"""
_COLUMNS = "step, growth, log_loss, log_time, observer, place, quantity, value"


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
class ResumePoint:
    """The point from which a run can go on: tensors by name, and metadata that JSON can hold."""

    step: int
    tensors: Mapping[str, Tensor]
    metadata: Json = field(default_factory=dict)


@dataclass(frozen=True)
class _Saved:
    """A checkpoint as it is stored, with the page that ends its records."""

    number: int
    page: int
    sha256: str
    checkpoint: ResumePoint


class Database:
    """The records and checkpoints of one folder, open for reading or for writing.

    Everything that is read is compared with its hash; what differs raises `StoreError`, which names the file. SQLite's
    own errors are the caller's to translate (`files.in_one_line`).
    """

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path = path
        self.connection = connection
        connection.text_factory = lambda text: text.decode("utf-8", "backslashreplace")  # damaged text has another hash

    @classmethod
    def writing(cls, folder: Path) -> "Database":
        """Open for one process to write; every commit is on the disk when it returns."""
        connection = sqlite3.connect(folder / RECORDS)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(_SCHEMA)
        return cls(folder / RECORDS, connection)._intact()

    @classmethod
    def reading(cls, folder: Path) -> "Database":
        """Open for any number of processes to read, also while one writes."""
        path = folder / RECORDS
        if path.exists() and not path.is_file():
            raise damaged(path, "no file, but a folder, a pipe or a device")
        if os.access(folder, os.W_OK):
            mode = "mode=rw"  # a connection that may not write would leave its shared memory file behind
        elif path.with_name(f"{RECORDS}-wal").exists():
            mode = "mode=ro"
        else:
            mode = "immutable=1"  # without this, sqlite cannot read a WAL database where it cannot write
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)
        connection.execute("PRAGMA query_only = 1")
        return cls(path, connection)._intact()

    def _intact(self) -> "Database":
        try:
            (found,) = self.connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise damaged(self.path, found.splitlines()[0])
        except BaseException:
            self.connection.close()
            raise
        return self

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()

    # ---- records ----

    def commit(self, records: Iterable[Record], checkpoint: ResumePoint | None) -> None:
        """Append a page of records, and a checkpoint that ends with it: both or neither."""
        rows = [_row(record) for record in records]
        with self.connection as connection:
            page, before = self._last_page()
            if rows:
                page, before = page + 1, _page_hash(before, rows)
                connection.execute("INSERT INTO pages VALUES (?, ?, ?)", (page, len(rows), before))
                numbered = [(*row, page) for row in rows]
                connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", numbered)
            if checkpoint is not None:
                metadata, tensors = json.dumps(dict(checkpoint.metadata)), pack(checkpoint.tensors)
                digest = _checkpoint_hash(before, checkpoint.step, page, metadata, tensors)
                row = (checkpoint.step, page, metadata, tensors, digest)
                connection.execute(
                    "INSERT INTO checkpoints (step, page, metadata, tensors, sha256) VALUES (?, ?, ?, ?, ?)", row
                )
                connection.execute(
                    "DELETE FROM checkpoints WHERE number <= (SELECT max(number) FROM checkpoints) - ?", (KEPT,)
                )

    def _last_page(self) -> tuple[int, str]:
        row = self.connection.execute("SELECT page, sha256 FROM pages ORDER BY page DESC LIMIT 1").fetchone()
        return row or (0, "")

    def rows(self) -> tuple[list[tuple], str]:
        """All records in the order of their insertion, and the SHA-256 of all of them. Raises `StoreError`."""
        rows, pages = self._pages()
        good, _ = _chained(rows, pages)
        if good < len(pages) or sum(count for _, count, _ in pages) != len(rows):
            raise damaged(self.path, f"records that do not match their SHA-256, from page {good + 1} of {len(pages)}")
        return rows, hashlib.sha256(_bytes(rows)).hexdigest()

    def table(self) -> pd.DataFrame:
        """All records, one a row, with the columns of `Record`."""
        return _frame(self.rows()[0])

    def last_step(self) -> int:
        """The last step on record; 0 where there is none."""
        (step,) = self.connection.execute("SELECT ifnull(max(step), 0) FROM records").fetchone()
        return step

    def _pages(self) -> tuple[list[tuple], list[tuple[int, int, str]]]:
        with self.connection:  # one view of both tables, also while another process commits
            self.connection.execute("BEGIN")
            pages = self.connection.execute("SELECT page, rows, sha256 FROM pages ORDER BY page").fetchall()
            rows = self.connection.execute(f"SELECT {_COLUMNS} FROM records ORDER BY rowid").fetchall()
        return rows, pages

    # ---- checkpoints ----

    def newest(self) -> tuple[ResumePoint, str] | None:
        """The newest checkpoint and its hash; None before the first. Raises `StoreError` where it is damaged."""
        numbers = self._numbers()
        if not numbers:
            return None
        saved = self._saved(numbers[0], self._hashes())
        if saved is None:
            raise damaged(self.path, "a last checkpoint that does not match its SHA-256")
        return saved.checkpoint, saved.sha256

    def last_good(self) -> ResumePoint | None:
        """The newest checkpoint that matches its hash, and whose records do; None before the first.

        Raises `StoreError` where there are checkpoints, and none is good.
        """
        saved = self._last_good()
        return None if saved is None else saved.checkpoint

    def table_of_checkpoint(self) -> pd.DataFrame:
        """The records up to the last good checkpoint; none before the first."""
        saved = self._last_good()
        rows, pages = self._pages()
        return _frame(rows[: sum(count for page, count, _ in pages if saved is not None and page <= saved.page)])

    def rewind(self) -> None:
        """Drop the records after the last good checkpoint, and the checkpoints after it, in one transaction."""
        saved = self._last_good()
        page, number = (0, 0) if saved is None else (saved.page, saved.number)
        with self.connection as connection:
            connection.execute("DELETE FROM records WHERE page > ?", (page,))
            connection.execute("DELETE FROM pages WHERE page > ?", (page,))
            connection.execute("DELETE FROM checkpoints WHERE number > ?", (number,))

    def _last_good(self) -> _Saved | None:
        numbers = self._numbers()
        if not numbers:
            return None
        rows, pages = self._pages()
        good, _ = _chained(rows, pages)
        hashes = self._hashes()
        for number in numbers:
            saved = self._saved(number, hashes)
            if saved is not None and saved.page <= good:
                return saved
        raise damaged(self.path, f"{len(numbers)} checkpoints, none of which matches its SHA-256")

    def _numbers(self) -> list[int]:
        found = self.connection.execute("SELECT number FROM checkpoints ORDER BY number DESC").fetchall()
        return [number for (number,) in found]

    def _hashes(self) -> dict[int, str]:
        return {0: "", **dict(self.connection.execute("SELECT page, sha256 FROM pages").fetchall())}

    def _saved(self, number: int, hashes: Mapping[int, str]) -> _Saved | None:
        """The checkpoint of that number; None where it does not match its hash."""
        query = "SELECT step, page, metadata, tensors, sha256 FROM checkpoints WHERE number = ?"
        step, page, metadata, packed, expected = self.connection.execute(query, (number,)).fetchone()
        if page not in hashes or _checkpoint_hash(hashes[page], step, page, metadata, packed) != expected:
            return None
        try:
            tensors = dict(sorted(safetensors.torch.load(packed).items()))
        except SafetensorError as error:
            raise StoreError(expected="a checkpoint in safetensors", found=str(error), remedy="run again") from None
        return _Saved(number, page, expected, ResumePoint(step, tensors, json.loads(metadata)))


def _frame(rows: list[tuple]) -> pd.DataFrame:
    floats = dict.fromkeys(("growth", "log_loss", "log_time", "value"), "float64")
    return pd.DataFrame(rows, columns=list(Record._fields)).astype({"step": "int64", **floats})


def _row(record: Record) -> tuple[int | float | str | None, ...]:
    # SQLite would store a numpy integer as its bytes, stores NaN as NULL, and knows no negative zero
    step, growth, log_loss, log_time, observer, place, quantity, value = record
    numbers = (float(number) for number in (growth, log_loss, log_time, value))
    growth, log_loss, log_time, value = (None if number != number else number + 0.0 for number in numbers)
    return int(step), growth, log_loss, log_time, _text(observer), _text(place), _text(quantity), value


def _text(name: str) -> str:
    """As it is, with what no file can hold (half of a surrogate pair, which a name of a parameter may be) escaped."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def _chained(rows: list[tuple], pages: list[tuple[int, int, str]]) -> tuple[int, str]:
    """How many pages from the first match their hashes, and the hash of the last of them."""
    before, start = "", 0
    for good, (page, count, expected) in enumerate(pages):
        digest = _page_hash(before, rows[start : start + count])
        if page != good + 1 or digest != expected:
            return good, before
        before, start = digest, start + count
    return len(pages), before


def _page_hash(before: str, rows: list[tuple]) -> str:
    return hashlib.sha256(before.encode() + _bytes(rows)).hexdigest()


def _bytes(rows: list[tuple]) -> bytes:
    """Every bit of every value: the shortest text of a float is its own alone."""
    return "\n".join(map(repr, rows)).encode("utf-8", "surrogatepass")


def _checkpoint_hash(before: str, step: int, page: int, metadata: str, tensors: bytes) -> str:
    return hashlib.sha256(json.dumps([before, step, page, metadata]).encode() + tensors).hexdigest()
