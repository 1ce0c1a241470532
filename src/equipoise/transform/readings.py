"""The graph read with other maps in place of some operations, for which the units of a model have scales (T9).

A permutation of neurons commutes with every map that acts on each of them alike, smooth ones included, and with a
normalisation over all of them; one of hidden units with a recurrent cell, one of heads with attention. Laws have scales
alone. So the graph is read once more with a map in place of each of these under which what is exchanged together has
one scale: the propagation of symmetries then finds the weights that each unit carries. For signs, only odd maps are so
read. A weight that is used in several places has a name of its own in each, for what is exchanged need not scale alike.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from equipoise.graph.capture import Captured
from equipoise.graph.interface import Interface, find_interfaces
from equipoise.graph.ops import operator_of
from equipoise.graph.propagate import SymmetryPropagation, operation_name, upstream
from equipoise.laws.custom_ops import declared
from equipoise.laws.derive import laws_of
from equipoise.laws.law import Law

Reference = Callable[..., object]

_ODD = ["tanh", "erf", "sin", "atan", "hardtanh", "softsign", "asinh"]
_EVEN = ["gelu", "silu", "sigmoid", "softplus", "elu", "selu", "celu", "mish", "hardswish", "hardsigmoid", "logsigmoid"]
_EVEN += ["log_sigmoid_forward", "relu6", "exp", "cos", "relu", "leaky_relu", "prelu", "clamp", "clamp_min"]
_ROOTS = ("sqrt", "rsqrt")  # of a statistic over the units, where a normalisation is written out
_PRODUCTS = ("matmul", "bmm")
_PASSED = ("dropout", "_to_copy", "clone", "expand", "alias")  # between a softmax and the values
_USE = "\0"  # between the name of a parameter and the number of its use


def derived(captured: Captured) -> list[Law]:
    """The laws of the graph as it is."""
    return _laws(captured, {})


def units(captured: Captured) -> list[Law]:
    """One scale for each neuron, channel and hidden unit: what moves with it is exchanged with it."""
    return _read_apart(_plain(captured), _ALIKE)


def signs(captured: Captured) -> list[Law]:
    """One scale for each unit that a sign may be taken from."""
    return _laws(_plain(captured), _SIGNED)


def signs_apart(captured: Captured) -> list[Law]:
    """As `signs`, where every use of a weight has a name of its own."""
    return _laws(_untied(_plain(captured)), _SIGNED)


def heads(captured: Captured) -> list[Law]:
    """Scales of queries, of keys and of values of each head of attention, and of what goes with them."""
    fused = _plain(_fused(captured))
    attention = [node for node in fused.graph.nodes if operation_name(node.target) in _HEADS]
    written = {name for node in attention for name in upstream(fused, node)}
    laws = _read_apart(fused, {**_ALIKE, **_HEADS})
    return [law for law in laws if written.issuperset(law.interface.producers)]


def repeated(captured: Captured) -> set[str]:
    """The parameters that are used in several places."""
    return {captured.parameters[node.name] for node in _placeholders(captured.graph, captured) if len(node.users) > 1}


def _read_apart(captured: Captured, references: Mapping[str, Reference]) -> list[Law]:
    """The laws with every weight under one name, and those with a name for each of its uses, if any has several.

    The first know which uses go together where the map between is linear, the others find units that a weight both
    writes and reads.
    """
    laws = _laws(captured, references)
    return [*laws, *_laws(_untied(captured), references)] if repeated(captured) else laws


def attends(captured: Captured) -> bool:
    """Whether there is attention, or a softmax that may be part of it."""
    names = {operation_name(node.target) for node in captured.graph.nodes}
    return not names.isdisjoint(("scaled_dot_product_attention", "softmax", "_softmax"))


def _laws(captured: Captured, references: Mapping[str, Reference]) -> list[Law]:
    propagation = SymmetryPropagation(captured, (), {}, {**declared(), **references})
    found = laws_of(find_interfaces(propagation))
    return [replace(law, name=re.sub(rf"{_USE}\d+", "", law.name), interface=_named(law.interface)) for law in found]


def _named(interface: Interface) -> Interface:
    """The interface with the parameters under their own names."""
    members = (replace(member, parameter=member.parameter.split(_USE)[0]) for member in interface.members)
    return replace(interface, members=tuple(members))


# Maps in place of operations ------------------------------------------------------------------------------------------


def _alike(x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """A map that acts on each element alike, as one whose symmetry is known."""
    return x.abs()


def _held(x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """A map that keeps no sign."""
    return x.log2()


def _gated(x: Tensor, axis: int = -1) -> Tensor:
    """Both halves of a unit are exchanged with it."""
    value, gate = x.chunk(2, axis)
    return value * gate.abs()


def _layer_norm(x: Tensor, shape: Sequence[int], gain: Tensor | None = None, bias: Tensor | None = None, *_: object):
    return _affine(x.abs(), gain, bias)


def _rms_norm(x: Tensor, shape: Sequence[int], gain: Tensor | None = None, *_: object):
    return _affine(x.abs(), gain, None)


def _batch_norm(x: Tensor, gain: Tensor | None, bias: Tensor | None, *_: object):
    return _instance_norm(x, gain, bias), *[torch.zeros(1)] * 4


def _centred(x: Tensor, shape: Sequence[int], gain: Tensor | None = None, bias: Tensor | None = None, *_: object):
    """Subtracting a mean keeps only a sign that all the elements it is taken over share."""
    axes = tuple(range(-len(shape), 0))
    return _affine(x.abs().sum(axes, keepdim=True).expand(x.shape), gain, bias)


def _held_groups(x: Tensor, groups: int, gain: Tensor | None = None, bias: Tensor | None = None, *_: object):
    """A sign that several channels have in common, and an order of them, are not found together: it is left alone."""
    return _instance_norm(x.log2(), gain, bias)


def _group_norm(x: Tensor, groups: int, gain: Tensor | None = None, bias: Tensor | None = None, *_: object):
    return _instance_norm(x, gain, bias)


def _instance_norm(x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None, *_: object):
    along = [1, -1, *[1] * (x.ndim - 2)]
    return _affine(x.abs(), *(each if each is None else each.reshape(along) for each in (gain, bias)))


def _affine(x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if gain is None else x * gain
    return x if bias is None else x + bias


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *_: object,
    enable_gqa: bool = False,
    **keywords: object,
) -> Tensor:
    """One scale for all queries of a head, for its keys and for its values."""
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    whole = [each.abs().sum((-2, -1), keepdim=True) for each in (key, value)]
    scores = query.abs().sum(-1, keepdim=True) * whole[0]
    scores = scores if mask is None else scores + mask.abs().sum(-1, keepdim=True)
    return (scores * whole[1]).expand(*query.shape[:-1], value.shape[-1])


Gates = Callable[[Sequence[Tensor]], Tensor]


def _recurrent(gates: int, cell: Gates) -> Reference:
    """Layers whose hidden units have one scale each, from those of their gates."""

    def read(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        packed = isinstance(args[2], list | tuple)
        state, weights, biases, layers, _, _, bidirectional = args[1:8] if packed else args[:7]
        first = not packed and bool(args[7])  # whether the batch is
        start, *rest = state if isinstance(state, list | tuple) else [state]
        steps = x.transpose(0, 1) if first else x
        directions = 2 if bidirectional else 1
        size = len(weights) // (layers * directions)
        runs: list[tuple[Tensor, Tensor]] = []
        for layer in range(layers):
            places = [size * number for number in range(layer * directions, (layer + 1) * directions)]
            for at in places:
                starts = [each[len(runs)] for each in (start, *rest)]
                runs.append(_cells(steps, weights[at : at + size], bool(biases), gates, cell, starts))
            steps = torch.cat([hidden for hidden, _ in runs[-directions:]], -1)
        final = [_at_one_time([run[place] for run in runs], start.shape[1]) for place in range(1 + len(rest))]
        return (steps.transpose(0, 1) if first else steps), *final

    return read


def _at_one_time(runs: Sequence[Tensor], batch: int) -> Tensor:
    return torch.stack([each.flatten(0, -2)[:1].expand(batch, -1) for each in runs])


def _cells(
    x: Tensor, weights: Sequence[Tensor], biases: bool, gates: int, cell: Gates, starts: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Hidden states, and the states of the cells that they are projected from; those at the start move with them."""
    first, *cells = (each[:1].abs() for each in starts)  # of one example: packed batches have their steps in its place
    inward, across, *others = weights
    own = others[:2] if biases else (None, None)
    projection = others[2 if biases else 0 :]

    def hidden(*preactivations: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(*(each.chunk(gates, -1) for each in preactivations), strict=True)
        found = reduce(torch.add, cells, cell([reduce(torch.add, part) for part in parts]))
        return (F.linear(found, projection[0]) if projection else found) + first, found

    written = F.linear(x, inward, own[0])
    return hidden(written, F.linear(hidden(written)[0], across, own[1]))


def _cell(gates: int, cell: Gates) -> Reference:
    """One step of `_recurrent`."""

    def read(x: Tensor, state: Any, inward: Tensor, across: Tensor, *biases: Tensor | None) -> object:
        held, *cells = state if isinstance(state, list | tuple) else [state]
        own = biases or (None, None)
        parts = [F.linear(x, inward, own[0]).chunk(gates, -1), F.linear(held, across, own[1]).chunk(gates, -1)]
        hidden = cell([written + read for written, read in zip(*parts, strict=True)])
        hidden = hidden if cells else hidden + held.abs()
        return (hidden, *[hidden + each.abs() for each in cells]) if cells else hidden

    return read


def _together(gates: Sequence[Tensor]) -> Tensor:
    """All gates of a unit are exchanged with it."""
    return sum((each.abs() for each in gates[1:]), gates[0].abs())


def _signed(odd: int) -> Gates:
    """A cell that is odd in one of its gates, and even in none of the others."""

    def cell(gates: Sequence[Tensor]) -> Tensor:
        found = gates[odd].abs()
        for place, gate in enumerate(gates):
            found = found if place == odd else found * gate.log2()
        return found

    return cell


_CELLS = {"rnn_tanh": (1, 0), "gru": (3, 2), "lstm": (4, 2)}  # gates, and which of them is the candidate


def _recurrences(cell: Callable[[int], Gates]) -> dict[str, Reference]:
    layers = {name: _recurrent(gates, cell(odd)) for name, (gates, odd) in _CELLS.items()}
    return {**layers, **{f"{name}_cell": _cell(gates, cell(odd)) for name, (gates, odd) in _CELLS.items()}}


_NORMS: dict[str, Reference] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "_native_batch_norm_legit_functional": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
}
_ALIKE: dict[str, Reference] = {
    **dict.fromkeys(_ODD + _EVEN, _alike),
    "glu": _gated,
    **_NORMS,
    **_recurrences(lambda odd: _together),
}
_SIGNED: dict[str, Reference] = {
    **dict.fromkeys(_EVEN, _held),
    **dict.fromkeys(_ODD, _alike),
    **_NORMS,
    "layer_norm": _centred,
    "group_norm": _held_groups,
    **_recurrences(_signed),
}
_HEADS: dict[str, Reference] = {"scaled_dot_product_attention": _attention}


