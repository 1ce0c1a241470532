"""Products and eigenvalues in float64 in their own place, while other threads go on.

numpy's `eigvalsh` lets other threads go on and copies the matrix; scipy's `eigh` can overwrite it and holds all others
up; products by torch keep megabytes for each thread. SciPy publishes the addresses of the BLAS and LAPACK routines for
Cython, and ctypes lets other threads go on while it calls one. For 768 columns that takes a fifth to a quarter less
time than torch, and no copy of the Gram matrix: `benchmarks/analyze.py --only products` prints the times.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from importlib import import_module

import numpy as np
from jaxtyping import Float
from torch import Tensor

_BLOCK = 64  # columns that LAPACK works on at a time, at most
_LIBRARIES = {"dsyrk": "blas", "dgemm": "blas", "dsyevd": "lapack"}


@cache
def _routine(name: str) -> Callable[..., None]:
    capsule = import_module(f"scipy.linalg.cython_{_LIBRARIES[name]}").__pyx_capi__[name]
    python = ctypes.pythonapi
    python.PyCapsule_GetName.argtypes, python.PyCapsule_GetName.restype = [ctypes.py_object], ctypes.c_char_p
    python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    return ctypes.CFUNCTYPE(None)(python.PyCapsule_GetPointer(capsule, python.PyCapsule_GetName(capsule)))


def _call(name: str, *arguments: bytes | int | float | Tensor | np.ndarray) -> None:
    """Everything by address, as Fortran has it; references keep numbers alive until the call is over."""
    _routine(name)(*map(_reference, arguments))


def _reference(argument: bytes | int | float | Tensor | np.ndarray) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)
    return ctypes.byref(ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int(argument))


def add_gram(lines: Float[Tensor, "count side"], gram: Float[Tensor, "side side"]) -> None:
    """`G += Xᵀ X`, of the lower triangle; `lines` or their transpose are contiguous, and both on the CPU in float64."""
    (count, side), by_line = lines.shape, lines.is_contiguous()
    # Fortran goes by columns: what is the lower triangle here is its upper one
    _call(
        "dsyrk", b"U", b"N" if by_line else b"T", side, count, 1.0, lines, side if by_line else count, 1.0, gram, side
    )


def put_products(
    left: Float[Tensor, "rows long"], right: Float[Tensor, "columns long"], block: Float[Tensor, "rows columns"]
) -> None:
    """`B = X Yᵀ` into a part of a larger matrix; each factor or its transpose is contiguous."""
    (rows, length), columns = left.shape, len(right)
    first, its = (b"T", length) if right.is_contiguous() else (b"N", columns)
    second, others = (b"N", length) if left.is_contiguous() else (b"T", rows)
    sizes = columns, rows, length
    _call("dgemm", first, second, *sizes, 1.0, right, its, left, others, 0.0, block, block.stride(0))


def eigenvalues_in_place(matrix: Float[Tensor, "side side"]) -> np.ndarray:
    """All eigenvalues, ascending, of the symmetric matrix whose lower triangle is given; it is overwritten.

    Raises:
        LinAlgError: where the iteration does not converge.

    >>> import torch
    >>> eigenvalues_in_place(torch.tensor([[2.0, 0.0], [1.0, 2.0]], dtype=torch.float64)).round(12)
    array([1., 3.])
    """
    side = len(matrix)
    values, work, whole = np.empty(side), np.empty((_BLOCK + 2) * side + 1), np.empty(1, np.int32)
    failed = np.zeros(1, np.int32)
    _call("dsyevd", b"N", b"U", side, matrix, side, values, work, len(work), whole, 1, failed)
    if failed[0]:
        raise np.linalg.LinAlgError(f"LAPACK's dsyevd says {failed[0]}")
    return values
