"""Directions that no reader sees: a softmax ignores a common shift of its scores, a LayerNorm the mean of its input.

The walk goes backwards. For every tensor it keeps *shift groups*: a label for each element, -1 for elements that may
not be moved. Adding any constant to all elements of one group changes no output. A parameter that only writes into
such groups has a law that is linear in the weights: its sum over a group is constant (THEORY §1, table).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx
from torch.fx.node import map_arg

from equipoise.graph.interface import Member
from equipoise.graph.matchers.movement import COPYING, DROPPING, KEEPING
from equipoise.graph.matchers.pointwise import SHAPE_ONLY
from equipoise.graph.precision import narrow_nodes, narrowest
from equipoise.graph.signal import Signal
from equipoise.graph.walk import Walk, operation_name

Groups = Tensor  # int64 labels in the shape of a tensor; -1 where nothing may move


@dataclass(frozen=True, eq=False)
class Rows:
    """Groups of the indices into one axis of a parameter: each index into the others may be shifted by itself."""

    groups: Tensor
    axis: int = 0


def find_shifts(walk: Walk, *, softmax: bool = False) -> list[Member]:
    """Members of shift laws: `index` holds one row of positions for each group.

    `softmax` says that the loss takes the softmax of the output over its last axis.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False))
    >>> [(m.parameter, m.index.shape) for m in find_shifts(Walk(capture(model, torch.ones(2, 3))))]
    [('0.weight', torch.Size([1, 1, 4])), ('0.bias', torch.Size([1, 1, 4]))]
    """
    seen: dict[fx.Node, dict[fx.Node, Any]] = {}
    outputs = walk.captured.output
    if softmax:
        for node in outputs:
            seen.setdefault(node, {})[walk.captured.graph.output_node()] = _along(_shape(walk, node), [-1])
    found: dict[str, list[Member]] = {}
    narrow = narrow_nodes(walk.captured.graph, walk.captured.parameters)
    below: dict[fx.Node, torch.dtype | None] = {}  # the narrowest dtype from a node down to what ignores its shift
    for node in reversed(walk.captured.graph.nodes):
        name = walk.captured.parameters.get(node.name)
        uses = [seen.get(node, {}).get(reader) for reader in _readers(node)]
        below[node] = narrowest(narrow.get(node), *(below.get(reader) for reader in seen.get(node, ())))
        if name is not None and name not in walk.frozen and uses:
            members = _members(name, _shape(walk, node), uses)
            found[name] = [replace(member, precision=below[node]) for member in members]
        elif node.op == "call_function" and isinstance(walk.signals[node], Signal):
            for source, groups in _sources(node, walk, _common(uses)):
                seen.setdefault(source, {})[node] = groups if node not in seen.get(source, {}) else None
    return [member for name in walk.captured.parameters.values() for member in found.get(name, ())]


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read a value; of an operation with several results, each of these."""
    for user in node.users:
        name = operation_name(user.target)
        if name in _SPLITTING:
            yield from user.users
        elif name not in SHAPE_ONLY:
            yield user


def _shape(walk: Walk, node: fx.Node) -> tuple[int, ...]:
    signal = walk.signals[node]
    return signal.shape if isinstance(signal, Signal) else ()


def _members(name: str, shape: tuple[int, ...], uses: list[Any]) -> Iterable[Member]:
    if len(uses) == 1 and isinstance(uses[0], Rows):
        rows = uses[0]
        yield from (Member(name, shape, (rows.axis,), index, 1.0) for index in _indices(rows.groups))
    elif (groups := _common(uses)) is not None:
        axes = tuple(range(len(shape)))
        yield from (Member(name, shape, axes, index, 1.0) for index in _indices(groups.reshape(-1)))


def _indices(groups: Tensor) -> Iterable[Tensor]:
    """Groups of equal size together: `(groups, 1, size)` positions."""
    labels, sizes = torch.unique(groups[groups >= 0], return_counts=True)
    for size in torch.unique(sizes).tolist():
        chosen = labels[sizes == size].tolist()
        yield torch.stack([torch.nonzero(groups == label).reshape(1, -1) for label in chosen])


# Groups -------------------------------------------------------------------------------------------------------------


def _along(shape: Sequence[int], axes: Sequence[int]) -> Groups:
    """One group for each index into the other axes."""
    axes = [axis % len(shape) for axis in axes]
    sizes = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return torch.arange(int(np.prod(sizes))).reshape(sizes).expand(tuple(shape))


