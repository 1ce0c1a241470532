"""ONNX models: their initialisers and constants, with external data mapped and never looked for outside the folder."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equipoise.checkpoint.readers.limits import inside
from equipoise.checkpoint.readers.mapping import mapped
from equipoise.checkpoint.readers.onnx_uses import Proto, Quantised, uses_in
from equipoise.checkpoint.tensor_entry import TensorEntry, TensorUse, dtype_name
from equipoise.errors import InputError

LIMIT = 2 << 30  # protobuf's own
_VIEWS = 8  # of the same numbers in another file
_RAW = {
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "FLOAT8E4M3FN": torch.float8_e4m3fn,
    "FLOAT8E5M2": torch.float8_e5m2,
}
_INTEGERS = {2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32}  # by protobuf's numbers


def read_onnx(path: Path) -> tuple[TensorEntry, ...]:
    """The initialisers of the graph and of its subgraphs, and the values of its `Constant` nodes.

    The graph itself is parsed by protobuf, numbers inside it included; those in external files are mapped.

    Raises:
        InputError: without the onnx package, for a file that is no model, and for data that is missing, too short, or
            outside the folder of the model.
    """  # noqa: DOC501 - a helper makes the error
    if find_spec("onnx") is None:
        raise InputError(expected="onnx, which reads .onnx files", found="no onnx", remedy="pip install onnx")
    import onnx  # an extra

    try:
        if path.stat().st_size > LIMIT:
            raise ValueError("more than 2 GB, which protobuf cannot hold")
        model = onnx.load(path, load_external_data=False)
        tensors = [*_tensors(model.graph), *(its for inner in model.functions for its in _constants(inner))]
        sparse = [tensor.values.name for tensor in model.graph.sparse_initializer]
    except Exception as error:  # protobuf's DecodeError is a plain Exception
        raise _refused(path, str(error)) from None
    if not (tensors or model.graph.node or sparse):
        raise _refused(path, "an empty graph")
    named = [(tensor.name or f"constant_{place}", tensor) for place, tensor in enumerate(tensors)]
    uses, quantised = uses_in(model.graph)
    known = [replace(_stored(path, name, tensor), use=uses.get(name, TensorUse())) for name, tensor in named]
    _require_apart(path, known, tensors)
    times = Counter(name for name, _ in named)
    by_name = {name: tensor for name, tensor in named if times[name] == 1}  # branches may use a name again
    return (
        *(_dequantized(path, its, quantised[its.name], by_name) if its.name in quantised else its for its in known),
        *(TensorEntry(name, (), "", torch.Tensor, reason="it is sparse") for name in sparse),
    )


def _tensors(graph: Proto) -> Iterator[Proto]:
    yield from graph.initializer
    yield from _constants(graph)


def _constants(graph: Proto) -> Iterator[Proto]:
    """The values of `Constant` nodes, and the tensors of subgraphs, of a graph or a function."""
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                attribute.t.name = attribute.t.name or node.output[0]
                yield attribute.t
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _stored(path: Path, name: str, tensor: Proto) -> TensorEntry:
    from onnx import TensorProto

    shape, kind = tuple(tensor.dims), _kind(tensor)
    if any(size < 0 for size in shape):
        raise _refused(path, f"{name} has the shape {shape}")
    dtype = _RAW.get(kind)
    if dtype is None:
        return TensorEntry(name, shape, kind.lower(), torch.Tensor)
    outside = tensor.data_location == TensorProto.EXTERNAL
    return TensorEntry(name, shape, dtype_name(dtype), _numbers(path, name, tensor, dtype), mapped=outside)


def _dequantized(path: Path, its: TensorEntry, node: Quantised, tensors: Mapping[str, Proto]) -> TensorEntry:
    """`scale · (q - zero point)`, as `DequantizeLinear` does; codes that are not read keep their reason."""
    parts = [tensors.get(name) for name in (its.name, node.scale, node.zero) if name]
    dtypes = [_INTEGERS.get(part.data_type) or _RAW.get(_kind(part)) for part in parts if part is not None]
    if None in parts or None in dtypes or node.block or len(its.shape) < 1:
        return its
    if any(math.prod(part.dims) not in (1, its.shape[node.axis % len(its.shape)]) for part in parts[1:] if part):
        return its  # it would be as large as both together
    code, scale, *zero = [
        _numbers(path, its.name, part, dtype) for part, dtype in zip(parts, dtypes, strict=True) if part and dtype
    ]
    along = [-1 if place == node.axis % len(its.shape) else 1 for place in range(len(its.shape))]

    def read(*_: float) -> Tensor:
        factor, value = scale().float(), code().float()
        shape = along if factor.numel() > 1 else [1] * value.ndim
        return (value - zero[0]().float().reshape(shape) if zero else value) * factor.reshape(shape)

    note = f"dequantised: {its.dtype}"
    return replace(its, dtype="float32", read=read, reason=None, mapped=False, computed=True, note=note)


def _kind(tensor: Proto) -> str:
    from onnx import TensorProto

    return TensorProto.DataType.Name(tensor.data_type)


def _numbers(path: Path, name: str, tensor: Proto, dtype: torch.dtype) -> Callable[..., Tensor]:
    """How to get the numbers, once it is sure that there are as many as the shape says."""
    from onnx import TensorProto, numpy_helper

    shape = tuple(tensor.dims)
    needed = math.prod(shape) * dtype.itemsize
    if tensor.data_location == TensorProto.EXTERNAL:
        where, offset = _external(path, name, tensor, needed)
        return lambda share=1.0: mapped(where, offset, needed).view(dtype).reshape(shape)
    if tensor.HasField("raw_data"):
        _require_length(path, name, needed, len(tensor.raw_data))
        return lambda: torch.frombuffer(bytearray(tensor.raw_data), dtype=dtype).reshape(shape)
    values = tensor.float_data or tensor.double_data or tensor.int32_data
    _require_length(path, name, math.prod(shape), len(values))
    return lambda: torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float64)).to(dtype)


def _external(path: Path, name: str, tensor: Proto, needed: int) -> tuple[Path, int]:
    """The file and the offset of external data."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = inside(path.parent, entries.get("location", ""))
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError:
        offset, length = -1, -1
    if offset < 0 or offset + needed > where.stat().st_size:
        raise _refused(path, f"{name} is said to lie at {offset} in {where.name}, which ends before")
    _require_length(path, name, needed, length)
    return where, offset


def _require_apart(path: Path, known: Sequence[TensorEntry], tensors: Sequence[Proto]) -> None:
    """Check that external data are not read under any number of names, as no exporter writes them."""
    outside = [(its, tensor) for its, tensor in zip(known, tensors, strict=True) if its.mapped]
    total = sum(its.count * getattr(torch, its.dtype).itemsize for its, _ in outside)
    places = {entry.value for _, tensor in outside for entry in tensor.external_data if entry.key == "location"}
    if total > _VIEWS * sum(inside(path.parent, place).stat().st_size for place in places):
        raise _refused(path, f"{total} bytes of tensors that overlap")


def _require_length(path: Path, name: str, needed: int, found: int) -> None:
    if found != needed:
        raise _refused(path, f"{name} needs {needed} and has {found} bytes or numbers")


def _refused(path: Path, found: str) -> InputError:
    return InputError(expected="an ONNX model", found=f"{path.name}: {found[:200]}", remedy="export or fetch it again")
