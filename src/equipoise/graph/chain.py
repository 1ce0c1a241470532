"""Feedforward chains of linear maps with activations between them; and the linear tail of any network (T3)."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from equipoise.graph.capture import Captured
from equipoise.graph.evaluate import kinks
from equipoise.graph.ops import operation_name, operator_of
from equipoise.graph.ops.operator import Trait
from equipoise.graph.piecewise import Rectifier

_aten = torch.ops.aten
SHAPING = frozenset(
    {
        _aten.view.default,
        _aten.reshape.default,
        _aten.flatten.using_ints,
        _aten.clone.default,
        _aten.alias.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
    }
)


@dataclass(frozen=True)
class Layer:
    """One linear map `z = W h + b` and the activation that follows it, if any."""

    weight: str
    bias: str | None
    negative_slope: float | None  # of the activation; None: linear

    @property
    def kind(self) -> str:
        """`relu` (any piecewise-linear activation) or `linear`."""
        return "linear" if self.negative_slope is None else "relu"


def read_chain(captured: Captured) -> tuple[Layer, ...] | None:
    """The layers of a feedforward chain from the input to the output, or `None` for any other network.

    >>> from equipoise.graph.capture import capture
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1, bias=False))
    >>> [(layer.weight, layer.bias, layer.kind) for layer in read_chain(capture(model, torch.ones(4, 3)))]
    [('0.weight', '0.bias', 'relu'), ('2.weight', None, 'linear')]
    """
    slopes = {kink.node: kink.map.negative_slope for kink in kinks(captured) if isinstance(kink.map, Rectifier)}
    layers: list[Layer] = []
    current = _only([node for node in captured.graph.nodes if node.name in captured.inputs])
    while current is not None and current not in captured.output:
        current = _only([user for user in current.users if not _reads_a_size(user)])
        if current is None or not _extend(layers, current, captured.parameters, slopes):
            return None
    used = [name for layer in layers for name in (layer.weight, layer.bias) if name]
    return tuple(layers) if current is not None and sorted(used) == sorted(captured.parameters.values()) else None


LINEAR_MAPS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})


def successions(captured: Captured) -> tuple[tuple[str, str | None, str], ...]:
    """Layers that follow each other: (weight and bias of one, weight of a next one that reads it), in any network.

    Between the two, every channel is left to itself: activations, dropout, pooling, or nothing. A convolution in groups
    reads no vector of all channels, and follows none.

    >>> from equipoise.graph.capture import capture
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.GELU(), torch.nn.Linear(2, 1, bias=False))
    >>> successions(capture(model, torch.ones(4, 3)))
    (('0.weight', '0.bias', '2.weight'),)
    """
    found = []
    for node in captured.graph.nodes:
        weight, bias = _map(node, captured)
        if weight is not None:
            found += [(weight, bias, above) for above in _readers(node, captured) if above != weight]
    return tuple(dict.fromkeys(found))


def channel_axis(node: fx.Node) -> int:
    """The axis of the neurons, or channels, in what a node computes: that of the linear map that writes it.

    >>> from equipoise.graph.capture import capture
    >>> model = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 1), torch.nn.ReLU())
    >>> [channel_axis(node) for node in capture(model, torch.ones(4, 2, 5)).output]
    [1]
    """
    while node.all_input_nodes and not operator_of(node).is_a(Trait.PRODUCT | Trait.CONVOLUTION):
        node = node.all_input_nodes[0]
    return 1 if operator_of(node).is_a(Trait.CONVOLUTION) else -1


def _map(node: fx.Node, captured: Captured) -> tuple[str | None, str | None]:
    """Weight and bias of a linear map; None where they are no parameters."""
    if operation_name(node.target) not in LINEAR_MAPS:
        return None, None
    names = [captured.parameters.get(argument.name) for argument in node.args[1:3] if isinstance(argument, fx.Node)]
    return (names[0] if names else None), (names[1] if len(names) > 1 else None)


def _readers(node: fx.Node, captured: Captured) -> list[str]:
    """The weights that read a node's channels."""
    readers = []
    for user in node.users:
        weight, _ = _map(user, captured)
        if weight is not None and user.args[0] is node:
            readers += [weight] if _reads_all(user) else []
        elif operator_of(user).is_a(Trait.CHANNELWISE) or user.target is operator.getitem:
            readers += _readers(user, captured)
    return readers


def _reads_all(node: fx.Node) -> bool:
    """Whether each row of a map reads all channels: those of a convolution in groups do not."""
    read, weight = (argument.meta["val"].shape for argument in node.args[:2] if isinstance(argument, fx.Node))
    return weight[1] == read[1 - len(weight)]


