"""A pickle of tensors, read into plain containers and descriptions of tensors: nothing in it is imported or called.

The opcodes are followed one by one (the format: `pickletools` of the standard library). A global is looked up in a
fixed table and stands for itself; what `torch.save` calls to rebuild a tensor gives a `Held`, which says where the
numbers lie. Everything else is refused by name. So the pickle that is checked is the one that is read, and neither
time nor memory exceeds what the length of the pickle accounts for.
"""

import math
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

LIMIT = 256 << 20  # bytes of a pickle: a million tensors need half of it
_PARTS = 10_000_000  # containers, marks and memo entries in one
_DIMENSIONS = 64


class Refused(Exception):
    """What a pickle does that describing tensors does not need."""


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
class Held:
    """A tensor in a file: its storage, shape and strides, or the `reason` why its numbers are not read.

    `scale` and `zero` are those of a tensor of `torch.ao`, numbers or, along `axis`, tensors.
    """

    shape: tuple[int, ...]
    dtype: str
    storage: Storage | None = None
    strides: tuple[int, ...] = ()
    offset: int = 0
    scale: "float | Held | None" = None
    zero: "int | Held" = 0
    axis: int | None = None
    reason: str | None = None

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Global:
    """Something that a pickle names, and that is not looked up."""

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
_STORAGES = {
    f"{module}.{kind}Storage": dtype
    for kind, dtype in _KINDS.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_TENSORS = frozenset({"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"})
_SCHEMES = frozenset(f"torch.per_{name}" for name in ("tensor_affine", "tensor_symmetric", "channel_affine"))


def unpickled(file: Any, units: dict[str, int] | None = None) -> Any:
    """What the pickle that starts here describes; `file` is a `BytesIO` or a memory map, read up to its end.

    `units` is filled with the `unit` of each storage that the pickle refers to.

    Raises `Refused` for anything that is not tensors, numbers, strings and containers, `Damaged` for a tensor that ends
    beyond its storage, and whatever Python raises for bytes that are no pickle.

    >>> import io, pickle
    >>> unpickled(io.BytesIO(pickle.dumps({"epoch": 3, "w": [1.5, None]})))
    {'epoch': 3, 'w': [1.5, None]}
    """
    return _Machine(file, {} if units is None else units).run()


class _Machine:
    """The stack of a pickle, its memo, and the opcodes' effect on them."""

    def __init__(self, file: Any, units: dict[str, int]):
        self._units = units
        self._read, self._readline = file.read, file.readline
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._parts = 0

    def run(self) -> Any:
        while True:
            code = self._read(1)
            if not code:
                raise EOFError("the pickle has no end")
            if code == b".":
                return self._stack.pop()
            effect = _EFFECTS.get(code)
            if effect is None:
                raise Refused(f"has the opcode {code!r}, which torch.save does not write")
            effect(self)

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def take(self, count: int) -> bytes:
        """Exactly so many."""
        found = self._read(count)
        if len(found) < count:
            raise EOFError("the pickle is cut short")
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def sized(self, form: str) -> bytes:
        """Bytes after their length."""
        return self.take(self.number(form))

    def line(self) -> str:
        return self._readline()[:-1].decode()

    def count(self, parts: int = 1) -> None:
        self._parts += parts
        if self._parts > _PARTS:
            raise Refused(f"has more than {_PARTS:,} parts")

    # ---- the stack ----

    def mark(self) -> None:
        self.count()
        self._marked.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[Any]:
        found, self._stack = self._stack, self._marked.pop()
        return found

    def several(self, count: int) -> None:
        """A tuple of the last few."""
        self.count()
        found = tuple(self._stack[-count:])
        if len(found) < count:
            raise IndexError("the stack is empty")
        self._stack[-count:] = [found]

    def repeat(self) -> None:
        self.push(self._stack[-1])

    def empty(self, kind: type) -> None:
        self.count()
        self.push(kind())

    def keep(self, place: int | None = None) -> None:
        self.count()
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def recall(self, place: int) -> None:
        self.push(self._memo[place])

    # ---- containers ----

    def extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise Refused("fills what is no list")
        self._stack[-1].extend(items)

    def fill(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not dict or len(items) % 2:
            raise Refused("fills what is no dict")
        _fill(self._stack[-1], zip(items[::2], items[1::2], strict=True))

    # ---- globals and calls ----

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("names something by what is no text")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.push(_known(f"{module}.{name}"))

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not (isinstance(function, _Global) and isinstance(arguments, tuple) and function.name in _CALLS):
            raise Refused(f"calls {function.name if isinstance(function, _Global) else 'what it built itself'}")
        self.push(_called(function, arguments, self.count))

    def new(self) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        plain = isinstance(kind, _Global) and isinstance(arguments, tuple)
        if not (plain and kind.name in (*_TENSORS, "collections.OrderedDict") and kind.name in _CALLS):
            raise Refused("makes an object of a class")
        self.push(_called(kind, arguments, self.count))

    def build(self) -> None:
        """State of dicts and tensors (the metadata of a state dict, say): it holds no weights."""
        state = self._stack.pop()
        if not isinstance(self._stack[-1], dict | Held) or not isinstance(state, dict | tuple | None):
            raise Refused("sets the state of what it built")

    def persistent(self) -> None:
        storage = _storage(self._stack.pop())
        if self._units.setdefault(storage.key, storage.unit) != storage.unit:
            raise Damaged(f"the storage {storage.key[:80]!r} with two types")
        self.push(storage)


def _known(name: str) -> Any:
    """What a global stands for; `Refused` for any that `torch.save` does not need for tensors."""
    if name in _STORAGES:
        return _STORAGES[name]
    if name in _DTYPES:
        return _DTYPES[name]
    if name in _CALLS or name in _TENSORS or name in _SCHEMES or name in _CLASSES:
        return _Global(name)
    raise Refused(f"asks for {name}")


class OddKey:
    """In place of a key that is no text or number: the hash of nested tuples may take forever."""


def _fill(target: dict[Any, Any], items: Any) -> None:
    for key, value in items:
        plain = type(key) in (str, bool, float, type(None)) or (type(key) is int and abs(key) < 1 << 64)
        target[key if plain else OddKey()] = value


def _storage(identity: Any) -> Storage:
    """What `torch.save` calls a persistent id: ("storage", its type, its key, where it was, its size[, a view])."""
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


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None) -> Held:
    """Checked: sizes that are natural numbers, and no number beyond the storage."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise Damaged("a tensor of no storage, or of no shape")
    if len(shape) != len(strides) or len(shape) > _DIMENSIONS or not all(map(_natural, (offset, *shape, *strides))):
        raise Damaged(f"a tensor with the sizes {str(shape)[:80]} and strides {str(strides)[:80]}")
    if isinstance(dtype, torch.dtype):
        room = storage.size * storage.dtype.itemsize // dtype.itemsize
        storage = replace(storage, dtype=dtype, size=room)
    held = Held(shape, _name_of(storage.dtype), storage, strides, offset + storage.start)
    last = held.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if held.count and last >= storage.size:
        raise Damaged(f"a tensor of the shape {shape} that ends beyond its storage of {storage.size} numbers")
    if held.count > storage.size:
        return replace(held, reason="its shape says more numbers than it stores")
    return held


def _unread(shape: Any, dtype: Any, reason: str) -> Held:
    sound = isinstance(shape, tuple) and len(shape) <= _DIMENSIONS and all(map(_natural, shape))
    name = dtype if isinstance(dtype, str) else _name_of(dtype) if isinstance(dtype, torch.dtype) else ""
    return Held(shape if sound else (), name, reason=reason)


def _quantised(storage: Any, offset: Any, shape: Any, strides: Any, how: Any, *_: Any) -> Held:
    held = _tensor(storage, offset, shape, strides)
    scheme = how[0].name.removeprefix("torch.") if how and isinstance(how[0], _Global) else ""
    scale, zero = how[1:3] if len(how) > 2 else (None, None)
    axis = None  # one scale for all
    if _number(scale) and _number(zero) and scheme.startswith("per_tensor"):
        pass
    elif isinstance(scale, Held) and isinstance(zero, Held) and len(how) == 4 and _natural(how[3]):
        axis = how[3]
        if axis >= len(shape) or scale.shape != (shape[axis],) or zero.shape != scale.shape:
            raise Damaged("scales that do not fit their tensor")
    else:
        scale = None
    if scale is None or held.dtype in ("quint4x2", "quint2x4"):
        return replace(held, reason=held.reason or f"it is quantised ({held.dtype}): its numbers are codes")
    return replace(held, scale=scale, zero=zero, axis=axis)


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _sparse(layout: Any, data: Any) -> Held:
    place = 2 if layout == "torch.sparse_coo" else 3
    values = data[place - 1] if isinstance(data, tuple) and len(data) > place else None
    shape = data[place] if values is not None else ()
    name = str(layout).removeprefix("torch.")[:40]
    return _unread(shape, values.dtype if isinstance(values, Held) else "", f"its layout is {name}, not dense")


def _of_class(function: Any, kind: Any, arguments: Any, *_: Any) -> Held:
    """A subclass of tensors."""
    if not (isinstance(function, _Global) and function.name in _REBUILDS and isinstance(arguments, tuple)):
        raise Refused("rebuilds a tensor by what is not for that")
    held = _REBUILDS[function.name](*arguments)
    if isinstance(kind, _Global) and kind.name in _TENSORS:
        return held
    return replace(held, reason=f"it is a {str(getattr(kind, 'name', kind))[:80]}, not a plain tensor")


def _same(data: Any, *_: Any) -> Any:
    if not isinstance(data, Held):
        raise Refused("makes a parameter of what is no tensor")
    return data


def _moved(data: Any, dtype: Any, *_: Any) -> Any:
    held = _same(data)
    return held if held.dtype == _name_of(dtype) else replace(held, reason=f"it is to be converted to {dtype}")


def _array(*_: Any) -> Held:
    return Held((), "", reason="it is a numpy array in the pickle: save it as a tensor")


_REBUILDS: Mapping[str, Callable[..., Any]] = {
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


def _text(value: Any = "", encoding: Any = "latin1") -> Any:
    """Bytes, as Python 3 writes them for Python 2: a text and its encoding. No copy is made."""
    if not isinstance(value, str | bytes) or encoding not in ("latin1", "latin-1"):
        raise Refused("makes bytes of what is no text")
    return value


def _bytes(encoding: Any) -> Callable[..., Any]:
    def made(value: Any = b"", *given: Any) -> Any:
        if encoding and not given:
            raise Refused("encodes a text by an encoding of its own")
        return _text(value, *given)

    return made


_PLAIN: Mapping[str, Callable[..., Any]] = {
    "torch.Size": lambda shape=(): shape if isinstance(shape, tuple) else tuple(shape),
    "torch.device": lambda *_: None,
    "torch.serialization._get_layout": lambda name: name,
    "builtins.complex": lambda *_: None,
    "builtins.bytearray": _bytes(False),
    "builtins.bytes": _bytes(False),
    "_codecs.encode": _bytes(True),
    "numpy.dtype": lambda *_: {},  # its state is set, and not used
    "numpy.core.multiarray.scalar": lambda *_: None,
    "numpy._core.multiarray.scalar": lambda *_: None,
}
_FILLED = ("collections.OrderedDict", "collections.Counter", "builtins.set")
_CALLS = frozenset({*_REBUILDS, *_PLAIN, *_FILLED})
_CLASSES = frozenset({"numpy.ndarray"})


def _called(function: _Global, arguments: tuple[Any, ...], count: Callable[[int], None]) -> Any:
    """The description of what a call would give."""
    if function.name not in _FILLED:
        return (_REBUILDS.get(function.name) or _PLAIN[function.name])(*arguments)
    content = arguments[0] if arguments else []
    if len(arguments) > 1 or not isinstance(content, list | dict):
        raise Refused(f"calls {function.name} with what is no list")
    count(len(content) + 1)
    if function.name == "builtins.set":
        return list(content)
    made: dict[Any, Any] = {}
    if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in content) and isinstance(content, list):
        raise Refused(f"calls {function.name} with what are no pairs")
    _fill(made, content.items() if isinstance(content, dict) else content)
    return made


def _integer(machine: _Machine, data: bytes) -> None:
    machine.push(int.from_bytes(data, "little", signed=True))


def _unicode(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.sized(form).decode("utf-8", "surrogatepass"))


def _ascii(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.sized(form).decode("latin-1"))


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(value)


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.fill([key, value])


_EFFECTS: Mapping[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda machine: machine.take(1),  # PROTO
    b"\x95": lambda machine: machine.take(8),  # FRAME
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"K": lambda machine: machine.push(machine.number("<B")),
    b"M": lambda machine: machine.push(machine.number("<H")),
    b"J": lambda machine: machine.push(machine.number("<i")),
    b"G": lambda machine: machine.push(machine.number(">d")),
    b"\x8a": lambda machine: _integer(machine, machine.sized("<B")),  # LONG1
    b"X": _unicode("<I"),
    b"\x8c": _unicode("<B"),
    b"\x8d": _unicode("<Q"),
    b"U": _ascii("<B"),
    b"T": _ascii("<I"),
    b"C": lambda machine: machine.push(machine.sized("<B")),
    b"B": lambda machine: machine.push(machine.sized("<I")),
    b"\x8e": lambda machine: machine.push(machine.sized("<Q")),
    b"\x96": lambda machine: machine.push(machine.sized("<Q")),  # BYTEARRAY8
    b"(": _Machine.mark,
    b")": lambda machine: machine.empty(tuple),
    b"]": lambda machine: machine.empty(list),
    b"}": lambda machine: machine.empty(dict),
    b"\x8f": lambda machine: machine.empty(list),  # a set; nothing is hashed
    b"t": lambda machine: machine.push(tuple(machine.since_mark())),
    b"\x85": lambda machine: machine.several(1),
    b"\x86": lambda machine: machine.several(2),
    b"\x87": lambda machine: machine.several(3),
    b"\x91": lambda machine: machine.push(tuple(machine.since_mark())),  # FROZENSET
    b"a": lambda machine: machine.extend([machine.pop()]),
    b"e": lambda machine: machine.extend(machine.since_mark()),
    b"\x90": lambda machine: machine.extend(machine.since_mark()),  # ADDITEMS
    b"s": _item,
    b"u": lambda machine: machine.fill(machine.since_mark()),
    b"0": lambda machine: machine.pop(),
    b"1": lambda machine: machine.since_mark(),
    b"2": lambda machine: machine.repeat(),
    b"q": lambda machine: machine.keep(machine.number("<B")),
    b"r": lambda machine: machine.keep(machine.number("<I")),
    b"\x94": lambda machine: machine.keep(),
    b"h": lambda machine: machine.recall(machine.number("<B")),
    b"j": lambda machine: machine.recall(machine.number("<I")),
    b"c": lambda machine: machine.name(machine.line(), machine.line()),
    b"\x93": _stack_global,
    b"Q": _Machine.persistent,
    b"R": _Machine.call,
    b"\x81": _Machine.new,
    b"b": _Machine.build,
}
