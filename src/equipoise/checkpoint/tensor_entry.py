"""The tensors of a checkpoint before they are read: names, shapes, and a function that reads the numbers of each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from threading import RLock
from typing import Any, Protocol, TypeAlias, runtime_checkable
from weakref import ref

import numpy as np
import torch
from torch import Tensor

Json: TypeAlias = Mapping[Any, Any]  # a configuration: of a file with text as keys, of a model with any

_LEAST = 1 << 20  # bytes that are worth mapping a file anew


@dataclass(frozen=True)
class TensorUse:
    """How a model uses a tensor, as far as a module, a graph or a configuration says so.

    `layer` is the class of the module or the operator of the node, `kind` the type in the table; `turned` for stored
    as (in, out, …) rather than (out, in, …); `groups` those of a convolution; `stacked` for one matrix at each index of
    the first dimension; `gates` name equal blocks of rows; `trained` for a parameter with gradients; `reason` says why
    the tensor is no weight at all.
    """

    layer: str = ""
    kind: str | None = None
    turned: bool = False
    groups: int = 1
    stacked: bool = False
    gates: tuple[str, ...] = ()
    trained: bool = False
    reason: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class TensorEntry:
    """One tensor: `read()` maps or fetches it; `reason` says why it cannot be read, where it cannot.

    `aliases` are its other names, if it is tied; `use` is what its module or node says of it, where known; `note` how
    it is made, if it is `computed` from others whenever it is read. One that is `mapped` costs nothing to read again,
    and `read(share)` says which share of it is going to be looked at. `stretch(low, high)`, where there is one, reads
    those of its numbers, in the order of memory, past the mapping: the system maps two megabytes where one number is
    looked at, and they count as memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[..., Tensor]
    aliases: tuple[str, ...] = ()
    use: TensorUse = TensorUse()
    reason: str | None = None
    mapped: bool = False
    computed: bool = False
    note: str = ""
    stretch: Callable[[int, int], Tensor] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of its names, the one it is listed under first."""
        return (self.name, *self.aliases)

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All tensors of one file, folder or model, with the fields of its `config.json`, if it has one."""

    label: str
    tensors: tuple[TensorEntry, ...]
    config: Json = field(default_factory=dict)


class MmapCache:
    """Holds one mapped file open at a time: the shards of a checkpoint share one. Several threads may read from it."""

    def __init__(self):
        self.lock = RLock()
        self._held: ref[MappedFile] | None = None  # a cycle would keep the file mapped when all is done

    def hold(self, mapped: "MappedFile") -> None:
        """Hold this one; the one before lets go of its mapping."""
        before = self._held() if self._held else None
        if before is not None and before is not mapped:
            before.release()
        self._held = ref(mapped)


