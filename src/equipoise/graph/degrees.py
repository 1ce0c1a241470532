"""Homogeneity in the weights, proved by operations: `f(x; a w) = a^L f(x; w)` for `a > 0` (docs/theory.md §0)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx
from torch.fx.node import Argument

from equipoise.graph.capture import Captured
from equipoise.graph.ops import operation_name, operator_of
from equipoise.graph.ops.rules import Mixed


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
    """By the rule that the operation declares; what reads nothing that scales does not scale."""
    found = [degrees[source] for source in node.all_input_nodes]
    if not any(found):
        return 0

    def of(argument: Argument) -> int:
        return degrees[argument] if isinstance(argument, fx.Node) else 0

    name, rule = operation_name(node.target), operator_of(node).degree
    if rule is None:
        raise _Obstacle(f"{name} of what has degree {max(found)}")
    try:
        return rule(node, of)
    except Mixed as mixed:
        raise _Obstacle(f"{name}: {mixed}") from None
