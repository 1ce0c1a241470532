"""Which matrices a stored tensor holds: the rules by which fused tensors are taken apart and stored ones turned."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.checkpoint.spectra.matrix_stream import CHUNK, MatrixStream
from equipoise.checkpoint.tensor_entry import Json, TensorEntry

_GATES = {4: ("input", "forget", "cell", "output"), 3: ("reset", "update", "new"), 1: ("",)}  # LSTM, GRU, RNN
_RECURRENT = re.compile(r"(?P<stem>.*)weight_(?P<side>ih|hh|hr)(?P<layer>(_l\d+)?(_reverse)?)$")
_EMBEDDINGS = frozenset({"wte", "wpe", "emb"})  # parts of names
_TURNED_LAYERS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})  # model_type, with Conv1D layers
_TURNED = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")
_TURNED_EXPERTS = frozenset(
    {"gpt_oss", "llama4", "llama4_text", "openai_privacy_filter"}
)  # stored as (expert, in, out)
_SMALL = 64  # numbers of a matrix: what a row of the table takes is no more than a few times that
_MOST_SMALL = 4096  # matrices of stacked tensors, smaller than that, that get a row each: a file could hold millions
_COUNTS_EXPERTS = re.compile(r"(^|_)(num|n)_(\w+_)?experts$")
# In files, where no module separates weights from what training only keeps: by the names in use
_KEPT = (
    (
        re.compile(
            r"(^|\.)(optim(izer)?(s|_states?|_state_dict)?)\.(.+\.)?(state|exp_avg|momentum_buffer)\b|"
            r"(^|\.)state\.\d+\.(?!weight$|bias$)\w+$|"
            r"(^|\.)((max_)?exp_avg(_sq(_row|_col)?|_diff|s)?|exp_inf|momentum_buffer|square_avg|grad_avg|acc_delta)(\.|$)"
        ),
        "a moment that an optimizer keeps, not a weight",
    ),
    (
        re.compile(
            r"(^|[._])((i?stft|istft|cqt\d*|vqt)([._]|$)|(forward|inverse)_(basis|transform)|mel_?(basis|filters?|fb|"
            r"spectrogram|scale|weights?)|(mel|spectrogram)\.fb|filter_?bank|melmat|melW|wsin|wcos|cos_basis|sin_basis|"
            r"(fft|cqt|dft)_?kernels?(_(real|imag))?|dct_mat|window_(sum|function))",
            re.IGNORECASE,
        ),
        "a fixed transform (Fourier, wavelet or mel basis), not a weight",
    ),
    (re.compile(r"(^|[._])((attn|attention|causal)_mask|masked_bias|causal_mask|attn\.mask)$"), "a mask, not a weight"),
)


@dataclass(frozen=True, eq=False, slots=True)
class WeightMatrix:
    """A matrix in a stored tensor: `view` finds it in the tensor as read, `shape` is the layer's own (out, in, *taps).

    It is measured as the `out × (in·taps)` matrix, which is a view as well unless `copied`. `note` says what was done
    to get it, if anything.
    """

    entry: TensorEntry
    name: str
    kind: str
    shape: tuple[int, ...]
    view: Callable[[Tensor], Tensor]
    note: str = ""
    copied: bool = False

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names, if the tensor is tied."""
        part = self.name.removeprefix(self.entry.name)
        return tuple(alias + part for alias in self.entry.aliases)

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
        return self.view(self.entry.read())

    def unfolded(self) -> Tensor:
        """The `out × (in·taps)` matrix."""
        return self.read().flatten(1)

    def streamed(self) -> MatrixStream:
        """The same matrix, to be read a few lines at a time; mapped ones whose unfolding is a view, anew each time."""
        if not self.entry.mapped or self.copied:
            return MatrixStream.of(self.unfolded().detach())
        if self.numbers <= CHUNK:  # no more than passes by at a time
            return MatrixStream.of(self.unfolded().detach().clone())
        portion = self.numbers / max(self.entry.count, 1)

        def read(share: float) -> Tensor:
            return self.view(self.entry.read(share * portion)).flatten(1).detach()

        def part(dimension: int, start: int, count: int) -> Tensor:
            assert self.entry.stretch is not None
            place = torch.empty(self.entry.shape, device="meta")
            place = self.view(place).flatten(1).narrow(dimension, start, count)
            low, sides = int(place.storage_offset()), zip(place.shape, place.stride(), strict=True)
            flat = self.entry.stretch(low, low + 1 + sum((size - 1) * stride for size, stride in sides))
            return flat.as_strided(place.shape, place.stride())

        return MatrixStream.of(read(0.0), read, part if self.entry.stretch else None)


