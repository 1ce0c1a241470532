"""Warnings of others kept silent, by one thread at a time: the filters belong to the whole process."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_LOCK = RLock()


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """No warnings within; filters that two threads save and restore across each other would stay wrong."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
