"""Exported graphs made functional operation by operation, where that takes no second trace of the model.

`run_decompositions` traces the whole graph again, at two to four times the cost of the export itself, though most
models hold only a handful of operations that it changes. These are rewritten here to the form that it gives them. Where
one occurs that is not known, or a value is updated in place while something else may see it, nothing is done.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.export.graph_signature import ExportGraphSignature, InputKind
from torch.fx.node import Argument

from equipoise.graph.export.passes import guards

_aten = torch.ops.aten


@dataclass(frozen=True)
class Functional:
    """Side effects dropped when a graph was made functional."""

    updates_buffers: bool


def make_functional(module: fx.GraphModule, signature: ExportGraphSignature) -> Functional | None:
    """Rewrite what aliases or mutates, and drop updates of buffers; None, and no change, where that is not possible."""
    nodes = [node for node in module.graph.nodes if node.op == "call_function" and not guards(node)]
    buffers = {spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.BUFFER}
    counters = {node for node in nodes if _counts(node, buffers)}
    has_regions = any(node.op == "get_attr" for node in module.graph.nodes)
    if has_regions or not all(node in counters or _is_known(node) for node in nodes):
        return None
    updates = bool(counters) or any(map(_updates_statistics, nodes))
    for node in nodes:
        if node in counters:
            module.graph.erase_node(node)
        else:
            _rewrite(module.graph, node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return Functional(updates)


def _counts(node: fx.Node, buffers: set[str]) -> bool:
    """Whether a node only updates a buffer that nothing else reads, as a batch norm counts its batches."""
    buffer = node.args[0] if node.args else None
    if not isinstance(buffer, fx.Node) or not _mutates(node):
        return False
    return buffer.name in buffers and not node.users and len(buffer.users) == 1


def _is_known(node: fx.Node) -> bool:
    """Whether a node is functional already, or can be rewritten."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return not isinstance(target, torch._ops.OperatorBase)  # arithmetic on sizes, items of tuples
    if _mutates(node):
        return _twin(target) is not None and _updates_alone(node)
    if _updates_statistics(node) and _is_shared(node):
        return False
    return not _is_unsafe(target) or (target in _FORMS and _FORMS[target](node) is not None)


def _updates_statistics(node: fx.Node) -> bool:
    """Whether a node is a batch norm in training with running statistics."""
    return node.target is _aten.batch_norm.default and node.args[3] is not None and bool(node.args[5])


def _is_shared(node: fx.Node) -> bool:
    """Whether something else reads the running statistics of a batch norm."""
    return any(isinstance(each, fx.Node) and len(each.users) > 1 for each in node.args[3:5])


# Aliases ------------------------------------------------------------------------------------------------------------


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _aliases(target: object) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any(argument.alias_info is not None for argument in schema.arguments)


def _is_composite(target: torch._ops.OpOverload) -> bool:
    return target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _is_unsafe(target: torch._ops.OpOverload) -> bool:
    """Whether an operation is composed of others, and may return its own input or update it."""
    return _is_composite(target) and (_aliases(target) or torch.Tag.maybe_aliasing_or_mutating in target.tags)


def _may_share(target: object) -> bool:
    """Whether a result may share memory with an argument."""
    if target in _COMPUTES:
        return False
    return not isinstance(target, torch._ops.OpOverload) or _aliases(target) or _is_unsafe(target)


