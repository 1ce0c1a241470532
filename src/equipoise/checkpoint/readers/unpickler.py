"""A pickle of tensors, read into plain containers and descriptions of tensors: nothing in it is imported or called.

The opcodes are followed in their order (the format: `pickletools` of the standard library). A global is looked up in a
fixed table; the functions by which `torch.save` rebuilds tensors give a `PickledTensor`, the place of its numbers.
Everything else is refused by name. So the pickle that is checked is the one that is read, and neither time nor memory
exceeds the share that the length of the pickle accounts for.
"""

import io
import mmap
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Mapping, Sequence

from equipoise.checkpoint.readers.pickled_tensor import (
    DTYPES,
    REBUILDS,
    SCHEMES,
    STORAGES,
    TENSORS,
    Damaged,
    PickledGlobal,
    PickledTensor,
    Refused,
    storage_of,
)

LIMIT = 256 << 20  # bytes of a pickle: a million tensors need half of it
_PARTS = 10_000_000  # containers, marks, memo entries and copies in one, and no more than
_PARTS_A_BYTE = 2  # of them: each is there by a byte of the pickle, and copied once
_FEW = 1000  # of them, of which none is too many


def unpickled(file: io.BytesIO | mmap.mmap, units: dict[str, int] | None = None) -> object:
    """The containers, numbers and `PickledTensor`s that a pickle describes.

    Args:
        file: read from its present place to the end of the pickle.
        units: filled with the `unit` of each storage that the pickle refers to.

    Returns:
        Dicts, lists, tuples, numbers, strings and tensors' descriptions.

    Raises:
        Refused: for anything else in the pickle.
        Damaged: for a tensor that ends beyond its storage.
        Exception: any of Python's, for bytes that are no pickle.

    >>> import io, pickle
    >>> unpickled(io.BytesIO(pickle.dumps({"epoch": 3, "w": [1.5, None]})))
    {'epoch': 3, 'w': [1.5, None]}
    """
    return _Machine(file, {} if units is None else units, _length(file)).run()


def _length(file: io.BytesIO | mmap.mmap) -> int:
    return len(file) if isinstance(file, mmap.mmap) else file.getbuffer().nbytes


class _Machine:
    """The stack of a pickle, its memo, and the opcodes' effect on them."""

    def __init__(self, file: io.BytesIO | mmap.mmap, units: dict[str, int], length: int):
        self._units = units
        self._most = min(_PARTS, _PARTS_A_BYTE * length + _FEW)
        self._read, self._readline = file.read, file.readline
        self._stack: list[object] = []
        self._marked: list[list[object]] = []
        self._memo: dict[int, object] = {}
        self._parts = 0

    def run(self) -> object:
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

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self) -> object:
        return self._stack.pop()

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        found = self._read(count)
        if len(found) < count:
            raise EOFError("the pickle is cut short")
        return found

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def sized(self, form: str) -> bytes:
        """Bytes after their length."""
        return self.take(self.number(form))

    def line(self) -> str:
        return self._readline()[:-1].decode()

    def count(self, parts: int = 1) -> None:
        self._parts += parts
        if self._parts > self._most:
            raise Refused(f"has more than {self._most:,} parts")

    # ---- the stack ----

    def mark(self) -> None:
        self.count()
        self._marked.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[object]:
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

    def extend(self, items: list[object]) -> None:
        filled = self._stack[-1]
        if not isinstance(filled, list):
            raise Refused("fills what is no list")
        filled.extend(items)

    def fill(self, items: list[object]) -> None:
        filled = self._stack[-1]
        if not isinstance(filled, dict) or len(items) % 2:
            raise Refused("fills what is no dict")
        _fill(filled, zip(items[::2], items[1::2], strict=True))

    # ---- globals and calls ----

    def name(self, module: object, name: object) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("names something by what is no text")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.push(_known(f"{module}.{name}"))

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not (isinstance(function, PickledGlobal) and isinstance(arguments, tuple) and function.name in _CALLS):
            raise Refused(f"calls {function.name if isinstance(function, PickledGlobal) else 'what it built itself'}")
        self.push(_called(function, arguments, self.count))

    def new(self) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if not (isinstance(kind, PickledGlobal) and isinstance(arguments, tuple) and kind.name in _MADE):
            raise Refused("makes an object of a class")
        self.push(_called(kind, arguments, self.count))

    def build(self) -> None:
        """State of dicts and tensors (the metadata of a state dict, say): it holds no weights."""
        state = self._stack.pop()
        if not isinstance(self._stack[-1], dict | PickledTensor) or not isinstance(state, dict | tuple | None):
            raise Refused("sets the state of what it built")

    def persistent(self) -> None:
        storage = storage_of(self._stack.pop())
        if self._units.setdefault(storage.key, storage.unit) != storage.unit:
            raise Damaged(f"the storage {storage.key[:80]!r} with two types")
        self.push(storage)


