"""A run folder: records in SQLite while the training runs, and as Parquet at its end where pyarrow is installed."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from equipoise.arguments import checked_fields
from equipoise.errors import StoreError
from equipoise.store import MANIFEST, RECORDS, Record, Store, place

PARQUET = "records.parquet"
_COMMIT_SECONDS = 2.0  # of records that a kill may lose
KIND = "watch"  # of the folder, in its manifest


@checked_fields
class Disk:
    """Records in a folder of their own, readable by any process while it grows: `Store.open(folder).table()`.

    A folder of an earlier training goes on: `steps_before` is the last step that it holds. `status` is recorded as
    the end of the training when it is closed. Raises `StoreError` for a folder in use, or of anything else.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Mapping[str, object] | None = None):
        self.store, self.steps_before = _opened(Path(folder).absolute(), {"kind": KIND, **(manifest or {})})
        self.status = "finished"
        self._open = True
        self._pending: list[Record] = []
        self._committed = time.monotonic()

    @property
    def folder(self) -> Path:
        """The folder."""
        return self.store.folder

    def write(self, records: Sequence[Record]) -> None:
        """Keep them, and commit every other second."""
        self._pending += records
        if time.monotonic() - self._committed > _COMMIT_SECONDS:
            self._commit()

    def table(self) -> pd.DataFrame:
        """All records: while the training runs, from the open database, even if the folder is gone."""
        if not self._open:
            with Store.open(self.folder) as reader:
                return reader.table()
        committed = self.store.table()
        if not self._pending:
            return committed
        rows = [*committed.itertuples(index=False, name=None), *self._pending]
        return pd.DataFrame(rows, columns=committed.columns).astype(committed.dtypes)

    def close(self) -> None:
        """Commit, and write the Parquet file where pyarrow is installed."""
        self._commit()
        if find_spec("pyarrow"):
            place(self.folder / PARQUET, self.store.table().to_parquet(index=False))
        self.store.finish({"status": self.status})
        self._let_go()

    def give_up(self) -> list[Record]:
        """Let go of a folder that can take no more, and return all records, as far as they can be read."""
        found = list(self._pending)
        with suppress(Exception):
            found = [Record(*row) for row in self.table().itertuples(index=False, name=None)]
        with suppress(Exception):
            self._let_go()
        return found

    def _commit(self) -> None:
        if not (self.folder / RECORDS).is_file():  # what is open would be written to, and be gone with it
            raise StoreError(
                expected=f"the records of this training in {self.folder}",
                found=f"that {RECORDS} was removed",
                remedy="records are kept in memory from here on: save log.table()",
            )
        self.store.commit(self._pending)
        self._pending, self._committed = [], time.monotonic()

    def _let_go(self) -> None:
        self._open = False
        self.store.close()


def _opened(folder: Path, manifest: Mapping[str, object]) -> tuple[Store, int]:
    """A new folder, or one of a watched training to go on with, and the last step in it."""
    if (folder / MANIFEST).is_file():
        with Store.open(folder) as earlier:
            goes_on = earlier.manifest.get("kind") == KIND
        if goes_on:
            store = Store.resume(folder)
            return store, store.go_on()
    return Store.create(folder, manifest), 0