def _common(uses: Sequence[Any]) -> Groups | None:
    """Groups whose shift none of the uses sees; a use that is None sees everything."""
    known = [use for use in uses if isinstance(use, Tensor)]
    if not known or any(isinstance(use, Rows) for use in uses):
        return None
    groups: Groups | None = known[0]
    seeing = torch.full((), -1).expand(known[0].shape)
    for other in [*known[1:], *([seeing] if len(known) < len(uses) else [])]:
        if groups is not None:
            groups = _pull(other, torch.arange(other.numel()).reshape(other.shape), other.shape, groups)
    return groups


def _pull(groups: Groups, origin: Tensor, shape: Sequence[int], also: Groups | None = None) -> Groups | None:
    """Groups of an input whose elements `origin` says where each element of the output comes from (-1: elsewhere).

    Inputs that write into one group must move together; those that write outside of all groups may not move.
    """
    count = int(np.prod(shape))
    labels, sources = groups.reshape(-1), origin.reshape(-1)
    if groups.numel() == 0:
        return torch.arange(count).reshape(tuple(shape))
    pairs, offset = [(sources, labels)], int(labels.max()) + 1
    if also is not None:
        pairs.append((sources, torch.where(also.reshape(-1) >= 0, also.reshape(-1) + offset, -1)))
        offset += int(also.max()) + 1
    elements, nodes = (torch.cat(column) for column in zip(*pairs, strict=True))
    foreign = torch.zeros(count + offset, dtype=torch.bool)
    foreign[elements[(nodes < 0) & (elements >= 0)]] = True
    foreign[count + nodes[(elements < 0) & (nodes >= 0)]] = True
    linked = (elements >= 0) & (nodes >= 0)
    edges = (elements[linked].numpy(), count + nodes[linked].numpy())
    network = coo_array((np.ones(len(edges[0])), edges), shape=(count + offset, count + offset))
    component = torch.from_numpy(connected_components(network, directed=False)[1]).long()
    bad = torch.zeros(int(component.max()) + 1, dtype=torch.bool)
    bad[component[foreign]] = True
    result = torch.where(bad[component[:count]], -1, component[:count]).reshape(tuple(shape))
    return result if bool((result >= 0).any()) else None


def _row_groups(groups: Groups, size: int) -> Rows | None:
    """Groups of the last axis that are whole groups in every row of a tensor."""
    rows = groups.reshape(-1, size)
    label = torch.arange(rows.shape[0])[:, None].expand_as(rows)
    pairs = torch.unique(torch.stack([rows.reshape(-1), label.reshape(-1)]), dim=1)
    crossing = pairs[0][1:][pairs[0][1:] == pairs[0][:-1]]
    apart = torch.where(torch.isin(rows, crossing), -1, rows)
    pulled = _pull(apart, torch.arange(size).expand_as(rows), (size,))
    return None if pulled is None else Rows(pulled)


# Operations ---------------------------------------------------------------------------------------------------------


def _sources(node: fx.Node, walk: Walk, groups: Groups | None) -> Iterator[tuple[fx.Node, Any]]:
    """Groups of the inputs of an operation: what it ignores by itself, or what the readers of its output ignore."""
    name = operation_name(node.target)
    if groups is None and (name in DROPPING or name == "getitem"):
        groups = torch.full((), -1).expand(_shape(walk, node))  # what is read here is seen, what is left out is not
    ignored = list(_IGNORING[name](node, walk)) if name in _IGNORING else []
    yield from ignored
    if not ignored and groups is not None:
        for names, through in _THROUGH:
            if name in names:
                yield from through(node, walk, groups)


def _inputs(node: fx.Node, count: int = 2) -> Iterator[fx.Node]:
    return (argument for argument in node.args[:count] if isinstance(argument, fx.Node))


def _centring(node: fx.Node, walk: Walk) -> Iterator[tuple[fx.Node, Groups]]:
    """`x - mean(x)`, written by hand: both nodes together ignore the mean."""
    mean = node if operation_name(node.target) == "mean" else _undetached(node.args[1])
    if not isinstance(mean, fx.Node) or operation_name(mean.target) != "mean" or len(mean.args) < 3:
        return
    source, dims, keep = mean.args[:3]
    readers = [reader for user in mean.users for reader in _detached_readers(user, walk)]
    centred = [user for user in readers if operation_name(user.target) == "sub" and user.args[0] is source]
    if keep and len(centred) == len(readers):
        yield source, _along(_shape(walk, source), dims)  # pyright: ignore[reportArgumentType, reportReturnType]