def _known(name: str) -> object:
    """A dtype, or a global by its name; `Refused` for any that `torch.save` does not need for tensors."""
    if name in STORAGES:
        return STORAGES[name]
    if name in DTYPES:
        return DTYPES[name]
    if name in _CALLS or name in TENSORS or name in SCHEMES or name in _CLASSES:
        return PickledGlobal(name)
    raise Refused(f"asks for {name[:200]}")


class OddKey:
    """A placeholder for keys other than text and numbers: the hash of nested tuples may take forever."""


def _fill(target: dict[object, object], items: Iterable[Sequence[object]]) -> None:
    for key, value in items:
        plain = type(key) in (str, bool, float, type(None)) or (type(key) is int and abs(key) < 1 << 64)
        target[key if plain else OddKey()] = value


def _text(value: object = "", encoding: object = "latin1") -> str | bytes:
    """Bytes, as Python 3 writes them for Python 2: a text and its encoding. No copy is made."""
    if not isinstance(value, str | bytes) or encoding not in ("latin1", "latin-1"):
        raise Refused("makes bytes of what is no text")
    return value


def _bytes(encoding: bool) -> Callable[..., str | bytes]:
    def made(value: object = b"", *given: object) -> str | bytes:
        if encoding and not given:
            raise Refused("encodes a text by an encoding of its own")
        return _text(value, *given)

    return made


_PLAIN: Mapping[str, Callable[..., object]] = {
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
_FILLED = ("collections.OrderedDict", "collections.Counter", "builtins.set", "torch.Size")
_CALLS = frozenset({*REBUILDS, *_PLAIN, *_FILLED})
_MADE = frozenset({*TENSORS, "collections.OrderedDict"}) & _CALLS
_CLASSES = frozenset({"numpy.ndarray"})


def _called(function: PickledGlobal, arguments: tuple[object, ...], count: Callable[[int], None]) -> object:
    """The description of the result of a call."""
    if function.name not in _FILLED:
        return (REBUILDS.get(function.name) or _PLAIN[function.name])(*arguments)
    content = arguments[0] if arguments else []
    if len(arguments) > 1 or not isinstance(content, list | dict | tuple):
        raise Refused(f"calls {function.name} with what is no list")
    count(len(content) + 1)  # copied: a list in the memo could be so any number of times
    if function.name == "torch.Size":
        return tuple(content)
    if function.name == "builtins.set":
        return list(content)
    made: dict[object, object] = {}
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


def _constant(value: object) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(value)


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.fill([key, value])


_EFFECTS: Mapping[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda machine: machine.take(1),  # PROTO
    b"\x95": lambda machine: machine.take(8),  # FRAME
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"K": lambda machine: machine.push(machine.number("<B")),
    b"M": lambda machine: machine.push(machine.number("<H")),
    b"J": lambda machine: machine.push(machine.number("<i")),
    b"G": lambda machine: machine.push(struct.unpack(">d", machine.take(8))[0]),
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
