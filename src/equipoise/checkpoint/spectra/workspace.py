"""Memory in float64 that a thread uses again and again: fresh one would scatter over the heap, and stay there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor


class _Spare(threading.local):
    """What this thread has, and nobody uses now."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []


_SPARE = _Spare()


@contextmanager
def workspace(count: int) -> Iterator[Float[Tensor, " count"]]:
    """Memory for so many numbers, whatever was in it before. What has become too small for its purpose goes.

    >>> with workspace(6) as flat, workspace(2) as other:
    ...     len(flat), len(other)
    (6, 2)
    """
    buffers = _SPARE.buffers
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
    """All that this thread has spare."""
    _SPARE.buffers.clear()
