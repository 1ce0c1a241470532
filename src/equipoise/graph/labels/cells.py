"""A growing set of coordinates, partitioned into cells that only ever split."""

import numpy as np
from jaxtyping import Bool, Int64, Shaped
from numpy import ndarray

from equipoise.graph.labels.ragged import distinct, numbered, places


class GrowingArray:
    """An array to which values are appended in amortised constant time."""

    def __init__(self, values: Shaped[ndarray, " n"]):
        self._store = values
        self._length = len(values)

    def __len__(self) -> int:
        return self._length

    @property
    def values(self) -> ndarray:
        """All values, as a view that can be written to; the next `extend` may detach it."""
        return self._store[: self._length]

    def extend(self, values: Shaped[ndarray, " n"]) -> None:
        """Append values."""
        end = self._length + len(values)
        if end > len(self._store):
            store = np.empty(2 * end, self._store.dtype)  # pages that are not written to take no memory
            store[: self._length] = self.values
            self._store = store
        self._store[self._length : end] = values
        self._length = end


class Cells:
    """The cell of every coordinate. Coordinates that were added as one cell are a *family*: cells never merge.

    >>> cells = Cells()
    >>> cells.add(4).tolist(), cells.of(np.arange(5)).tolist()
    ([1, 2, 3, 4], [0, 1, 1, 1, 1])
    >>> cells.split(np.array([1, 2, 3, 4]), np.array([7, 9, 7, 9]))
    >>> cells.of(np.arange(5)).tolist(), cells.size(np.arange(5)).tolist()
    ([0, 2, 3, 2, 3], [1, 2, 2, 2, 2])
    """

    def __init__(self):
        """One coordinate, 0, in a cell of its own."""
        self._cell = GrowingArray(np.zeros(1, np.int64))
        self._size = GrowingArray(np.ones(1, np.int64))  # by cell, as are the bounds of the family that it is part of
        self._first = GrowingArray(np.zeros(1, np.int64))
        self._last = GrowingArray(np.zeros(1, np.int64))

    def __len__(self) -> int:
        return len(self._cell)

    @property
    def numbers(self) -> int:
        """More than the number of any cell."""
        return len(self._size)

    @property
    def occupied(self) -> int:
        """How many cells hold a coordinate."""
        return int(np.count_nonzero(self._size.values))

    def add(self, count: int) -> Int64[ndarray, " count"]:
        """New coordinates, all in one new cell."""
        added = np.arange(len(self), len(self) + count)
        self._cell.extend(np.full(count, self.numbers))
        self._size.extend(np.array([count]))
        self._first.extend(np.array([len(self) - count]))
        self._last.extend(np.array([len(self) - 1]))
        return added

    def add_single(self, count: int) -> Int64[ndarray, " count"]:
        """New coordinates, each in a new cell of its own."""
        added = np.arange(len(self), len(self) + count)
        self._cell.extend(self.numbers + np.arange(count))
        self._size.extend(np.ones(count, np.int64))
        self._first.extend(added)
        self._last.extend(added)
        return added

    def of(self, coordinates: Int64[ndarray, "*shape"]) -> Int64[ndarray, "*shape"]:
        """The cell of each coordinate."""
        return np.asarray(self._cell.values[coordinates])

    def size(self, coordinates: Int64[ndarray, "*shape"]) -> Int64[ndarray, "*shape"]:
        """The number of coordinates in the cell of each coordinate."""
        return np.asarray(self._size.values[self.of(coordinates)])

    def related(self, left: Int64[ndarray, "*shape"], right: Int64[ndarray, "*shape"]) -> Bool[ndarray, "*shape"]:
        """Whether two coordinates are of one family, pair by pair."""
        return np.asarray(self._first.values[self.of(left)] == self._first.values[self.of(right)])

    def members(self, cells: Int64[ndarray, " cells"]) -> Int64[ndarray, " members"]:
        """All coordinates of some cells, in ascending order."""
        first, which = np.unique(self._first.values[cells], return_index=True)
        candidates = places(self._last.values[cells[which]] - first + 1, first)
        return candidates[np.isin(self.of(candidates), cells)]

    def mixed(self) -> Int64[ndarray, " members"]:
        """The coordinates that share their cell, in ascending order."""
        return np.flatnonzero(self._size.values[self._cell.values] > 1)

    def isolate(self, coordinates: Int64[ndarray, "*shape"]) -> None:
        """Give each of these coordinates a cell of its own."""
        members = distinct(coordinates)
        members = members[self.size(members) > 1]
        self._move(members, np.arange(len(members)), np.arange(len(members)))

    def split(self, members: Int64[ndarray, " members"], keys: Int64[ndarray, " members"]) -> None:
        """Split cells, all of whose members are given, so that only members with equal keys stay together."""
        self._move(members, *numbered(self.of(members) * (int(keys.max(initial=0)) + 1) + keys))

    def _move(
        self,
        members: Int64[ndarray, " members"],
        groups: Int64[ndarray, " members"],
        examples: Int64[ndarray, " groups"],
    ) -> None:
        """Put members into new cells, one a group; `examples` has the place of one member of each group."""
        left, within = self.of(members), self.of(members[examples])
        np.subtract.at(self._size.values, left, 1)
        self._cell.values[members] = self.numbers + groups
        self._size.extend(np.bincount(groups, minlength=len(examples)))
        self._first.extend(self._first.values[within])
        self._last.extend(self._last.values[within])
