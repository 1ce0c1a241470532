"""Descriptions of the tensors in a pickle of `torch.save`: what its functions would rebuild, and nothing rebuilt."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch

_DIMENSIONS = 64


class Refused(Exception):
    """A pickle asks for more than describing tensors takes."""


class Damaged(Exception):
    """Sizes in a pickle that contradict each other."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file, `size` of them, under `key`; `start` where a view of it begins.

    `unit` is the length in bytes of the numbers by which the file counts it.
    """

    key: str
    dtype: torch.dtype
    size: int
    start: int = 0
    unit: int = 1


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor in a file: its storage, shape and strides, or the `reason` why its numbers are not read.

    `scale` and `zero` are those of a tensor of `torch.ao`, numbers or, along `axis`, tensors.
    """

    shape: tuple[int, ...]
    dtype: str
    storage: Storage | None = None
    strides: tuple[int, ...] = ()
    offset: int = 0
    scale: "int | float | PickledTensor | None" = None
    zero: "int | float | PickledTensor" = 0
    axis: int | None = None
    reason: str | None = None

    @property
    def count(self) -> int:
        """The number of its entries."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class PickledGlobal:
    """A global that a pickle names; it is never imported."""

    name: str


_KINDS = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Untyped": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}
STORAGES = {
    f"{module}.{kind}Storage": dtype
    for kind, dtype in _KINDS.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}
DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
TENSORS = frozenset({"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"})
SCHEMES = frozenset(f"torch.per_{name}" for name in ("tensor_affine", "tensor_symmetric", "channel_affine"))


def storage_of(identity: object) -> Storage:
    """The storage of a persistent id of `torch.save`: ("storage", type, key, device, size[, view])."""
    if not (isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] in ("storage", b"storage")):
        raise Refused("refers to something outside that is no storage")
    _, dtype, key, _, size, *view = identity
    key = key.decode() if isinstance(key, bytes) else str(key) if type(key) is int else key
    if not (isinstance(dtype, torch.dtype) and isinstance(key, str) and _natural(size)):
        raise Refused("refers to a storage that is none")
    if view and view[0] is not None:
        _, start, count = view[0]
        if not (_natural(start) and _natural(count) and start + count <= size):
            raise Damaged("a view beyond its storage")
        return Storage(key, dtype, size, start, dtype.itemsize)
    return Storage(key, dtype, size, unit=dtype.itemsize)


def shown(value: object) -> str:
    """Numbers, text and flat tuples as a message shows them: the text of nested tuples may be of any length."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value[:8]))}{', …' if len(value) > 8 else ''})"
    return _shown(value)


def _shown(value: object) -> str:
    return repr(value)[:40] if type(value) in (int, float, bool, type(None)) else type(value).__name__