# Graphs made ready ----------------------------------------------------------------------------------------------------


def _copied(captured: Captured) -> fx.Graph:
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(captured.graph, copied))
    return graph


def _placeholders(graph: fx.Graph, captured: Captured) -> list[fx.Node]:
    """Those of parameters."""
    return [node for node in graph.nodes if node.op == "placeholder" and node.name in captured.parameters]


def _untied(captured: Captured) -> Captured:
    """The graph with a placeholder for each use of a parameter."""
    graph, parameters = _copied(captured), dict(captured.parameters)
    for node in _placeholders(graph, captured):
        for number, user in enumerate(list(node.users)[1:]):
            with graph.inserting_after(node):
                own = graph.placeholder(f"{node.name}_use_{number}")
            own.meta = dict(node.meta)
            user.replace_input_with(node, own)
            parameters[own.name] = f"{parameters[node.name]}{_USE}{number}"
    return replace(captured, module=fx.GraphModule(captured.module, graph), parameters=parameters)


def _plain(captured: Captured) -> Captured:
    """The graph without scales that a permutation of the units leaves alone.

    There are ones in place of roots of means, and products in place of normed weights, whose norms and directions are
    exchanged together.
    """
    graph = _copied(captured)
    for node in list(graph.nodes):
        if operation_name(node.target) == "_weight_norm":
            with graph.inserting_before(node):
                product = graph.call_function(torch.ops.aten.mul.Tensor, node.args[:2])
            product.meta = dict(node.meta)
            node.replace_all_uses_with(product)
        elif operation_name(node.target) in _ROOTS and _takes_a_mean(node):
            with graph.inserting_before(node):
                one = graph.call_function(torch.ops.aten.ones.default, ([],))
                one.meta["val"] = torch.ones(())
            node.replace_all_uses_with(one)
    graph.eliminate_dead_code()
    return replace(captured, module=fx.GraphModule(captured.module, graph))


