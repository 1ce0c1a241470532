"""How many threads torch works on: one where the work is so small that threads would wait for each other more."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(where: bool = True) -> Iterator[None]:
    """Run torch on this thread alone, `where` that is wanted.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if where else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
