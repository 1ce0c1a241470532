"""Parameters that are added to each other: what one of them is shifted by, another can take back.

The pass goes forwards. For every tensor it keeps by how much its parts move if parameters are shifted by a constant,
one rate for each of them: `u_a + u_b` for `a + b`. What reads such a tensor otherwise than by moving, adding or scaling
it sees the shift, so that the rates must cancel there. Rates that need not all be zero are linear laws, such as
the difference of two biases of one sum; they are named, not derived. So are those of shifts of all elements by one
number, which a normalisation on the way does not see.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import fx
from torch.fx.node import Argument

from equipoise.graph.labels.shift_groups import dense
from equipoise.graph.ops import operator_of
from equipoise.graph.ops.operator import Site, Trait
from equipoise.graph.ops.rules import STILL, Exchanged, Parts, Rates, added
from equipoise.graph.propagate import SymmetryPropagation
from equipoise.graph.shifts import find_shifts

LARGEST = 600  # parameters that are added to each other, one way or another


def exchanges(propagation: SymmetryPropagation) -> tuple[tuple[str, ...], ...]:
    """Groups of parameters within which a shift can be exchanged without changing any output.

    >>> import torch
    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> class Sum(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b, self.c = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 1)
    ...     def forward(self, x):
    ...         return self.c(torch.tanh(self.a(x) + self.b(x * x)))
    >>> exchanges(SymmetryPropagation(capture(Sum(), torch.ones(4, 2))))
    (('a.bias', 'b.bias'),)
    """
    seen, pairs = _seen(propagation)
    groups = [*_cancelling(_pruned(seen)), *pairs]
    uniform = [group for group in _cancelling(_pruned(_seen(propagation, uniform=True)[0])) if len(group) > 1]
    stated = _shifted_alone(propagation) if uniform else set()
    groups += [group for group in uniform if not stated.issuperset(group)]
    order = {name: place for place, name in enumerate(propagation.captured.parameters.values())}
    return tuple(
        sorted(
            {tuple(sorted(group, key=order.__getitem__)) for group in groups},
            key=lambda group: [order[name] for name in group],
        )
    )


def _shifted_alone(propagation: SymmetryPropagation) -> set[str]:
    """Parameters of which shift laws state already that nothing sees a shift of all elements by one number."""
    moved: Counter[str] = Counter()
    whole: dict[str, int] = {}
    for member in find_shifts(propagation):
        moved[member.parameter] += member.index.numel()
        whole[member.parameter] = math.prod(member.view[axis] for axis in member.axes)
    return {name for name, size in whole.items() if moved[name] == size}


def _seen(propagation: SymmetryPropagation, *, uniform: bool = False) -> tuple[list[Rates], list[tuple[str, ...]]]:
    """The rates of every tensor whose shift is seen, and the pairs of biases of recurrent layers.

    A `uniform` shift is one of all elements by the same number.
    """
    moves: dict[fx.Node, Parts] = {}
    seen: list[Parts] = []
    pairs: list[tuple[str, ...]] = []
    for node in propagation.captured.graph.nodes:
        if node.op == "placeholder":
            parameter = propagation.captured.parameters.get(node.name)
            moves[node] = STILL if parameter is None or parameter in propagation.frozen else ({parameter: 1.0},)
        elif node.op == "call_function" and operator_of(node).is_a(Trait.RECURRENT):
            pairs += _biases(node, propagation)
            seen += [moves[source] for source in node.all_input_nodes if _two(propagation, source)]
        elif node.op == "call_function":
            moves[node], read = _through(node, moves)
            moving = [source for source in read if moves.get(source, STILL) != STILL]
            ignoring = _ignoring(node, propagation) if uniform and moving else set()
            seen += [_apart(moves[source]) if source in ignoring else moves[source] for source in moving]
        moves.setdefault(node, STILL)
    seen += [moves[node] for node in propagation.captured.output]
    return [rates for parts in seen for rates in parts if rates], pairs


def _two(propagation: SymmetryPropagation, node: fx.Node) -> bool:
    """Whether it is anything but the bias of a layer that has two of them."""
    return node.name not in propagation.captured.parameters or "val" not in node.meta or node.meta["val"].ndim != 1


def _biases(node: fx.Node, propagation: SymmetryPropagation) -> Iterator[tuple[str, ...]]:
    """The two biases of each direction and layer of a recurrent network, which only their sum is used of."""
    own = [source for source in node.all_input_nodes if not _two(propagation, source)]
    names = [propagation.captured.parameters[source.name] for source in own]
    yield from (
        tuple(pair) for pair in zip(names[::2], names[1::2], strict=False) if not set(pair) & set(propagation.frozen)
    )


def _apart(parts: Parts) -> Parts:
    """By how much parts of a tensor move apart."""
    return tuple(rates for part in parts[1:] for rates in added(parts[:1], (part,), -1.0))


def _ignoring(node: fx.Node, propagation: SymmetryPropagation) -> set[fx.Node]:
    """The arguments whose shift by one number an operation ignores."""
    rule, site = operator_of(node).ignores, Site(node, propagation.signals, propagation.through_detach)
    found = [] if rule is None or node in propagation.unread else list(rule(site))
    labels = ((source, dense(groups, site.shape_of(source))) for source, groups in found)
    return {source for source, groups in labels if groups is not None and bool((groups >= 0).all())}


def _through(node: fx.Node, moves: Mapping[fx.Node, Parts]) -> Exchanged:
    """The rates of a result, and the arguments whose shift is seen."""

    def of(argument: Argument) -> Parts:
        return moves.get(argument, STILL) if isinstance(argument, fx.Node) else STILL

    rule = operator_of(node).exchange
    return (STILL, node.all_input_nodes) if rule is None else rule(node, of)


def _pruned(seen: Sequence[Rates]) -> list[Rates]:
    """Without parameters that are seen alone, again and again."""
    rows = {tuple(sorted(rates.items())) for rates in seen}
    while held := {row[0][0] for row in rows if len(row) == 1}:
        rows = {tuple(term for term in row if term[0] not in held) for row in rows} - {()}
    return [dict(row) for row in sorted(rows)]


def _cancelling(rows: Sequence[Rates]) -> Iterator[tuple[str, ...]]:
    """Parameters whose rates can cancel in every row, those that depend on each other together."""
    names = sorted({name for rates in rows for name in rates})
    place = {name: number for number, name in enumerate(names)}
    if not names or len(names) > LARGEST:
        return
    matrix = np.zeros((len(rows), len(names)))
    for number, rates in enumerate(rows):
        for name, rate in rates.items():
            matrix[number, place[name]] = rate
    _, sigma, right = np.linalg.svd(matrix)
    null = right[int((sigma > 1e-9 * sigma.max()).sum()) :]
    free = np.abs(null).max(0, initial=0.0) > 1e-9
    linked = (np.abs(null.T @ null) > 1e-9) & free[:, None] & free[None, :]
    _, component = connected_components(coo_array(linked), directed=False)
    for number in np.unique(component[free]):
        yield tuple(names[at] for at in np.nonzero((component == number) & free)[0])
