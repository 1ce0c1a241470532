"""A run folder: records in SQLite while the training runs, and as Parquet at its end."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.store import MANIFEST, Record, Store

PARQUET = "records.parquet"
_COMMIT_SECONDS = 2.0  # records of the last looks that a kill may lose


KIND = "watch"  # of the folder, in its manifest


class Disk:
    """Records in a folder of their own, readable by any process while it grows: `Store.open(folder).table()`.

    A folder of an earlier training goes on: `steps_before` is the last step that it holds. `status` is what the folder
    says of the training once it is closed. Raises `StoreError` for a folder in use, or of anything else.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Mapping[str, Any] | None = None):
        self.store, self.steps_before = _opened(Path(folder), {"kind": KIND, **(manifest or {})})
        self.status = "finished"
        self._pending: list[Record] = []
        self._committed = time.monotonic()

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.store.folder

    def write(self, records: Sequence[Record]) -> None:
        """Keep them, and commit every other second."""
        self._pending += records
        if time.monotonic() - self._committed > _COMMIT_SECONDS:
            self._commit()

    def table(self) -> pd.DataFrame:
        """All records."""
        if self._pending:
            self._commit()
        with Store.open(self.folder) as reader:
            return reader.table()

    def close(self) -> None:
        """Commit, and write the Parquet file."""
        self._commit()
        self.store.table().to_parquet(self.folder / PARQUET, index=False)
        self.store.finish({"status": self.status})
        self.store.close()

    def _commit(self) -> None:
        self.store.commit(self._pending)
        self._pending, self._committed = [], time.monotonic()


def _opened(folder: Path, manifest: Mapping[str, Any]) -> tuple[Store, int]:
    """A new folder, or one of a watched training to go on with, and the last step in it."""
    if (folder / MANIFEST).is_file():
        with Store.open(folder) as earlier:
            goes_on = earlier.manifest.get("kind") == KIND
        if goes_on:
            store = Store.resume(folder)
            return store, store.go_on()
    return Store.create(folder, manifest), 0
