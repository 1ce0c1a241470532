"""How far rounding can move the scores of a network: a bound from the network of absolute values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from equipoise.graph.capture import Captured, Intercept
from equipoise.graph.evaluate import Kink, is_linear, piecewise_linear
from equipoise.graph.ops import operation_name
from equipoise.graph.piecewise import ParametricRectifier, Rectifier

_EPS = torch.finfo(torch.float64).eps
_SMOOTH = {"tanh": (1.0, 0.0), "sigmoid": (0.25, 0.5), "gelu": (1.13, 0.0), "silu": (1.1, 0.0)}
"""`|φ'| ≤ L` and `φ(0)` of smooth activations, each evaluated to a few units in the last place of `L |z| + φ(0)`."""
_EVALUATED = 8  # roundings of one such evaluation
_SUMMED = ("sum", "mean", "avg_pool2d", "adaptive_avg_pool2d")


def score_rounding(captured: Captured, parameters: Mapping[str, Tensor], inputs: Tensor) -> float | None:
    """`γ_N` times the largest score of the network of `|W|`, `|b|` on `|X|`: no computed score is off by more.

    `N` is the number of roundings on the way, each inner product counted in full (Higham, *Accuracy and Stability*,
    §3.5); piecewise-linear activations add none, and of tanh, sigmoid, GELU and SiLU the network of absolute values has
    `L |z| + φ(0)`, `L` their Lipschitz constant. None for a network with other operations.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model, X = nn.Linear(3, 1, bias=False).double(), torch.ones(2, 3).double()
    >>> 0 < score_rounding(capture(model, X), dict(model.named_parameters()), X) < 1e-14
    True
    """
    kinks = piecewise_linear(captured, besides=_SMOOTH)
    if kinks is None or any(isinstance(kink.map, ParametricRectifier) for kink in kinks):
        return None
    positive = replace(captured, constants={name: value.abs() for name, value in captured.constants.items()})
    with torch.no_grad():
        scores = positive.run(
            {n: p.double().abs() for n, p in parameters.items()}, inputs.abs(), intercept=_absolute(kinks)
        )
    roundings = 8 + sum(_roundings(node) for node in captured.graph.nodes if is_linear(node))
    roundings += sum(_EVALUATED for node in captured.graph.nodes if operation_name(node.target) in _SMOOTH)
    return roundings * _EPS * max(float(scores.max()), 1.0)


def _absolute(kinks: Sequence[Kink]) -> Intercept:
    """The operations that change in the network of absolute values."""
    bent = {kink.node: max(1.0, abs(kink.map.negative_slope)) for kink in kinks if isinstance(kink.map, Rectifier)}

    def intercept(node: fx.Node, args: tuple[Any, ...]) -> Any:
        name = operation_name(node.target)
        if node in bent:
            return bent[node] * args[0]
        if name in _SMOOTH:
            slope, at_zero = _SMOOTH[name]
            return slope * args[0] + at_zero
        if name in ("add", "sub", "rsub"):
            share: Any = node.kwargs.get("alpha", 1)
            return abs(args[0]) + abs(share) * abs(args[1])
        if name in ("mul", "div"):
            return node.target(*map(abs, args))  # pyright: ignore[reportCallIssue]
        return args[0] if name == "neg" else NotImplemented

    return intercept


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
