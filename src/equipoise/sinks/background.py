"""A sink behind a thread of its own: what it waits for, the training does not."""

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress

from equipoise.sinks.protocol import Sink
from equipoise.store import Record

_BEHIND = 1000  # looks that may wait to be written
_GRACE = 10.0  # seconds at the end for what is still to be written


class Background:
    """The same sink, written to by a thread; what it raises is raised at the next `write`, or at `close`.

    Raises `TimeoutError` from `write` where it is hopelessly behind, and from `close` where it has not finished after
    `grace` seconds; what it had not written by then is lost.

    >>> from equipoise.sinks.protocol import Memory
    >>> memory = Memory()
    >>> sink = Background(memory)
    >>> sink.write([Record(1, 0.0, 0.0, 0.0, "spectrum", "layer1", "stable_rank", 1.5)])
    >>> sink.close()
    >>> len(memory.table())
    1
    """

    def __init__(self, sink: Sink, grace: float = _GRACE):
        self.sink, self.grace = sink, grace
        self._queue: queue.Queue[list[Record] | None] = queue.Queue(_BEHIND)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"equipoise {type(sink).__name__}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """That of the sink."""
        return type(self.sink).__name__

    def write(self, records: Sequence[Record]) -> None:
        """Have them written."""
        if self._error is not None:  # nothing is written any more: let the thread close the sink, and end
            with suppress(queue.Full):
                self._queue.put_nowait(None)
        self._check()
        try:
            self._queue.put_nowait(list(records))
        except queue.Full:
            raise TimeoutError(f"it is {_BEHIND} looks behind, and gets no more") from None

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

    def _did(self, act: object) -> bool:
        assert callable(act)
        try:
            act()
        except BaseException as error:  # that the thread is asked to exit, too: nothing would be written any more
            plain = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
            self._error = self._error or plain
            return False
        return True