def _undetached(node: Any) -> Any:
    is_detach = isinstance(node, fx.Node) and operation_name(node.target) == "detach"
    return node.args[0] if is_detach else node


def _detached_readers(node: fx.Node, walk: Walk) -> list[fx.Node]:
    """The readers of a `detach`, where the walk looks through it; any other node itself."""
    through = walk.through_detach and operation_name(node.target) == "detach"
    return list(node.users) if through else [node]


def _softmax(node: fx.Node, walk: Walk) -> Iterator[tuple[fx.Node, Groups]]:
    source, dim = node.args[:2]
    yield source, _along(_shape(walk, source), [dim])  # pyright: ignore[reportArgumentType, reportReturnType]


def _layer_norm(node: fx.Node, walk: Walk) -> Iterator[tuple[fx.Node, Groups]]:
    source, normalised = node.args[:2]
    axes = range(-len(normalised), 0)  # pyright: ignore[reportArgumentType]
    yield source, _along(_shape(walk, source), axes)  # pyright: ignore[reportArgumentType, reportReturnType]


def _group_norm(node: fx.Node, walk: Walk) -> Iterator[tuple[fx.Node, Groups]]:
    source, count = node.args[:2]
    shape = _shape(walk, source)  # pyright: ignore[reportArgumentType]
    parted = (shape[0], count, shape[1] // count, *shape[2:])  # pyright: ignore[reportOperatorIssue]
    yield source, _along(parted, range(2, len(parted))).reshape(shape)  # pyright: ignore[reportArgumentType, reportReturnType]


def _batch_norm(node: fx.Node, walk: Walk) -> Iterator[tuple[fx.Node, Groups]]:
    source, training = node.args[0], node.args[5]
    shape = _shape(walk, source)  # pyright: ignore[reportArgumentType]
    if training:
        yield source, _along(shape, [axis for axis in range(len(shape)) if axis != 1])  # pyright: ignore[reportReturnType]


def _instance_norm(node: fx.Node, walk: Walk) -> Iterator[tuple[fx.Node, Groups]]:
    source, own = node.args[0], node.args[5]
    shape = _shape(walk, source)  # pyright: ignore[reportArgumentType]
    if own:
        yield source, _along(shape, range(2, len(shape)))  # pyright: ignore[reportReturnType]


def _attention(node: fx.Node, walk: Walk) -> Iterator[tuple[fx.Node, Groups]]:
    """A shift of all keys alike shifts every score of a query alike."""
    key = node.args[1]
    yield key, _along(_shape(walk, key), [-2])  # pyright: ignore[reportArgumentType, reportReturnType]


_IGNORING: dict[str, Callable[[fx.Node, Walk], Iterator[tuple[fx.Node, Groups]]]] = {
    "mean": _centring,
    "sub": _centring,
    "softmax": _softmax,
    "_softmax": _softmax,
    "log_softmax": _softmax,
    "_log_softmax": _softmax,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "_native_batch_norm_legit_functional": _batch_norm,
    "instance_norm": _instance_norm,
    "scaled_dot_product_attention": _attention,
}


def _movement(node: fx.Node, walk: Walk, groups: Groups) -> Iterator[tuple[fx.Node, Groups | None]]:
    """Element numbers, moved by the operation itself, say where every element comes from."""
    source = next(_inputs(node))
    if operation_name(node.target) != "getitem":
        yield source, _pull(groups, _numbers(node, source, walk), _shape(walk, source))
    elif operation_name(source.target) in _SPLITTING:
        whole = next(_inputs(source))
        part = _numbers(source, whole, walk)[node.args[1]]
        yield whole, _pull(groups, part, _shape(walk, whole))


def _numbers(node: fx.Node, source: fx.Node, walk: Walk) -> Any:
    """A tensor of numbers, or as many as the operation returns tensors."""
    shape = _shape(walk, source)
    others = [_plain(argument, walk) for argument in node.args[1:]]
    numbers = torch.arange(int(np.prod(shape))).reshape(shape)
    if operation_name(node.target) in ("view", "_unsafe_view", "reshape"):
        return numbers.reshape(_shape(walk, node))
    return node.target(numbers, *others) if operation_name(node.target) not in _SAME else numbers  # pyright: ignore[reportCallIssue]


def _plain(argument: Any, walk: Walk) -> Any:
    return map_arg(argument, lambda node: walk.signals[node])


def _sum(node: fx.Node, walk: Walk, groups: Groups) -> Iterator[tuple[fx.Node, Groups | None]]:
    for source in _inputs(node):
        shape = _shape(walk, source)
        numbers = torch.arange(int(np.prod(shape))).reshape(shape).expand(groups.shape)
        yield source, _pull(groups, numbers, shape)


def _scaling(node: fx.Node, walk: Walk, groups: Groups) -> Iterator[tuple[fx.Node, Groups | None]]:
    if not isinstance(node.args[1], fx.Node):
        yield next(_inputs(node)), groups


def _masking(node: fx.Node, walk: Walk, groups: Groups) -> Iterator[tuple[fx.Node, Groups | None]]:
    """Minus infinity stays what it is under any shift."""
    if node.args[2] == float("-inf"):
        yield next(_inputs(node, 1)), groups


def _linear(node: fx.Node, walk: Walk, groups: Groups) -> Iterator[tuple[fx.Node, Any]]:
    """Rows of the weight may be shifted where every position alone allows it, the bias where all do together."""
    _, *sources = _inputs(node, 3)
    size = groups.shape[-1]
    for source, rows in zip(sources, (True, False), strict=False):
        numbers = torch.arange(size).expand(groups.shape)
        yield source, _row_groups(groups, size) if rows else _pull(groups, numbers, (size,))


def _convolution(node: fx.Node, walk: Walk, groups: Groups) -> Iterator[tuple[fx.Node, Any]]:
    _, *sources = _inputs(node, 3)
    last = groups.movedim(1, -1)
    size = last.shape[-1]
    for source, rows in zip(sources, (True, False), strict=False):
        yield source, _row_groups(last, size) if rows else _pull(last, torch.arange(size).expand(last.shape), (size,))


def _embedding(node: fx.Node, walk: Walk, groups: Groups) -> Iterator[tuple[fx.Node, Any]]:
    table = next(_inputs(node))
    rows = _row_groups(groups, groups.shape[-1])
    yield table, None if rows is None else Rows(rows.groups, axis=1)


def _cat(node: fx.Node, walk: Walk, groups: Groups) -> Iterator[tuple[fx.Node, Groups | None]]:
    sources: Any = node.args[0]
    shapes = [_shape(walk, source) for source in sources]
    for place, (source, shape) in enumerate(zip(sources, shapes, strict=True)):
        numbers = [torch.full(other, -1) for other in shapes]
        numbers[place] = torch.arange(int(np.prod(shape))).reshape(shape)
        joined: Any = torch.cat(numbers, *node.args[1:])  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield source, _pull(groups, joined, shape)


def _product(node: fx.Node, walk: Walk, groups: Groups) -> Iterator[tuple[fx.Node, Any]]:
    """`q kᵀ` whose rows may be shifted: all keys alike."""
    _, right = _inputs(node)
    if torch.equal(groups, groups[..., :1].expand_as(groups)) and not _weight(walk, right):
        yield right, _along(_shape(walk, right), [-1])


def _weight(walk: Walk, node: fx.Node) -> bool:
    return bool(walk.signals[node].weights)


_SPLITTING = ("split", "chunk", "split_with_sizes", "unbind", "tensor_split", "unsafe_split")
_SAME = ("_to_copy", "clone", "contiguous", "alias", "neg", "native_dropout_eval")
_THROUGH: list[tuple[tuple[str, ...], Callable[[fx.Node, Walk, Groups], Iterator[tuple[fx.Node, Any]]]]] = [
    ((*KEEPING, *DROPPING, *COPYING, "_to_copy", "neg", "getitem"), _movement),
    (("add", "sub"), _sum),
    (("mul", "div"), _scaling),
    (("masked_fill",), _masking),
    (("linear",), _linear),
    (("embedding",), _embedding),
    (("conv1d", "conv2d", "conv3d"), _convolution),
    (("matmul", "bmm"), _product),
    (("cat",), _cat),
]
