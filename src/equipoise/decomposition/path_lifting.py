"""Sums over all paths of a network, each by one pass through its graph and no enumeration (T5.3).

A path from an input, or from the constant that feeds a bias, to an output has the product `Φ_π(w) = Π w_e` of its
weights. Replacing every weight by a function of it, activations by the identity and maxima by sums, one forward pass on
inputs of one adds up that function of all the products (Gonon, Brisebarre, Riccietti & Gribonval 2024). What is fixed
is an edge too: an identity skip has weight 1, a mean over `k` elements is `k` edges of weight `1/k`. The slope of a
leaky activation belongs to `A_π`, not to `Φ_π`.

For the distance of two networks three sums go together: with `B = Π b_e` and `D = Π a_e - Π b_e` of a path, one more
edge makes `D ← a D + (a - b) B`, so that no two nearly equal numbers are ever subtracted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from equipoise.errors import InputError
from equipoise.graph.capture import Captured
from equipoise.graph.ops import operation_name, operator_of

Value: TypeAlias = Any  # of a node: one of the types below, a tensor, a number, a shape
Operation: TypeAlias = Callable[..., Any]
Entry: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Lift:
    """A sum over paths: its `start` of the empty path, and how an edge mixes the sums, `(to, from) → entry`.

    An entry is a function of the edge's weight in each of the two networks compared.
    """

    start: tuple[float, ...]
    entries: Mapping[tuple[int, int], Entry]


COUNT = Lift((1.0,), {(0, 0): lambda a, b: (a != 0).to(a)})
NORM = Lift((1.0,), {(0, 0): lambda a, b: a.abs()})
INNER = Lift((1.0,), {(0, 0): lambda a, b: a * b})
DISTANCE = Lift(
    (1.0, 0.0, 0.0),  # Σ B², Σ D B, Σ D²
    {
        (0, 0): lambda a, b: b * b,
        (1, 0): lambda a, b: (a - b) * b,
        (1, 1): lambda a, b: a * b,
        (2, 0): lambda a, b: (a - b) ** 2,
        (2, 1): lambda a, b: 2 * a * (a - b),
        (2, 2): lambda a, b: a * a,
    },
)


def path_count(captured: Captured) -> float:
    """The number of paths, those from constants that feed biases among them; exact below 2^53.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> path_count(capture(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 5)))
    50.0
    """
    ones = {name: torch.ones(shape, dtype=torch.float64) for name, shape in _shapes(captured).items()}
    return lifted(captured, COUNT, ones, ones)


def path_norm(captured: Captured, weights: Mapping[str, Tensor]) -> float:
    """`Σ_π |Φ_π(w)|`, outputs summed."""
    return lifted(captured, NORM, weights, weights)


def path_inner(captured: Captured, weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """`⟨Φ(w), Φ(w')⟩`."""
    return lifted(captured, INNER, weights, others)


def path_distance(captured: Captured, weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """`‖Φ(w) - Φ(w')‖`, to rounding also where the two are close."""
    return math.sqrt(max(lifted(captured, DISTANCE, weights, others), 0.0))


def lifted(captured: Captured, lift: Lift, weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """The last of the sums of a lift, over all paths to all outputs, in float64.

    Raises `InputError`, naming the operation, for a network that is not made of linear maps, piecewise-linear
    activations and maxima.
    """
    walk = _Walk(captured, lift, weights, others)
    with torch.no_grad():
        values = captured.read(walk.placeholder, walk.call)
    return sum(float(walk.constant(values[node]).parts[-1].sum()) for node in captured.output)


class Edges(NamedTuple):
    """A value of weights and constants only, in each of the two networks."""

    a: Tensor
    b: Tensor


class Sums(NamedTuple):
    """Sums over the paths to every element, one tensor for each sum of the lift."""

    parts: tuple[Tensor, ...]


class _Walk:
    def __init__(self, captured: Captured, lift: Lift, weights: Mapping[str, Tensor], others: Mapping[str, Tensor]):
        self.captured, self.lift, self.weights, self.others = captured, lift, weights, others

    def placeholder(self, node: fx.Node) -> Value:
        if (name := self.captured.parameters.get(node.name)) is not None:
            return Edges(self.weights[name].detach().double(), self.others[name].detach().double())
        if node.name in self.captured.constants:
            constant = self.captured.constants[node.name]
            return Edges(constant.double(), constant.double())
        if node.name not in self.captured.inputs:
            return None
        example = self.captured.examples[self.captured.inputs.index(node.name)]
        one = torch.ones(1, *example.shape[1:], dtype=torch.float64, device=example.device)
        return Sums(tuple(start * one for start in self.lift.start))

    def call(self, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
        leaves = pytree.tree_leaves((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, (Sums, Edges)))
        name = operation_name(node.target)
        target: Value = node.target
        if not any(isinstance(leaf, Sums) for leaf in leaves):
            return (
                self._apart(target, args, kwargs)
                if any(isinstance(x, Edges) for x in leaves)
                else target(*args, **kwargs)
            )
        if name == "sym_size":
            return target(args[0].parts[0], *args[1:])
        lift = operator_of(node).lift
        found = None if lift is None else lift(self, node, args, kwargs)
        if found is None:
            raise refusal(name)
        return found

    def _apart(self, target: Operation, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Edges:
        """An operation on weights alone, in each of the two networks."""

        def side(part: int) -> Value:
            return pytree.tree_map_only(Edges, lambda edges: edges[part], (args, kwargs), is_leaf=_is_edges)

        results = [target(*own_args, **own_kwargs) for own_args, own_kwargs in (side(0), side(1))]
        return Edges(*results)

    def _mixed(self, edges: Edges, apply: Callable[[Tensor, Tensor, int], Tensor], sums: Sums) -> Sums:
        """`out_i = Σ_j apply(sums_j, T_ij(edges))`."""
        totals: list[Value] = [0.0] * len(sums.parts)
        for (to, source), entry in self.lift.entries.items():
            totals[to] = totals[to] + apply(sums.parts[source], entry(edges.a, edges.b), source)
        return Sums(tuple(totals))

    def constant(self, value: Value) -> Sums:
        """Edges from the constant 1, as a bias has."""
        if isinstance(value, Sums):
            return value
        edges = value if isinstance(value, Edges) else Edges(*[torch.tensor(float(value), dtype=torch.float64)] * 2)
        start = Sums(tuple(torch.tensor(s, dtype=torch.float64, device=edges.a.device) for s in self.lift.start))
        return self._mixed(edges, lambda part, weight, source: part * weight, start)

    def moved(self, node: fx.Node, args: Sequence[Value], kwargs: Mapping[str, Value]) -> Sums:
        """A linear map without weights."""
        target: Value = node.target
        return Sums(tuple(target(part, *args[1:], **kwargs) for part in args[0].parts))

    def joined(self, node: fx.Node, args: Sequence[Value]) -> Sums:
        """Tensors side by side."""
        target: Value = node.target
        lists = [self.constant(item).parts for item in args[0]]
        return Sums(tuple(target(list(parts), *args[1:]) for parts in zip(*lists, strict=True)))

    def added(self, left: Value, right: Value) -> Sums:
        """A sum."""
        pairs = zip(self.constant(left).parts, self.constant(right).parts, strict=True)
        return Sums(tuple(a + b for a, b in pairs))

    def scaled(self, value: Value, factor: float) -> Sums:
        """A number times."""
        return self._edgewise(self.constant(value), factor)

    def product(self, node: fx.Node, left: Value, right: Value, *, divided: bool = False) -> Sums:
        """Each element times an edge of its own, trained or fixed, or over it."""
        sums, edges = (left, right) if isinstance(left, Sums) else (right, left)
        if isinstance(edges, Sums) or (divided and isinstance(right, Sums)):
            raise refusal(f"{operation_name(node.target)} of two activations")
        return self._edgewise(sums, edges, divided=divided)

    def _edgewise(self, sums: Sums, edges: Value, *, divided: bool = False) -> Sums:
        if not isinstance(edges, Edges):
            edges = Edges(*[torch.tensor(float(edges), dtype=torch.float64)] * 2)
        edges = Edges(1 / edges.a, 1 / edges.b) if divided else edges
        return self._mixed(edges, lambda part, weight, source: part * weight, sums)

    def contracted(self, node: fx.Node, args: Sequence[Value]) -> Sums:
        """A linear map of activations by a weight, and a bias."""
        sums, weight, bias, *rest = (*args, None) if len(args) == 2 else args
        if isinstance(weight, Sums):
            raise refusal(operation_name(node.target))
        target: Value = node.target
        extra = (None, *rest) if rest else ()
        total = self._mixed(weight, lambda part, entries, source: target(part, entries, *extra), sums)
        if bias is None:
            return total
        place = (-1, *([1] * (weight.a.ndim - 2)))  # channels come before positions
        return Sums(tuple(t + c.reshape(place) for t, c in zip(total.parts, self.constant(bias).parts, strict=True)))

    def window_sums(self, sums: Value, args: Sequence[Value]) -> Sums:
        """Sums over the windows of a pooling operation."""
        return Sums(tuple(_window_sums(part, *[*args, None, None][:3]) for part in sums.parts))

    def mean(self, sums: Value, args: Sequence[Value]) -> Sums:
        """A mean over axes, as a sum of equal edges."""
        totals = Sums(tuple(part.sum(*args) for part in sums.parts))
        return self.scaled(totals, totals.parts[0].numel() / sums.parts[0].numel())


def _window_sums(part: Tensor, size: Value, stride: Value, padding: Value) -> Tensor:
    return torch.nn.functional.avg_pool2d(part, size, stride or size, padding or 0, divisor_override=1)


def refusal(operation: str) -> InputError:
    """The error for an operation that no decomposition knows."""
    return InputError(
        expected="a network of linear maps, ReLU or leaky ReLU, max-pooling, averages and skips",
        found=operation,
        remedy="decompose the part of the network without it",
    )


def _is_edges(value: Value) -> bool:
    return isinstance(value, Edges)


def _shapes(captured: Captured) -> dict[str, torch.Size]:
    nodes = {node.name: node for node in captured.graph.find_nodes(op="placeholder")}
    return {name: nodes[placeholder].meta["val"].shape for placeholder, name in captured.parameters.items()}