def _twin(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """The functional form of an operation in place: `relu` of `relu_`; None of one that is composed of others."""
    if _is_composite(target):
        return None
    namespace, _, name = target._schema.name.partition("::")
    packet = getattr(_aten, name.removesuffix("_"), None) if namespace == "aten" and name.endswith("_") else None
    twin = getattr(packet, target._overloadname, None)
    return None if twin is None or twin._schema.is_mutable or _aliases(twin) else twin


def _updates_alone(node: fx.Node) -> bool:
    """Whether nothing else shares the memory that a node updates, and the result needs no cast."""
    source, *others = node.args
    if not isinstance(source, fx.Node) or source.op != "call_function":
        return False
    if _may_share(source.target) and not _mutates(source):
        return False
    if any(_may_share(user.target) for user in source.users if user < node):
        return False
    values = [other.meta.get("val") for other in others if isinstance(other, fx.Node)]
    return all(not isinstance(each, Tensor) or each.dtype is source.meta["val"].dtype for each in values)


# Rewriting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """The size of a tensor along an axis, where it is no number."""

    source: fx.Node
    axis: int


@dataclass(frozen=True)
class Replacement:
    """An operation to put in the place of another; of several results, the first is meant."""

    target: torch._ops.OpOverload
    args: tuple[object, ...]
    kwargs: Mapping[str, object] = field(default_factory=dict)
    several: int = 1


Form: TypeAlias = Callable[[fx.Node], Replacement | fx.Node | None]
"""The form to rewrite an operation to, which may be one of its arguments; None where it has none."""


def _rewrite(graph: fx.Graph, node: fx.Node) -> None:
    target: Any = node.target
    if _mutates(node):
        source: Any = node.args[0]
        node.target = _twin(target)  # pyright: ignore[reportAttributeAccessIssue]
        source.replace_all_uses_with(node, delete_user_cb=lambda user: user > node)
    elif target in _FORMS:
        form: Any = _FORMS[target](node)
        if form is not node:
            with graph.inserting_before(node):
                node.replace_all_uses_with(form if isinstance(form, fx.Node) else _placed(graph, form, node))
            graph.erase_node(node)


def _placed(graph: fx.Graph, call: Replacement, node: fx.Node) -> fx.Node:
    """The node of a call, whose value is that of `node`."""
    args = tuple([_sized(graph, each) for each in arg] if isinstance(arg, list) else arg for arg in call.args)
    placed = graph.call_function(call.target, args, dict(call.kwargs))  # pyright: ignore[reportArgumentType]
    value = node.meta["val"]
    placed.meta = {**node.meta, "val": value if call.several == 1 else (value,) * call.several}
    if call.several == 1:
        return placed
    first = graph.call_function(operator.getitem, (placed, 0))
    first.meta = dict(node.meta)
    return first


def _sized(graph: fx.Graph, size: object) -> Argument:
    if not isinstance(size, Size):
        return size  # pyright: ignore[reportReturnType]
    node = graph.call_function(_aten.sym_size.int, (size.source, size.axis))
    node.meta["val"] = size.source.meta["val"].shape[size.axis]
    return node


def _sizes(node: fx.Node) -> list[int | Size] | None:
    """The shape of a result, each free size as that of an input, or else of an argument; None where it is no one's.

    A size that is read off an input does not depend on what is computed.
    """
    found, sources = [], [*node.graph.find_nodes(op="placeholder"), *node.all_input_nodes]
    for size in node.meta["val"].shape:
        own = size if isinstance(size, int) else next(_same(size, sources), None)
        if own is None:
            return None
        found.append(own)
    return found


def _same(size: torch.SymInt, sources: Sequence[fx.Node]) -> Iterator[Size]:
    for source in sources:
        value = source.meta.get("val")
        for axis, own in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(own, torch.SymInt) and own.node.expr == size.node.expr:
                yield Size(source, axis)


def _shaped(target: torch._ops.OpOverload) -> Form:
    """A view of the shape of the result."""

    def form(node: fx.Node) -> Replacement | None:
        sizes = _sizes(node)
        return None if sizes is None else Replacement(target, (node.args[0], sizes))

    return form


def _as_it_is(node: fx.Node) -> fx.Node:
    return node


def _chunk(node: fx.Node) -> Replacement | None:
    source, count, axis = (*node.args, 0)[:3]
    size = source.meta["val"].shape[axis]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return Replacement(_aten.split.Tensor, (source, math.ceil(size / count), axis)) if isinstance(size, int) else None  # pyright: ignore[reportOperatorIssue]


def _transposed(node: fx.Node) -> Replacement:
    return Replacement(_aten.permute.default, (node.args[0], list(reversed(range(node.meta["val"].ndim)))))


def _converted(node: fx.Node) -> Replacement | fx.Node | None:
    source: Any = node.args[0]
    now, then = node.meta["val"], source.meta["val"]
    if now.device != then.device:
        return None
    return source if now.dtype is then.dtype else Replacement(_aten._to_copy.default, (source,), {"dtype": now.dtype})


def _contiguous(node: fx.Node) -> Replacement:
    return Replacement(_aten.clone.default, node.args[:1], {"memory_format": torch.contiguous_format, **node.kwargs})


def _dropout(node: fx.Node) -> Replacement:
    source, share, training = node.args
    if training and share:
        return Replacement(_aten.native_dropout.default, (source, share, True), several=2)
    return Replacement(_aten.clone.default, (source,))


def _batch_norm(node: fx.Node) -> Replacement:
    tensors, (training, *constants) = node.args[:5], node.args[5:8]
    if not training:
        return Replacement(_aten._native_batch_norm_legit_no_training.default, (*tensors, *constants), several=3)
    if tensors[3] is None:
        return Replacement(_aten._native_batch_norm_legit.no_stats, (*tensors[:3], True, *constants), several=3)
    return Replacement(_aten._native_batch_norm_legit_functional.default, (*tensors, True, *constants), several=5)


_FORMS: dict[object, Form] = {
    _aten.reshape.default: _as_it_is,
    _aten.flatten.using_ints: _shaped(_aten.view.default),
    _aten.unflatten.int: _shaped(_aten.view.default),
    _aten.view_as.default: _shaped(_aten.view.default),
    _aten.expand_as.default: _shaped(_aten.expand.default),
    _aten.chunk.default: _chunk,
    _aten.numpy_T.default: _transposed,
    _aten.to.dtype: _converted,
    _aten.to.dtype_layout: _converted,
    _aten.to.device: _converted,
    _aten.contiguous.default: _contiguous,
    _aten.dropout.default: _dropout,
    _aten.batch_norm.default: _batch_norm,
}

_COMPUTES = frozenset({_aten.batch_norm.default, _aten.dropout.default, _aten.contiguous.default})
"""Those of them whose result is a tensor of its own."""
