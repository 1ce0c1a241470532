"""How far rounding can move the scores of a network: a bound from the network of absolute values."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from equipoise.graph.capture import Captured
from equipoise.graph.evaluate import is_linear, piecewise_linear
from equipoise.graph.piecewise import ParametricRectifier, Rectifier
from equipoise.graph.walk import operation_name

_EPS = torch.finfo(torch.float64).eps
_SUMMED = ("sum", "mean", "avg_pool2d", "adaptive_avg_pool2d")


def score_rounding(captured: Captured, parameters: Mapping[str, Tensor], inputs: Tensor) -> float | None:
    """`γ_N` times the largest score of the network of `|W|`, `|b|` on `|X|`: no computed score is off by more.

    `N` is the number of roundings on the way, each inner product counted in full (Higham, *Accuracy and Stability*,
    §3.5); piecewise-linear activations add none. None for a network with other operations.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model, X = nn.Linear(3, 1, bias=False).double(), torch.ones(2, 3).double()
    >>> 0 < score_rounding(capture(model, X), dict(model.named_parameters()), X) < 1e-14
    True
    """
    maps = {kink.node: kink.map for kink in piecewise_linear(captured) or ()}
    if piecewise_linear(captured) is None or any(isinstance(found, ParametricRectifier) for found in maps.values()):
        return None
    bent = {node: max(1.0, abs(found.negative_slope)) for node, found in maps.items() if isinstance(found, Rectifier)}

    def intercept(node: fx.Node, args: tuple[Any, ...]) -> Any:
        if node in bent:
            return bent[node] * args[0]
        if operation_name(node.target) == "sub":
            return args[0] + args[1]
        return args[0] if operation_name(node.target) == "neg" else NotImplemented

    positive = replace(captured, constants={name: value.abs() for name, value in captured.constants.items()})
    with torch.no_grad():
        scores = positive.run({n: p.double().abs() for n, p in parameters.items()}, inputs.abs(), intercept=intercept)
    roundings = 8 + sum(_roundings(node) for node in captured.graph.nodes if is_linear(node))
    return roundings * _EPS * max(float(scores.max()), 1.0)


def _roundings(node: fx.Node) -> int:
    """Roundings of one element of an operation's result."""
    name = operation_name(node.target)
    if name == "linear" or name.startswith("conv"):
        return _shape(node.args[1])[1:].numel() + 2
    if name in ("matmul", "mm", "bmm", "addmm"):
        return _shape(node.args[1 if name == "addmm" else 0])[-1] + 2
    return _shape(node.args[0])[1:].numel() if name in _SUMMED else 1


def _shape(argument: Any) -> torch.Size:
    return argument.meta["val"].shape
