"""A run folder: records in SQLite while the training runs, and as Parquet at its end."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.store import Record, Store

PARQUET = "records.parquet"
_COMMIT_SECONDS = 2.0  # records of the last looks that a kill may lose


class Disk:
    """Records in a folder of their own, readable by any process while it grows: `Store.open(folder).table()`.

    Raises `StoreError` for a folder in use.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Mapping[str, Any] | None = None):
        self.store = Store.create(folder, manifest or {})
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
        self.store.finish({"status": "finished"})
        self.store.close()

    def _commit(self) -> None:
        self.store.commit(self._pending)
        self._pending, self._committed = [], time.monotonic()