def _takes_a_mean(node: fx.Node) -> bool:
    queue = list(node.all_input_nodes)
    for _ in range(4):  # rsqrt ← add eps ← mean ← pow
        names = [operation_name(each.target) for each in queue]
        if "mean" in names or "var" in names:
            return True
        queue = [source for each in queue for source in each.all_input_nodes]
    return False


def _fused(captured: Captured) -> Captured:
    """The graph with fused attention, without a mask that no parameter enters, where it is written out or masked."""
    graph = _copied(captured)
    trained = _depending(graph, captured.parameters)
    for node in list(graph.nodes):
        name = operation_name(node.target)
        if name == "scaled_dot_product_attention":
            masks = [each for each in (*node.args[3:4], node.kwargs.get("attn_mask")) if isinstance(each, fx.Node)]
            node.args = (*node.args[:3], *[each if each in trained else None for each in masks])
            node.kwargs = {key: value for key, value in node.kwargs.items() if key in ("scale", "enable_gqa")}
        elif name in ("softmax", "_softmax"):
            _fuse(graph, node, trained)
    graph.eliminate_dead_code()
    return replace(captured, module=fx.GraphModule(captured.module, graph))


def _fuse(graph: fx.Graph, softmax: fx.Node, trained: set[fx.Node]) -> None:
    """Replace `softmax(q kᵀ + bias) v` by fused attention."""
    scores, bias = _scores(softmax, trained)
    weights = softmax
    while len(weights.users) == 1 and operation_name(next(iter(weights.users)).target) in _PASSED:
        weights = next(iter(weights.users))
    products = [user for user in weights.users if operation_name(user.target) in _PRODUCTS and user.args[0] is weights]
    if scores is None or not products:
        return
    query, turned = scores.args[:2]
    assert isinstance(turned, fx.Node)
    for product in products:
        with graph.inserting_before(product):
            key = graph.call_function(torch.ops.aten.transpose.int, (turned, -2, -1))
            key.meta["val"] = turned.meta["val"].transpose(-2, -1)
            fused = graph.call_function(
                torch.ops.aten.scaled_dot_product_attention.default, (query, key, product.args[1], bias)
            )
            fused.meta = dict(product.meta)
        product.replace_all_uses_with(fused)