class Rules:
    """The rules for one checkpoint, by names, shapes, `config.json` and the use that modules or nodes make."""

    def __init__(self, tensors: Sequence[TensorEntry], config: Json, split: bool = True):
        self.shapes = {name: tensor.shape for tensor in tensors for name in tensor.names}
        models = {str(its.get("model_type")) for its in _sections(config)}
        self.turned, self.turned_experts = bool(models & _TURNED_LAYERS), bool(models & _TURNED_EXPERTS)
        self.experts = {
            value
            for section in _sections(config)
            for name, value in section.items()
            if isinstance(value, int) and value > 1 and _COUNTS_EXPERTS.search(str(name))
        }
        self.split = split
        self.split_small = sum(its.shape[0] for its in tensors if self._is_small_stack(its)) <= _MOST_SMALL

    def matrices(self, entry: TensorEntry) -> list[WeightMatrix] | str:
        """The matrices in a tensor, or why there is none."""
        reason = entry.reason or _why_not(entry) or entry.use.reason
        if reason:
            return reason
        if entry.use.kind == "elementwise" and sum(size > 1 for size in entry.shape) < 2:
            return "a vector: it multiplies or adds to each entry along one dimension"
        if self._is_stacked(entry, 2) and re.search(r"bias(es)?$", entry.name):
            return "biases of stacked experts: vectors have no spectrum"
        for rule in (
            self._stacked,
            self._gates,
            self._recurrent,
            self._projections,
            self._conv1d,
            _convolution,
            _stack,
        ):
            found = rule(entry)
            if found:
                return found
        return [_plain(entry)]

    def _is_stacked(self, entry: TensorEntry, dimensions: int) -> bool:
        """Whether each index of the first dimension is an expert of its own: by name, module or configuration."""
        if len(entry.shape) != dimensions or (entry.use.kind or "").startswith("conv"):
            return False
        counted = entry.shape[0] in self.experts and "conv" not in entry.name
        named = "experts" in entry.name and (dimensions == 3 or counted)
        return named or entry.use.stacked or counted

    def _is_small_stack(self, entry: TensorEntry) -> bool:
        """Whether it holds matrices, but so small that their rows in the table would take far more than they do."""
        small = len(entry.shape) == 3 and 0 < math.prod(entry.shape[1:]) < _SMALL
        return small and not entry.reason and self._is_stacked(entry, 3)

    def _stacked(self, entry: TensorEntry) -> list[WeightMatrix]:
        """Stacked experts, or the forms of `nn.Bilinear`: one matrix each, unless a file has thousands of tiny ones."""
        if len(entry.shape) != 3 or not self._is_stacked(entry, 3) or not self.split:
            return []
        if not self.split_small and self._is_small_stack(entry):
            return []
        kind = entry.use.kind or "expert"
        turned = entry.use.turned or (self.turned_experts and not entry.computed and kind == "expert")
        rows, columns = entry.shape[1:]
        shape = (columns, rows) if turned else (rows, columns)
        note = "stored as (in, out)" if turned else ""
        return [
            WeightMatrix(entry, f"{entry.name}[{place}]", kind, shape, _item(place, turned), note)
            for place in range(entry.shape[0])
        ]

    def _gates(self, entry: TensorEntry) -> list[WeightMatrix]:
        """Gates that a node of a graph names, one dimension for the directions before them."""
        gates = entry.use.gates
        if not gates or len(entry.shape) != 3 or not self.split:
            return []
        directions, rows, columns = entry.shape
        if directions > 2 or rows % len(gates):
            return []
        height = rows // len(gates)
        sides = [""] if directions == 1 else ["[forward]", "[reverse]"]
        names = [f"[{gate}]" if gate else "" for gate in gates]
        return [
            WeightMatrix(
                entry, f"{entry.name}{side}{name}", "recurrent", (height, columns), _block(place, gate, height)
            )
            for place, side in enumerate(sides)
            for gate, name in enumerate(names)
        ]

    def _recurrent(self, entry: TensorEntry) -> list[WeightMatrix]:
        """LSTM, GRU and RNN weights: one matrix a gate."""
        place = _RECURRENT.match(entry.name)
        if not place or len(entry.shape) != 2:
            return []
        shared = place["stem"], place["layer"]
        hidden = self.shapes.get("weight_hh".join(shared), (0, 0))
        projected = self.shapes.get("weight_hr".join(shared))
        size = next((its[1] for its in (projected, hidden) if its and len(its) == 2), 0)
        gates = entry.shape[0] // size if size and entry.shape[0] % size == 0 else 0
        if gates not in _GATES or not self.split or place["side"] == "hr":
            return [_plain(entry, "recurrent")]
        return _parts(entry, "recurrent", _GATES[gates])

    def _projections(self, entry: TensorEntry) -> list[WeightMatrix]:
        """`in_proj_weight` of `MultiheadAttention`: queries, keys and values."""
        if not re.search(r"(^|\.)in_proj_weight$", entry.name) or len(entry.shape) != 2:
            return []
        fused = entry.shape[0] == 3 * entry.shape[1]
        return _parts(entry, "attention", ("q", "k", "v") if fused and self.split else ("",))

    def _conv1d(self, entry: TensorEntry) -> list[WeightMatrix]:
        """Weights kept as (in, out), as by GPT-2's `Conv1D`; its `c_attn` is fused, as its shape shows."""
        if len(entry.shape) != 2 or not (entry.use.turned or _TURNED.search(entry.name)):
            return []
        rows, columns = entry.shape
        fused = ".c_attn." in f".{entry.name}" and 3 * min(rows, columns) == max(rows, columns)
        turned = self.turned or entry.use.turned or (fused and rows < columns)
        parts = ("q", "k", "v") if fused and self.split else ("",)
        return _parts(entry, "attention" if fused else "linear", parts, turned)


