"""Memory in float64 that a thread uses again and again: fresh one would scatter over the heap, and stay there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor


class _FreeBuffers(threading.local):
    """The buffers of this thread that are not in use."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []


_FREE = _FreeBuffers()


@contextmanager
def workspace(count: int) -> Iterator[Float[Tensor, " count"]]:
    """Uninitialised memory for `count` numbers; the largest buffer that is too small for it is freed.

    >>> with workspace(6) as flat, workspace(2) as other:
    ...     len(flat), len(other)
    (6, 2)
    """
    buffers = _FREE.buffers
    fitting = [place for place, buffer in enumerate(buffers) if len(buffer) >= count]
    if fitting:
        buffer = buffers.pop(min(fitting, key=lambda place: len(buffers[place])))
    else:
        if buffers:
            buffers.pop(max(range(len(buffers)), key=lambda place: len(buffers[place])))
        buffer = torch.empty(count, dtype=torch.float64)
    try:
        yield buffer[:count]
    finally:
        buffers.append(buffer)


def release_workspace() -> None:
    """Free the buffers of this thread."""
    _FREE.buffers.clear()
