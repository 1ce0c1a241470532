"""A sink with a thread of its own, so that none can block the training."""

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from equipoise.arguments import checked
from equipoise.sinks.lines import Lines
from equipoise.sinks.protocol import Call, Sink
from equipoise.store import Record

_BEHIND = 1000  # snapshots that may wait to be written
_GRACE = 10.0  # seconds at the end to write those that wait


class Background:
    """The same sink, written to by a thread; its exceptions are raised at the next `write`, or at `close`.

    `write` raises `TimeoutError` where the sink is hopelessly behind, and `close` where it has not finished after
    `grace` seconds; records that it has not written by then are lost.

    >>> from equipoise.sinks.protocol import Memory
    >>> memory = Memory()
    >>> sink = Background(memory)
    >>> sink.write([Record(1, 0.0, 0.0, 0.0, "spectrum", "layer1", "stable_rank", 1.5)])
    >>> sink.close()
    >>> len(memory.table())
    1
    """

    def __init__(self, sink: Sink, grace: float | None = None):
        self.sink, self.grace = sink, _GRACE if grace is None else grace
        self._queue: queue.Queue[list[Record] | None] = queue.Queue(_BEHIND)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"equipoise {type(sink).__name__}", daemon=True)
        self._thread.start()

    def write(self, records: Sequence[Record]) -> None:
        """Have them written."""
        if self._error is not None:  # nothing is written any more: let the thread close the sink, and end
            with suppress(queue.Full):
                self._queue.put_nowait(None)
        self._check()
        try:
            self._queue.put_nowait(list(records))
        except queue.Full:
            raise TimeoutError(f"it is {_BEHIND} snapshots behind, and gets no more") from None

    def close(self) -> None:
        """Wait until all is written."""
        try:
            self._queue.put(None, timeout=self.grace)
        except queue.Full:
            pass
        else:
            self._thread.join(self.grace)
        if self._thread.is_alive():
            raise TimeoutError(f"it has not finished within {self.grace:g} seconds; what it has not written is lost")
        self._check()

    def _check(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        failed = False
        while (records := self._queue.get()) is not None:
            failed = failed or not self._did(lambda records=records: self.sink.write(records))
        self._did(self.sink.close)

    def _did(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except BaseException as error:  # that the thread is asked to exit, too: nothing would be written any more
            plain = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
            self._error = self._error or plain
            return False
        return True


@checked
def in_background(sink: Sink | Callable[[list[Record]], object]) -> Sink:
    """A sink with a thread of its own, or a callable as a sink; of `print`, one that prints a line a snapshot.

    Raises:
        InputError: where it is neither.

    >>> sink_name(in_background(print))
    'Lines'
    """
    if sink is print:
        return Lines()
    return Background(sink) if isinstance(sink, Sink) else Call(sink)


def sink_name(sink: Sink) -> str:
    """The name of a sink's class, in the background or not."""
    return type(sink.sink if isinstance(sink, Background) else sink).__name__
