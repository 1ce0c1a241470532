"""The linear tail of any network: its last linear layers, one after another, whatever stands below (T3)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from equipoise.graph.capture import Captured
from equipoise.graph.chain import SHAPING, Layer

_aten = torch.ops.aten
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
        if width is None and _to_one_place(node) and (last := _owned(captured, node)) is not None:
            yield last
            return
        if (layer := _layer(captured, node)) is not None:
            if width not in (None, node.meta["val"].shape[_features(node)]):
                return
            yield layer
            width = node.args[1].meta["val"].shape[1]
        elif node.target not in SHAPING:
            return
        node = node.args[0]


def _layer(captured: Captured, node: fx.Node) -> Layer | None:
    """The layer that a node computes, if it is fully connected or a 1×1 convolution of parameters used only here."""
    return _owned(captured, node) if node.target is _aten.linear.default or _pointwise(node) else None


def _owned(captured: Captured, node: fx.Node) -> Layer | None:
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
