"""A network as a graph of single units: weighted edges, and what a unit does with what comes in (T5.1).

Read operation by operation from the captured graph. The weight of an edge is an entry of the operation's Jacobian, and
there is an edge where that Jacobian with every weight at 1 has an entry: a weight of zero is an edge too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from equipoise.decomposition.path_lifting import refusal
from equipoise.errors import InputError
from equipoise.graph.capture import Captured
from equipoise.graph.evaluate import is_linear
from equipoise.graph.ops import operation_name, operator_of
from equipoise.graph.ops.rules import unchanged

Value: TypeAlias = Any  # of a node: one of the types below, a tensor, a number, a shape
Operation: TypeAlias = Callable[..., Any]

CONSTANT = 0  # the unit that feeds biases
SUM, MAXIMUM = 1.0, math.inf  # in place of a slope below zero: a linear unit, and one that takes the largest
_SINGLE = ("mul", "div", "matmul", "mm", "bmm", "linear", "conv1d", "conv2d", "conv3d")  # one activation at most


@dataclass(frozen=True)
class UnitGraph:
    """Units in an order in which sources come first: 0 the constant 1, then the inputs, then the rest.

    The edges into unit `u` are `starts[u] … starts[u + 1]` of `sources` and `weights`. `slopes[u]` is the slope of its
    activation below zero, 1 for a linear unit, infinite for a maximum. `names[u]` is its operation.
    """

    inputs: int
    outputs: np.ndarray
    starts: np.ndarray
    sources: np.ndarray
    weights: np.ndarray
    slopes: np.ndarray
    names: tuple[str, ...]

    def fan_in(self, units: np.ndarray) -> np.ndarray:
        """How many edges go into each unit."""
        return self.starts[units + 1] - self.starts[units]


class _Unit(NamedTuple):
    sources: np.ndarray
    weights: np.ndarray
    slope: float
    name: str


class _Weights(NamedTuple):
    """A value of weights and constants only, and the same with every weight at 1."""

    value: Tensor
    ones: Tensor


def read_units(captured: Captured, weights: Mapping[str, Tensor]) -> UnitGraph:
    """The units of a network at these weights. Raises `InputError` for operations that T5 does not know."""
    if len(captured.inputs) != 1:
        raise InputError(
            expected="a network of one input tensor",
            found=f"{len(captured.inputs)} inputs",
            remedy="wrap the model so that it takes one tensor",
        )
    builder = _Builder(captured, weights)
    values = captured.read(builder.placeholder, builder.call)
    return builder.graph([values[node] for node in captured.output])


class _Builder:
    def __init__(self, captured: Captured, weights: Mapping[str, Tensor]):
        self.captured, self.weights = captured, weights
        self.units = [_Unit(np.empty(0, int), np.empty(0), SUM, "1")]

    def graph(self, outputs: Sequence[Tensor]) -> UnitGraph:
        """All units made so far, and which of them leave the network."""
        counts = [len(unit.sources) for unit in self.units]
        return UnitGraph(
            inputs=self.captured.examples[0][0].numel(),
            outputs=np.concatenate([units.flatten().numpy() for units in outputs]),
            starts=np.concatenate([[0], np.cumsum(counts)]),
            sources=np.concatenate([unit.sources for unit in self.units]),
            weights=np.concatenate([unit.weights for unit in self.units]),
            slopes=np.array([unit.slope for unit in self.units]),
            names=tuple(unit.name for unit in self.units),
        )

    def placeholder(self, node: fx.Node) -> Value:
        if (name := self.captured.parameters.get(node.name)) is not None:
            weight = self.weights[name].detach().double().cpu()
            return _Weights(weight, torch.ones_like(weight))
        if node.name in self.captured.constants:
            constant = self.captured.constants[node.name].double().cpu()
            return _Weights(constant, constant)
        if node.name not in self.captured.inputs:
            return None
        shape = self.captured.examples[0].shape[1:]
        return self._new([_Unit(np.empty(0, int), np.empty(0), SUM, "x")] * shape.numel()).reshape(1, *shape)

    def _new(self, units: Sequence[_Unit]) -> Tensor:
        first = len(self.units)
        self.units += units
        return torch.arange(first, len(self.units))

    def call(self, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
        leaves = pytree.tree_leaves((args, kwargs), is_leaf=_is_weights)
        name = operation_name(node.target)
        target: Value = node.target
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            return self._on_weights(target, args, kwargs) if any(map(_is_weights, leaves)) else target(*args, **kwargs)
        if name == "sym_size" or operator_of(node).moves:
            return target(*args, **kwargs)
        if operator_of(node).lift is unchanged:
            return self._bent(args[0], _slope(name, args), name)
        if name == "max_pool2d":
            return self._maxima(args)
        if not is_linear(node) or (name in _SINGLE and sum(isinstance(leaf, Tensor) for leaf in leaves) > 1):
            raise refusal(name)
        return self._linear(target, name, args, kwargs)

    def _on_weights(self, target: Operation, args: tuple[Value, ...], kwargs: dict[str, Value]) -> _Weights:
        def side(number: int) -> Tensor:
            take = lambda weights: weights[number]  # noqa: E731
            own_args, own_kwargs = pytree.tree_map_only(_Weights, take, (args, kwargs), is_leaf=_is_weights)
            return target(*own_args, **own_kwargs)

        return _Weights(side(0), side(1))

    def _bent(self, units: Tensor, slope: float, name: str) -> Tensor:
        """The activation joins the linear unit it reads; of anything else it is a unit of its own."""
        bent = []
        for unit in units.flatten().tolist():
            inner = self.units[unit]
            own = inner.slope != SUM or len(inner.sources) == 0
            sources, weights = (np.array([unit]), np.ones(1)) if own else (inner.sources, inner.weights)
            bent.append(_Unit(sources, weights, slope, name))
        return self._new(bent).reshape(units.shape)

    def _maxima(self, args: tuple[Value, ...]) -> Tensor:
        units, size, stride, padding = [*args, None, None][:4]
        windows = lambda x: torch.nn.functional.avg_pool2d(x, size, stride or size, padding or 0, divisor_override=1)  # noqa: E731
        jacobian, shape = _jacobian(windows, units)
        rows = [units.flatten().numpy()[row.nonzero().flatten().numpy()] for row in jacobian]
        return self._new([_Unit(row, np.ones(len(row)), MAXIMUM, "max") for row in rows]).reshape(shape)

    def _linear(self, target: Operation, name: str, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Tensor:
        leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=_is_weights)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        units = torch.cat([leaves[place].flatten() for place in places])

        def at(side: int) -> Operation:
            def call(flat: Tensor) -> Tensor:
                filled = [leaf[side] if _is_weights(leaf) else leaf for leaf in leaves]
                pieces = flat.split([leaves[place].numel() for place in places])
                for place, piece in zip(places, pieces, strict=True):
                    filled[place] = piece.reshape(leaves[place].shape)
                own_args, own_kwargs = pytree.tree_unflatten(filled, spec)
                return target(*own_args, **own_kwargs)

            return call

        zeros = torch.zeros(len(units), dtype=torch.float64)
        (value, shape), (pattern, _) = _jacobian(at(0), zeros), _jacobian(at(1), zeros)
        offsets, feeds = at(0)(zeros).flatten(), at(1)(zeros).flatten() != 0
        found = [
            self._summed(units, *row, inline=name in ("add", "sub"), name=name)
            for row in zip(value, pattern != 0, offsets.tolist(), feeds.tolist(), strict=True)
        ]
        return self._new(found).reshape(shape)

    def _summed(
        self, units: Tensor, value: Tensor, pattern: Tensor, offset: float, fed: bool, *, inline: bool, name: str
    ) -> _Unit:
        """One linear unit; an addition takes over the edges of the linear units that it adds."""
        sources, weights = units[pattern].numpy(), value[pattern].numpy()
        if inline:
            parts = [
                self._through(source, weight) for source, weight in zip(sources.tolist(), weights.tolist(), strict=True)
            ]
            sources, weights = (np.concatenate(side) for side in zip(*parts, strict=True))
        if fed:
            sources, weights = np.append(sources, CONSTANT), np.append(weights, offset)
        return _Unit(sources, weights, SUM, name)

    def _through(self, source: int, weight: float) -> tuple[np.ndarray, np.ndarray]:
        inner = self.units[source]
        if inner.slope == SUM and len(inner.sources):
            return inner.sources, weight * inner.weights
        return np.array([source]), np.array([weight])


def _jacobian(function: Operation, at: Tensor) -> tuple[Tensor, torch.Size]:
    """The matrix of a linear map, outputs by inputs, and the shape of what it gives."""
    point = torch.zeros(at.shape, dtype=torch.float64)
    shape = function(point).shape
    return torch.func.jacrev(function)(point).reshape(shape.numel(), -1), shape


def _slope(name: str, args: tuple[Value, ...]) -> float:
    if name == "abs":
        return -1.0
    return 0.0 if name == "relu" else float(args[1]) if len(args) > 1 else 0.01


def _is_weights(value: Value) -> bool:
    return isinstance(value, _Weights)
