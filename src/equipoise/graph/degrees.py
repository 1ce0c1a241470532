"""Homogeneity in the weights, proved by operations: `f(x; a w) = a^L f(x; w)` for `a > 0` (docs/theory.md §0)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from equipoise.graph.capture import Captured
from equipoise.graph.ops.movement import COPYING, DROPPING, KEEPING
from equipoise.graph.propagate import operation_name

_PRODUCTS = frozenset({"linear", "matmul", "mm", "bmm", "mv", "mul", "conv1d", "conv2d", "conv3d", "einsum"})
_SUMS = frozenset({"add", "sub", "cat", "stack", "maximum", "minimum"})
_KEPT = frozenset(
    {"relu", "leaky_relu", "abs", "neg", "sum", "mean", "amax", "max", "getitem", "_to_copy", "contiguous"}
    | {"max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool2d"}
    | {"max_pool2d_with_indices", "adaptive_avg_pool1d", "alias", "_unsafe_view", "clone"}
    | set(KEEPING)
    | set(DROPPING)
    | set(COPYING)
)


@dataclass(frozen=True)
class Homogeneity:
    """The degree `L` in all weights together, or the operation that stands in the way."""

    degree: int | None
    obstacle: str = ""


class _Obstacle(Exception):
    pass


def homogeneity(captured: Captured) -> Homogeneity:
    """The degree of the output in the parameters, where every operation on the way is homogeneous.

    A proof, not a measurement: parameters have degree 1, inputs and constants 0; products add degrees, sums need equal
    ones. So a bias of the first layer does no harm, one further up does, and so does an identity skip.

    >>> import torch
    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> read = lambda *layers: homogeneity(capture(nn.Sequential(*layers), torch.ones(2, 3)))
    >>> read(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1, bias=False))
    Homogeneity(degree=2, obstacle='')
    >>> read(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).obstacle
    'linear: terms of degrees 2 and 1'
    >>> read(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).obstacle
    'tanh of what has degree 1'
    """
    degrees: dict[fx.Node, int] = {}
    try:
        for node in captured.graph.nodes:
            if node.op == "call_function":
                degrees[node] = _degree(node, degrees)
            else:
                degrees[node] = int(node.name in captured.parameters)
        found = {degrees[node] for node in captured.output}
    except _Obstacle as obstacle:
        return Homogeneity(None, str(obstacle))
    return Homogeneity(found.pop()) if len(found) == 1 else Homogeneity(None, f"outputs of degrees {sorted(found)}")


def _degree(node: fx.Node, degrees: Mapping[fx.Node, int]) -> int:
    name = operation_name(node.target)
    sources = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node)]
    found = [degrees[source] for source in sources]
    if not any(found):
        return 0
    if name in _PRODUCTS:
        product = sum(found[:2])
        return _agreed(name, [product, *found[2:]])
    if name == "prelu":  # the trained slope enters below zero only
        return _agreed(name, [found[0], sum(found)])
    if name in _SUMS:
        return _agreed(name, found + _numbers(node))
    if name == "div":
        return found[0] - (found[1] if len(found) > 1 else 0) if isinstance(node.args[0], fx.Node) else -found[0]
    if name in _KEPT:
        return found[0]
    raise _Obstacle(f"{name} of what has degree {max(found)}")


def _agreed(name: str, degrees: list[int]) -> int:
    if len(set(degrees)) > 1:
        raise _Obstacle(f"{name}: terms of degrees {' and '.join(map(str, dict.fromkeys(degrees)))}")
    return degrees[0]


def _numbers(node: fx.Node) -> list[int]:
    """A plain number among the terms of a sum has degree 0, unless it is zero."""
    terms: list[Any] = [argument for argument in node.args if isinstance(argument, (int, float)) and argument != 0]
    return [0] * len(terms) if operation_name(node.target) in ("add", "sub") else []
