"""Which matrices a stored tensor holds: the rules by which fused tensors are taken apart and stored ones turned."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equipoise.checkpoint.stored import Stored
from equipoise.checkpoint.streamed import Streamed

_GATES = {4: ("input", "forget", "cell", "output"), 3: ("reset", "update", "new"), 1: ("",)}  # LSTM, GRU, RNN
_RECURRENT = re.compile(r"(?P<stem>.*?)weight_(?P<side>ih|hh|hr)(?P<layer>(_l\d+)?(_reverse)?)$")
_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|wte|wpe|emb)([._]|$)", re.IGNORECASE)
_TURNED_LAYERS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})  # model_type, with Conv1D layers
_TURNED = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")
_TURNED_CONVOLUTIONS = frozenset({f"ConvTranspose{d}d" for d in (1, 2, 3)})


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix in a stored tensor: `view` finds it in the tensor as read, `shape` is the layer's own (out, in, *taps).

    It is measured as the `out × (in·taps)` matrix. `note` says what was done to get it, if anything.
    """

    stored: Stored
    name: str
    kind: str
    shape: tuple[int, ...]
    view: Callable[[Tensor], Tensor]
    note: str = ""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names, if the tensor is tied."""
        part = self.name.removeprefix(self.stored.name)
        return tuple(alias + part for alias in self.stored.aliases)

    @property
    def numbers(self) -> int:
        """How many numbers are read for it."""
        return math.prod(self.shape)

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns as it is measured."""
        out, *rest = self.shape
        return out, int(torch.Size(rest).numel())

    def read(self) -> Tensor:
        """The tensor of the layer, a view of what is stored where that is possible."""
        return self.view(self.stored.read())

    def unfolded(self) -> Tensor:
        """The `out × (in·taps)` matrix."""
        return self.read().flatten(1)

    def streamed(self) -> Streamed:
        """The same matrix, to be read a few lines at a time; mapped ones whose unfolding is a view, anew each time."""
        if not self.stored.mapped or self.view is _swap:
            return Streamed.of(self.unfolded().detach())
        portion = self.numbers / max(self.stored.count, 1)

        def read(share: float) -> Tensor:
            return self.view(self.stored.read(share * portion)).flatten(1).detach()

        def part(dimension: int, start: int, count: int) -> Tensor:
            assert self.stored.stretch is not None
            place = torch.empty(self.stored.shape, device="meta")
            place = self.view(place).flatten(1).narrow(dimension, start, count)
            low, sides = int(place.storage_offset()), zip(place.shape, place.stride(), strict=True)
            flat = self.stored.stretch(low, low + 1 + sum((size - 1) * stride for size, stride in sides))
            return flat.as_strided(place.shape, place.stride())

        return Streamed.of(read(0.0), read, part if self.stored.stretch else None)


class Rules:
    """The rules for one checkpoint: they look at names, shapes, `config.json` and, for a model, at its modules."""

    def __init__(self, tensors: Sequence[Stored], config: Mapping[str, Any], split: bool = True):
        self.shapes = {name: tensor.shape for tensor in tensors for name in tensor.names}
        self.turned = config.get("model_type") in _TURNED_LAYERS
        self.split = split

    def matrices(self, stored: Stored) -> list[Matrix] | str:
        """The matrices in a tensor, or why there is none."""
        reason = stored.reason or _why_not(stored)
        if reason:
            return reason
        for rule in (self._experts, self._recurrent, self._projections, self._conv1d, _convolution, _stack):
            found = rule(stored)
            if found:
                return found
        return [_plain(stored)]

    def _experts(self, stored: Stored) -> list[Matrix]:
        """`experts` in the name of a 3-D tensor: one matrix each."""
        if len(stored.shape) != 3 or "experts" not in stored.name or not self.split:
            return []
        return [
            Matrix(stored, f"{stored.name}[{expert}]", "expert", stored.shape[1:], _item(expert))
            for expert in range(stored.shape[0])
        ]

    def _recurrent(self, stored: Stored) -> list[Matrix]:
        """LSTM, GRU and RNN weights: one matrix a gate."""
        place = _RECURRENT.search(stored.name)
        if not place or len(stored.shape) != 2:
            return []
        shared = place["stem"], place["layer"]
        hidden = self.shapes.get("weight_hh".join(shared), (0, 0))
        projected = self.shapes.get("weight_hr".join(shared))
        size = (projected or hidden)[1]
        gates = stored.shape[0] // size if size and stored.shape[0] % size == 0 else 0
        if gates not in _GATES or not self.split or place["side"] == "hr":
            return [_plain(stored, "recurrent")]
        return _parts(stored, "recurrent", _GATES[gates])

    def _projections(self, stored: Stored) -> list[Matrix]:
        """`in_proj_weight` of `MultiheadAttention`: queries, keys and values."""
        if not re.search(r"(^|\.)in_proj_weight$", stored.name) or len(stored.shape) != 2:
            return []
        fused = stored.shape[0] == 3 * stored.shape[1]
        return _parts(stored, "attention", ("q", "k", "v") if fused and self.split else ("",))

    def _conv1d(self, stored: Stored) -> list[Matrix]:
        """GPT-2's `Conv1D` keeps (in, out); its `c_attn` is fused, and tells its orientation by its shape."""
        if not _TURNED.search(stored.name) or len(stored.shape) != 2:
            return []
        rows, columns = stored.shape
        fused = ".c_attn." in f".{stored.name}" and 3 * min(rows, columns) == max(rows, columns)
        turned = self.turned or stored.layer == "Conv1D" or (fused and rows < columns)
        parts = ("q", "k", "v") if fused and self.split else ("",)
        return _parts(stored, "attention" if fused else "linear", parts, turned)


