"""How the nodes of an ONNX graph use its tensors: what is stored as (in, out), what is a kernel, what has gates."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from equipoise.checkpoint.tensor_entry import TensorUse

Proto: TypeAlias = Any  # a message of protobuf, whose classes are made at run time

_GATES = {"LSTM": ("input", "output", "forget", "cell"), "GRU": ("update", "reset", "new"), "RNN": ("",)}
_EACH = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "PRelu", "Where", "Equal", "Greater", "Less")
_SAME = ("Identity", "Cast", "DequantizeLinear", "CastLike")
_BLOCKS = ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QMoE", "QAttention", "DynamicQuantizeLSTM")


@dataclass(frozen=True)
class Quantised:
    """The node that dequantises a tensor: names of scale and zero point, and the axis of the former."""

    scale: str
    zero: str
    axis: int
    block: int


@dataclass(frozen=True)
class _Source:
    """The stored tensor that a value in the graph is, perhaps transposed."""

    name: str
    transposed: bool = False


def uses_in(graph: Proto) -> tuple[Mapping[str, TensorUse], Mapping[str, Quantised]]:
    """The use of each stored tensor, by its first node, in the graph and its subgraphs; and what is dequantised."""
    uses: dict[str, TensorUse] = {}
    quantised: dict[str, Quantised] = {}
    sources: dict[str, _Source] = {}
    each: dict[str, TensorUse] = {}  # of no consequence where a node uses the same as a matrix
    for node in _nodes(graph):
        inputs = [sources.get(name, _Source(name)) for name in node.input]
        if node.op_type in (*_SAME, "Transpose") and inputs and node.output:
            turned = node.op_type == "Transpose" and _permutation(node) == [1, 0]
            if node.op_type != "Transpose" or turned:
                sources[node.output[0]] = replace(inputs[0], transposed=inputs[0].transposed != turned)
        if node.op_type == "DequantizeLinear" and len(node.input) > 1:
            zero = node.input[2] if len(node.input) > 2 else ""
            axis, block = _attribute(node, "axis", 1), _attribute(node, "block_size", 0)
            quantised.setdefault(node.input[0], Quantised(node.input[1], zero, axis, block))
        if node.op_type in _EACH:
            each |= {source.name: TensorUse(node.op_type, "elementwise") for source in inputs}
        for place, use in _uses(node).items():
            if place < len(inputs) and inputs[place].name:
                its = replace(use, turned=not use.turned) if inputs[place].transposed else use
                uses.setdefault(inputs[place].name, its)
    return each | uses, quantised


def _nodes(graph: Proto) -> Iterator[Proto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _attribute(node: Proto, name: str, otherwise: int) -> int:
    return next((its.i for its in node.attribute if its.name == name), otherwise)


def _permutation(node: Proto) -> list[int]:
    return next((list(its.ints) for its in node.attribute if its.name == "perm"), [1, 0])


def _uses(node: Proto) -> dict[int, TensorUse]:
    """The use that a node makes of each of its inputs, if it is a weight or no weight for sure."""
    operator = node.op_type
    if operator in ("Conv", "ConvTranspose"):
        groups = max(_attribute(node, "group", 1), 1)
        return {1: TensorUse(operator, "conv", turned=operator == "ConvTranspose", groups=groups)}
    if operator == "MatMul":
        return {0: TensorUse(operator, "linear"), 1: TensorUse(operator, "linear", turned=True)}
    if operator == "Gemm":
        return {
            0: TensorUse(operator, "linear", turned=bool(_attribute(node, "transA", 0))),
            1: TensorUse(operator, "linear", turned=not _attribute(node, "transB", 0)),
        }
    if operator == "Gather" and not _attribute(node, "axis", 0):
        return {0: TensorUse(operator, "embedding")}
    if operator in _GATES:
        weight = TensorUse(operator, "recurrent", gates=_GATES[operator])
        vectors = TensorUse(operator, reason=f"biases or states of {operator}: vectors have no spectrum")
        return {1: weight, 2: weight, **dict.fromkeys((3, 5, 6, 7), vectors)}
    if operator in _BLOCKS:
        return dict.fromkeys(range(1, 9), TensorUse(operator, reason=f"codes, scales or zero points of {operator}"))
    if operator in ("STFT", "DFT"):
        return dict.fromkeys(range(1, 4), TensorUse(operator, reason="a fixed transform, not a weight"))
    return {}
