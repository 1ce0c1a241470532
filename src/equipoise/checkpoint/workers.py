"""Small matrices several at a time, each on one core; large ones in turn, each on all; within a bounded memory."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition

import torch
from threadpoolctl import threadpool_limits

from equipoise.checkpoint.row_plan import RowPlan
from equipoise.checkpoint.spectra.measures import Row, Settings
from equipoise.checkpoint.spectra.workspace import release_workspace
from equipoise.modes import one_thread

_ONE_CORE = 1024  # on the shorter side: up to here threads within one decomposition cost more than they bring
_INLINE = 1 << 12  # numbers: below, handing a matrix to another thread takes longer than measuring it
_SHARE = 2.2  # of the largest tensor in float32: the memory that matrices measured together may take


def rows_of(items: Sequence[RowPlan], settings: Settings) -> Iterator[tuple[int, Row]]:
    """The place and the row of every item: first the small ones, then the large ones.

    While it works on the small ones, products that other threads start get one core each as well.
    """
    largest = 4 * max((item.entry.count for item in items), default=0)
    yield from _together(items, settings, largest)
    try:
        for place, item in enumerate(items):
            if _large(item):
                yield place, item.row(settings)
    finally:
        release_workspace()


def _together(items: Sequence[RowPlan], settings: Settings, largest: int) -> Iterator[tuple[int, Row]]:
    """The small ones: those that are measured at once as they come, then the others by their size."""
    budget = MemoryBudget(_SHARE * largest)
    sizes = {
        place: item.memory(largest) for place, item in enumerate(items) if item.numbers() > _INLINE and not _large(item)
    }

    def one(place: int) -> Row:
        with budget.taking(sizes[place]):
            return items[place].row(settings)

    with _one_core_each() as threads, ThreadPoolExecutor(threads, "equipoise") as pool:
        at_once = (place for place, item in enumerate(items) if item.numbers() <= _INLINE and not _large(item))
        for place in sorted(at_once, key=lambda place: items[place].memory(largest)):
            yield place, items[place].row(settings)
        # one that waits to be alone would hold up its thread: those last
        waiting = {place: pool.submit(one, place) for place in sorted(sizes, key=sizes.__getitem__)}
        try:
            for place, future in waiting.items():
                yield place, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _large(item: RowPlan) -> bool:
    return item.matrix is not None and min(item.matrix.sides) > _ONE_CORE


class MemoryBudget:
    """Memory that jobs take and give back; one that is too large for it waits until it is alone."""

    def __init__(self, capacity: float):
        self._capacity, self._taken, self._changed = capacity, 0, Condition()

    @contextmanager
    def taking(self, size: int) -> Iterator[None]:
        """Wait for the room, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._capacity)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


@contextmanager
def _one_core_each() -> Iterator[int]:
    """Products and decompositions that start within use one thread each; gives the number that they had."""
    threads = torch.get_num_threads()
    with threadpool_limits(1, user_api="blas"), one_thread():
        yield threads
