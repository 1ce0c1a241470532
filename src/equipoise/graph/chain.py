"""Feedforward chains: networks that are one linear map after another, with activations between."""

import operator
from dataclasses import dataclass

import torch
from torch import fx

from equipoise.graph import operations
from equipoise.graph.capture import Captured
from equipoise.graph.evaluate import kinks
from equipoise.graph.piecewise import Rectifier
from equipoise.graph.walk import operation_name

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


_MAPS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
_WRITING = ("conv", "linear", "matmul", "mm", "addmm", "bmm")


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
    while node.all_input_nodes and not operation_name(node.target).startswith(_WRITING):
        node = node.all_input_nodes[0]
    return 1 if operation_name(node.target).startswith("conv") else -1


def _map(node: fx.Node, captured: Captured) -> tuple[str | None, str | None]:
    """Weight and bias of a linear map; None where they are no parameters."""
    if operation_name(node.target) not in _MAPS:
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
        elif operation_name(user.target) in operations.CHANNELWISE or user.target is operator.getitem:
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