def _sections(config: Json) -> list[Json]:
    """The configuration, and those of its parts, as `text_config`."""
    return [config, *(its for its in config.values() if isinstance(its, Mapping))]


def _why_not(entry: TensorEntry) -> str | None:
    if entry.dtype.startswith("complex"):
        return "its numbers are complex"
    if not entry.dtype.startswith(("float", "bfloat")) or entry.dtype.startswith("float4"):
        return f"its numbers are {entry.dtype}: counts, flags or codes have no spectrum"
    if entry.count == 0:
        return "it is empty"
    if len(entry.shape) < 2:
        return "a single number" if not entry.shape else "a vector: a spectrum needs two dimensions"
    if len(entry.shape) > 5:
        return f"it has {len(entry.shape)} dimensions: neither a matrix nor the kernel of a convolution"
    if entry.use.trained:
        return None
    return next((reason for pattern, reason in _KEPT if pattern.search(entry.name)), None)


def _convolution(entry: TensorEntry) -> list[WeightMatrix]:
    """A kernel of three to five dimensions: (out, in, *taps), or (in, out, *taps) in a transposed convolution."""
    known = (entry.use.kind or "").startswith("conv")
    if len(entry.shape) < 3 or not (known or (entry.name.endswith("weight") and not entry.use.kind)):
        return []
    kind, groups = f"conv{len(entry.shape) - 2}d", entry.use.groups
    if not entry.use.turned:
        return [WeightMatrix(entry, entry.name, kind, entry.shape, _same)]
    inputs, outputs, *taps = entry.shape
    if inputs % groups:
        return []
    turned = (groups * outputs, inputs // groups, *taps)

    def view(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)

    return [WeightMatrix(entry, entry.name, kind, turned, view, "stored as (in, out, *taps)", copied=True)]


def _stack(entry: TensorEntry) -> list[WeightMatrix]:
    """A raw parameter of more than two dimensions: the last two, where all before them are 1; else unfolded."""
    if len(entry.shape) < 3:
        return []
    if all(size == 1 for size in entry.shape[:-2]):
        shape = entry.shape[-2:]
        return [WeightMatrix(entry, entry.name, _kind(entry), shape, lambda tensor: tensor.reshape(shape))]
    kind = "bilinear" if entry.use.kind == "bilinear" else "parameter"
    return [WeightMatrix(entry, entry.name, kind, entry.shape, _same, "unfolded after its first dimension")]


def _plain(entry: TensorEntry, kind: str | None = None) -> WeightMatrix:
    return WeightMatrix(entry, entry.name, kind or _kind(entry), entry.shape, _same)


def _kind(entry: TensorEntry) -> str:
    if entry.use.kind and entry.use.kind != "elementwise":
        return entry.use.kind
    if _says_embedding(entry.name):
        return "embedding"
    return "linear" if entry.name.endswith("weight") else "parameter"


def _says_embedding(name: str) -> bool:
    """Whether a part of the name does; in a time that grows as the name is long."""
    said = name.lower()
    return "embed" in said or not _EMBEDDINGS.isdisjoint(re.split("[._]", said))


def _parts(entry: TensorEntry, kind: str, parts: Sequence[str], turned: bool = False) -> list[WeightMatrix]:
    """Equal blocks of rows (after turning), each with its name in brackets."""
    rows, columns = reversed(entry.shape) if turned else entry.shape
    height = rows // len(parts)
    note = "stored as (in, out)" if turned else ""

    def view(place: int) -> Callable[[Tensor], Tensor]:
        return lambda tensor: (tensor.T if turned else tensor)[place * height : (place + 1) * height]

    return [
        WeightMatrix(entry, f"{entry.name}[{part}]" if part else entry.name, kind, (height, columns), view(place), note)
        for place, part in enumerate(parts)
    ]


def _item(place: int, turned: bool = False) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[place].T if turned else tensor[place]


def _block(direction: int, gate: int, height: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[direction, gate * height : (gate + 1) * height]


def _same(tensor: Tensor) -> Tensor:
    return tensor