class MappedFile:
    """A file mapped into memory, and mapped anew as often as it takes to keep what was read from staying there.

    `opened()` gives something to get tensors from by name; the tensors are views of the mapping. Pages that were read
    count as memory for as long as they are mapped, so a mapping serves for a quarter of the `largest` tensor, in bytes,
    or for as many as the `header` has, which is read again each time.
    """

    def __init__(
        self,
        opened: Callable[[], Callable[[str], Tensor]],
        largest: int,
        shelf: MmapCache | None = None,
        header: int = 0,
    ):
        self._opened, self._budget, self._shelf = opened, max(largest // 4, header, _LEAST), shelf or MmapCache()
        self._get: Callable[[str], Tensor] | None = None
        self._looked_at: dict[str, float] = {}  # the share of each tensor,
        self._pages = 0.0  # and their bytes together

    def read(self, name: str, share: float = 1.0) -> Tensor:
        """The tensor, without touching its numbers; `share` of them will be."""
        with self._shelf.lock:
            get = self._get or self._again()
            tensor = get(name)
            if self._looked_at and self._pages + self._more(name, share, tensor.nbytes) > self._budget:
                del get, tensor  # the old mapping goes first
                tensor = self._again()(name)
            more = self._more(name, share, tensor.nbytes)
            self._pages += more
            self._looked_at[name] = min(self._looked_at.get(name, 0.0) + share, 1.0)
            return tensor

    def _more(self, name: str, share: float, size: int) -> float:
        """How many bytes looking at this as well brings in."""
        before = self._looked_at.get(name, 0.0)
        return (min(before + share, 1.0) - before) * size

    def reader(self, name: str) -> Callable[..., Tensor]:
        """`read` of this name, for later."""
        return partial(self.read, name)

    def release(self) -> None:
        """Let go of the mapping; tensors that are still in use keep their own hold on it."""
        self._get, self._looked_at, self._pages = None, {}, 0.0

    def _again(self) -> Callable[[str], Tensor]:
        self.release()
        self._shelf.hold(self)
        self._get = self._opened()
        return self._get


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


@runtime_checkable
class _ArrayLike(Protocol):
    """An array of numpy, JAX or another library."""

    dtype: object

    def __array__(self) -> np.ndarray:
        """Its numbers."""
        ...


@dataclass(frozen=True)
class Opaque:
    """An object with numbers that is no tensor, and the reason why they are not read."""

    reason: str


def as_tensor(value: object) -> Tensor | Opaque | None:
    """A tensor or an array as a tensor; what holds numbers that cannot be read; None for everything else.

    >>> as_tensor(np.ones((2, 3))).shape, as_tensor("text"), as_tensor(np.array(["a"])).reason
    (torch.Size([2, 3]), None, 'a numpy array of <U1')
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, torch.ScriptObject):
        return Opaque(
            f"a {str(value._type()).rpartition('.')[2]}, whose weights only its module can unpack: pass the model"
        )
    if isinstance(value, np.generic) or not isinstance(value, _ArrayLike):
        return None
    try:
        array = np.asarray(value)
        if array.dtype.name == "bfloat16":  # of ml_dtypes
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, RuntimeError):
        return Opaque(f"a {type(value).__module__.partition('.')[0]} array of {str(value.dtype).removeprefix('>')}")


def entries(
    tensors: Mapping[str, Tensor | Opaque], read: Callable[[str], Callable[..., Tensor]], mapped: bool = False
) -> tuple[TensorEntry, ...]:
    """Each tensor once, with all names of those that share their numbers; `read(name)` says how to get it later.

    >>> weight = torch.ones(2, 2)
    >>> [entry.names for entry in entries({"a": weight, "b": weight}, lambda name: lambda: weight)]
    [('a', 'b')]
    """
    named: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        key = name if isinstance(tensor, Opaque) else _place(tensor) or name
        named.setdefault(key, []).append(name)
    found: list[TensorEntry] = []
    for name, *aliases in named.values():
        tensor = tensors[name]
        if isinstance(tensor, Opaque):
            found.append(TensorEntry(name, (), "", Tensor, reason=tensor.reason))
            continue
        shape, reason = tuple(tensor.shape), unreadable(tensor)
        its = TensorEntry(
            name, shape, dtype_name(tensor.dtype), read(name), tuple(aliases), reason=reason, mapped=mapped
        )
        found.append(_dequantized(its) if tensor.is_quantized and not reason else its)
    return tuple(found)


def _dequantized(its: TensorEntry) -> TensorEntry:
    """A tensor of `torch.ao` that knows its own scales."""

    def read(*_: float) -> Tensor:
        return its.read().dequantize()

    note = f"dequantised: {its.dtype}"
    return replace(its, dtype="float32", read=read, mapped=False, computed=True, note=note)


def unreadable(tensor: Tensor) -> str | None:
    """Why the numbers of a tensor are not there to be read, if they are not."""
    if tensor.is_meta:
        return "it has no numbers: it is on the meta device"
    if tensor.layout is not torch.strided:
        return f"its layout is {str(tensor.layout).removeprefix('torch.')}, not dense"
    if type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return f"it is a {type(tensor).__name__}, not a plain tensor"
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return "its shape says more numbers than it stores"
    return None


def _place(tensor: Tensor) -> object:
    """Where the numbers are, the same for tied tensors; None for a tensor that has none."""
    if tensor.numel() == 0 or unreadable(tensor):
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device
