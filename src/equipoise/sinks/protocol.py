"""The protocols of sinks, and the two plainest ones."""

import re
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import pandas as pd

from equipoise.errors import InputError
from equipoise.store import Record


@runtime_checkable
class Sink(Protocol):
    """A place for records, written from a thread of its own. One that raises is switched off; the training goes on."""

    def write(self, records: Sequence[Record]) -> None:
        """Take the records of one snapshot."""
        ...

    def close(self) -> None:
        """The training has ended."""
        ...


@runtime_checkable
class ReadableSink(Sink, Protocol):
    """A sink whose records can be read again.

    `steps_before` is the last step of an earlier training that it goes on with; `status`, how the training ended, is
    set before `close`.
    """

    steps_before: int
    status: str

    def table(self) -> pd.DataFrame:
        """All records, one a row, with the columns of `Record`."""
        ...

    def give_up(self) -> list[Record]:
        """Let go of a place that can take no more, and return all records, as far as they can be read."""
        ...


class Memory:
    """Records in memory.

    >>> memory = Memory()
    >>> memory.write([Record(1, 0.0, 0.0, 0.0, "spectrum", "layer1", "stable_rank", 1.5)])
    >>> memory.table().value.tolist()
    [1.5]
    """

    def __init__(self) -> None:
        self.steps_before, self.status = 0, "finished"
        self._records: list[Record] = []

    def write(self, records: Sequence[Record]) -> None:
        """Keep them."""
        self._records += records

    def close(self) -> None:
        """Nothing to do."""

    def table(self) -> pd.DataFrame:
        """All records."""
        return pd.DataFrame(self._records, columns=pd.Index(Record._fields))

    def give_up(self) -> list[Record]:
        """All records."""
        return self._records


class Call:
    """Any callable, called with the list of records of each snapshot."""

    def __init__(self, function: Callable[[list[Record]], object]):
        if not callable(function):
            raise InputError(
                expected="a sink: something with write and close, or a callable",
                found=type(function).__name__,
                remedy="pass e.g. eq.sinks.TensorBoard('runs/exp1')",
            )
        self.function = function

    def write(self, records: Sequence[Record]) -> None:
        """Call it."""
        self.function(list(records))

    def close(self) -> None:
        """Nothing to do."""


def metric_name(record: Record) -> str:
    """A name that every logger takes: `observer_quantity/place`, in letters, digits and `_./- `.

    >>> metric_name(Record(1, 0.0, 0.0, 0.0, "drift", "0.weight → 2.weight", "relative_drift", 0.0))
    'drift_relative_drift/0.weight_to_2.weight'
    """
    place = re.sub(r"[^A-Za-z0-9_.-]+", "_", record.place.replace(" → ", "_to_")).strip("_")
    return f"{record.observer}_{record.quantity}/{place or 'all'}"