def _natural(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 63


def _naturals(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(map(_natural, values))


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensor(storage: object, offset: object, shape: object, strides: object, dtype: object = None) -> PickledTensor:
    """Checked: sizes that are natural numbers, and no number beyond the storage."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise Damaged("a tensor of no storage, or of no shape")
    sound = len(shape) == len(strides) and len(shape) <= _DIMENSIONS
    if not (sound and _natural(offset) and _naturals(shape) and _naturals(strides)):
        raise Damaged(f"a tensor of the shape {shown(shape)} with strides {shown(strides)}")
    if isinstance(dtype, torch.dtype):
        room = storage.size * storage.dtype.itemsize // dtype.itemsize
        storage = replace(storage, dtype=dtype, size=room)
    held = PickledTensor(shape, _name_of(storage.dtype), storage, strides, offset + storage.start)
    last = held.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if held.count and last >= storage.size:
        raise Damaged(f"a tensor of the shape {shape} that ends beyond its storage of {storage.size} numbers")
    if held.count > storage.size:
        return replace(held, reason="its shape says more numbers than it stores")
    return held


def _unread(shape: object, dtype: object, reason: str) -> PickledTensor:
    sound = shape if _naturals(shape) and len(shape) <= _DIMENSIONS else ()
    name = dtype if isinstance(dtype, str) else _name_of(dtype) if isinstance(dtype, torch.dtype) else ""
    return PickledTensor(sound, name, reason=reason)


def _quantised(
    storage: object, offset: object, shape: object, strides: object, how: object, *_: object
) -> PickledTensor:
    tensor = _tensor(storage, offset, shape, strides)
    quantiser = how if isinstance(how, tuple) else ()
    if tensor.dtype in ("quint4x2", "quint2x4"):
        return _codes(tensor)
    match quantiser:
        case (PickledGlobal(name), int() | float() as scale, int() | float() as zero, *_) if "per_tensor" in name:
            return replace(tensor, scale=scale, zero=zero)
        case (_, PickledTensor() as scale, PickledTensor() as zero, axis) if _natural(axis):
            if axis >= len(tensor.shape) or scale.shape != (tensor.shape[axis],) or zero.shape != scale.shape:
                raise Damaged("scales that do not fit their tensor")
            return replace(tensor, scale=scale, zero=zero, axis=axis)
    return _codes(tensor)


def _codes(tensor: PickledTensor) -> PickledTensor:
    reason = tensor.reason or f"it is quantised ({tensor.dtype}): its numbers are codes"
    return replace(tensor, reason=reason)


def _sparse(layout: object, data: object) -> PickledTensor:
    place = 2 if layout == "torch.sparse_coo" else 3
    values = data[place - 1] if isinstance(data, tuple) and len(data) > place else None
    shape = data[place] if isinstance(data, tuple) and values is not None else ()
    name = layout.removeprefix("torch.")[:40] if isinstance(layout, str) else "unknown"
    return _unread(shape, values.dtype if isinstance(values, PickledTensor) else "", f"its layout is {name}, not dense")


def _of_class(function: object, kind: object, arguments: object, *_: object) -> PickledTensor:
    """A subclass of tensors."""
    if not (isinstance(function, PickledGlobal) and function.name in REBUILDS and isinstance(arguments, tuple)):
        raise Refused("rebuilds a tensor by what is not for that")
    held = REBUILDS[function.name](*arguments)
    if isinstance(kind, PickledGlobal) and kind.name in TENSORS:
        return held
    what = f"a {kind.name[:80]}" if isinstance(kind, PickledGlobal) else "an object of another class"
    return replace(held, reason=f"it is {what}, not a plain tensor")


def _same(data: object, *_: object) -> PickledTensor:
    if not isinstance(data, PickledTensor):
        raise Refused("makes a parameter of what is no tensor")
    return data


def _moved(data: object, dtype: object, *_: object) -> PickledTensor:
    held = _same(data)
    if not isinstance(dtype, torch.dtype):
        raise Damaged("a tensor to be converted to what is no dtype")
    name = _name_of(dtype)
    return held if held.dtype == name else replace(held, reason=f"it is to be converted to {name}")


def _array(*_: object) -> PickledTensor:
    return PickledTensor((), "", reason="it is a numpy array in the pickle: save it as a tensor")


REBUILDS: Mapping[str, Callable[..., PickledTensor]] = {
    "torch._utils._rebuild_tensor": lambda storage, offset, shape, strides, *_: _tensor(
        storage, offset, shape, strides
    ),
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: _tensor(
        storage, offset, shape, strides
    ),
    "torch._utils._rebuild_tensor_v3": lambda storage, offset, shape, strides, _grad, _hooks, dtype, *_: _tensor(
        storage, offset, shape, strides, dtype
    ),
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": lambda dtype, shape, *_: _unread(
        shape, dtype, "it has no numbers: it is on the meta device"
    ),
    "torch._utils._rebuild_nested_tensor": lambda *_: _unread((), "", "it is a nested tensor, of several shapes"),
    "torch._utils._rebuild_wrapper_subclass": lambda _, dtype, shape, *__: _unread(
        shape, dtype, "it is a wrapper without numbers of its own"
    ),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _moved,
    "torch._utils._rebuild_device_tensor_from_numpy": _array,
    "torch.nn.parameter.Parameter": _same,
    "torch.nn.parameter.Buffer": _same,
    "torch._tensor._rebuild_from_type_v2": _of_class,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
}
