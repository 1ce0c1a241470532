"""Torch's modes: the library computes under their defaults, and calls a model under its caller's; threads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch

_CPU = torch.device("cpu")
_callers_device = ContextVar[torch.device | None]("_callers_device", default=None)


@contextmanager
def default_modes(*, autocast: bool = False) -> Iterator[None]:
    """Compute with gradients, outside inference mode, with the CPU as the default device, and without autocast.

    Args:
        autocast: whether autocast stays as it is.

    >>> with torch.inference_mode(), default_modes():
    ...     torch.ones(1, requires_grad=True).sum().requires_grad
    True
    """
    device, on = torch.get_default_device(), () if autocast else ("cuda", "cpu", "xpu", "mps")
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in on:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if device != _CPU:  # a device as a context slows every operation
            token = _callers_device.set(device)
            stack.callback(_callers_device.reset, token)
            stack.enter_context(_CPU)
        yield


@contextmanager
def callers_device() -> Iterator[None]:
    """Create tensors on the default device of the library's caller: a model may rely on it.

    Not on `meta`, whose models are read on the CPU.

    >>> with torch.device("cuda:0"), default_modes():
    ...     own = torch.get_default_device()
    ...     with callers_device():
    ...         own.type, torch.get_default_device().type
    ('cpu', 'cuda')
    """
    device = _callers_device.get()
    with ExitStack() as stack:
        if device is not None and device.type != "meta":
            stack.enter_context(device)
        yield


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