def _scores(softmax: fx.Node, trained: set[fx.Node]) -> tuple[fx.Node | None, fx.Node | None]:
    """The product of queries and keys that a softmax takes, scaled and masked, and what a parameter adds to it."""
    bias: fx.Node | None = None
    node = next(iter(softmax.all_input_nodes), None)
    while node is not None and operation_name(node.target) not in _PRODUCTS:
        moving = [each for each in node.all_input_nodes if each in trained]
        own = [each for each in moving if not _leads_to_product(each)]
        if operation_name(node.target) == "add" and len(moving) == 2 and len(own) == 1 and bias is None:
            bias, moving = own[0], [each for each in moving if each is not own[0]]
        elementwise = operation_name(node.target) in ("add", "sub", "mul", "div", "masked_fill", "where", *_PASSED)
        node = moving[0] if len(moving) == 1 and (elementwise or operator_of(node).passes) else None
    return node, bias


def _leads_to_product(node: fx.Node) -> bool:
    """Whether a node is a product of two tensors, scaled or moved."""
    while operation_name(node.target) not in _PRODUCTS:
        sources = [each for each in node.all_input_nodes if each.op == "call_function"]
        if len(sources) != 1:
            return False
        node = sources[0]
    return True


def _depending(graph: fx.Graph, parameters: Mapping[str, str]) -> set[fx.Node]:
    """The nodes that parameters enter, other than by their shapes."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.name in parameters or (found.intersection(node.all_input_nodes) and "sym_size" not in str(node.target)):
            found.add(node)
    return found