def _why_not(stored: Stored) -> str | None:
    if stored.dtype.startswith("complex"):
        return "its numbers are complex"
    if not stored.dtype.startswith(("float", "bfloat")) or stored.dtype.startswith("float4"):
        return f"its numbers are {stored.dtype}: counts, flags or codes have no spectrum"
    if stored.count == 0:
        return "it is empty"
    if len(stored.shape) < 2:
        return "a single number" if not stored.shape else "a vector: a spectrum needs two dimensions"
    if len(stored.shape) > 5:
        return f"it has {len(stored.shape)} dimensions: neither a matrix nor the kernel of a convolution"
    return None


def _convolution(stored: Stored) -> list[Matrix]:
    """A `weight` of three to five dimensions: (out, in, *taps), or (in, out, *taps) in a transposed convolution."""
    if len(stored.shape) < 3 or not stored.name.endswith("weight"):
        return []
    kind = f"conv{len(stored.shape) - 2}d"
    if stored.layer in _TURNED_CONVOLUTIONS:
        turned = (stored.shape[1], stored.shape[0], *stored.shape[2:])
        return [Matrix(stored, stored.name, kind, turned, _swap, "stored as (in, out, *taps)")]
    return [Matrix(stored, stored.name, kind, stored.shape, _same)]


def _stack(stored: Stored) -> list[Matrix]:
    """A raw parameter of more than two dimensions: the last two, where all before them are 1; else unfolded."""
    if len(stored.shape) < 3:
        return []
    if all(size == 1 for size in stored.shape[:-2]):
        shape = stored.shape[-2:]
        return [Matrix(stored, stored.name, _kind(stored), shape, lambda tensor: tensor.reshape(shape))]
    return [Matrix(stored, stored.name, "parameter", stored.shape, _same, "unfolded after its first dimension")]


def _plain(stored: Stored, kind: str | None = None) -> Matrix:
    return Matrix(stored, stored.name, kind or _kind(stored), stored.shape, _same)


def _kind(stored: Stored) -> str:
    if stored.layer in ("Embedding", "EmbeddingBag") or _EMBEDDING.search(stored.name):
        return "embedding"
    return "linear" if stored.layer == "Linear" or stored.name.endswith("weight") else "parameter"


def _parts(stored: Stored, kind: str, parts: Sequence[str], turned: bool = False) -> list[Matrix]:
    """Equal blocks of rows (after turning), each with its name in brackets."""
    rows, columns = reversed(stored.shape) if turned else stored.shape
    height = rows // len(parts)
    note = "stored as (in, out)" if turned else ""

    def view(place: int) -> Callable[[Tensor], Tensor]:
        return lambda tensor: (tensor.T if turned else tensor)[place * height : (place + 1) * height]

    return [
        Matrix(stored, f"{stored.name}[{part}]" if part else stored.name, kind, (height, columns), view(place), note)
        for place, part in enumerate(parts)
    ]


def _item(place: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[place]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _swap(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1)