def _extend(layers: list[Layer], node: fx.Node, parameters: dict[str, str], slopes: dict[fx.Node, float]) -> bool:
    """Take one more operation into the chain; False where it does not belong to one."""
    if node.target is _aten.linear.default:
        names = [parameters.get(argument.name) for argument in node.args[1:] if isinstance(argument, fx.Node)]
        if not names or None in names or node.meta["val"].ndim != 2:  # on tokens: shared weights, and no chain
            return False
        layers.append(Layer(str(names[0]), names[1] if len(names) > 1 else None, None))
        return True
    if node in slopes and layers and layers[-1].negative_slope is None:
        layers[-1] = Layer(layers[-1].weight, layers[-1].bias, slopes[node])
        return True
    return node.target in SHAPING or node.target is operator.getitem


def _reads_a_size(node: fx.Node) -> bool:
    return node.target is _aten.sym_size.int


def _only(found: list[fx.Node]) -> fx.Node | None:
    return found[0] if len(found) == 1 else None


# The linear tail ----------------------------------------------------------------------------------------------------

_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)


def read_tail(captured: Captured) -> tuple[Layer, ...]:
    """`W_{K0}, …, W_L` of T3, from the input up: the linear layers that end in the output, nothing but shaping between.

    Fully connected layers and 1×1 convolutions, each used once. The one output depends on what such a layer writes
    through the next one alone, and what the first of them reads may be anything. Empty where the output is not that of
    such a layer, or there are several. A convolution with taps is the whole tail where it is the last layer and writes
    one place: it reads through another matrix than it writes with.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Linear(2, 1, bias=False))
    >>> [layer.weight for layer in read_tail(capture(model, torch.ones(5, 3)))]
    ['2.weight', '3.weight']
    """
    return tuple(_downwards(captured))[::-1]


def linear_tail(chain: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The same of a feedforward chain that was read already: its last layers that no activation follows.

    >>> chain = (Layer("a", None, 0.0), Layer("b", None, None), Layer("c", None, None))
    >>> [layer.weight for layer in linear_tail(chain)]
    ['b', 'c']
    """
    rectified = [position for position, layer in enumerate(chain) if layer.kind != "linear"]
    return chain[max(rectified) + 1 :] if rectified else chain


def _downwards(captured: Captured) -> Iterator[Layer]:
    """The layers of the tail, from the output down."""
    node: Any = captured.output[0] if len(captured.output) == 1 else None
    width = None  # of what the layer above reads
    while node is not None:
        if width is None and _to_one_place(node) and (last := own_layer(captured, node)) is not None:
            yield last
            return
        if (layer := _layer_of(captured, node)) is not None:
            if width not in (None, node.meta["val"].shape[_features(node)]):
                return
            yield layer
            width = node.args[1].meta["val"].shape[1]
        elif node.target not in SHAPING:
            return
        node = node.args[0]


def _layer_of(captured: Captured, node: fx.Node) -> Layer | None:
    """The layer that a node computes, if it is fully connected or a 1×1 convolution of parameters used only here."""
    return own_layer(captured, node) if node.target is _aten.linear.default or _pointwise(node) else None


def own_layer(captured: Captured, node: fx.Node) -> Layer | None:
    """The layer of a map whose weight, and bias, are parameters that are used only here."""
    sources = [argument for argument in node.args[1:3] if isinstance(argument, fx.Node)]
    names = [captured.parameters.get(source.name) for source in sources]
    if not names or None in names or any(len(source.users) > 1 for source in sources):
        return None
    return Layer(str(names[0]), names[1] if len(names) > 1 else None, None)


def _pointwise(node: fx.Node) -> bool:
    weight: Any = node.args[1] if _mixing(node) else None
    return weight is not None and bool(weight.meta["val"].shape[2:].numel() == 1)


def _to_one_place(node: fx.Node) -> bool:
    """Whether a convolution with taps writes a single position."""
    return _mixing(node) and not _pointwise(node) and bool(node.meta["val"].shape[2:].numel() == 1)


def _mixing(node: fx.Node) -> bool:
    """Whether this is a convolution of all channels."""
    return node.target in _CONVOLUTIONS and bool(len(node.args) <= 6 or node.args[6] == 1)


def _features(node: fx.Node) -> int:
    """The axis of a layer's output that its rows write."""
    return 1 if node.target in _CONVOLUTIONS else -1
