"""Parameters that are added to each other: what one of them is shifted by, another can take back.

The walk goes forwards. For every tensor it keeps by how much its parts move if parameters are shifted by a constant,
one rate for each of them: `u_a + u_b` for `a + b`. What reads such a tensor otherwise than by moving, adding or scaling
it sees the shift, so that the rates must cancel there. Rates that need not all be zero stand for linear laws, such as
the difference of two biases of one sum; they are named, not derived.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import fx

from equipoise.graph.ops.movement import COPYING, DROPPING, KEEPING
from equipoise.graph.ops.pointwise import SHAPE_ONLY
from equipoise.graph.propagate import SymmetryPropagation, operation_name

Rates = Mapping[str, float]
Parts = tuple[Rates, ...]  # of a tensor whose parts move apart, such as tensors side by side

_STILL: Parts = ({},)
_MOVING = (*KEEPING, *DROPPING, *COPYING, "getitem", "index", "gather", "index_select", "_to_copy", "to", "type_as")
_MOVING += ("detach", "embedding", "mean", "dropout", "native_dropout", "flip", "roll")
_WITH_BIAS = ("linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d")
_WITH_BIAS += ("conv_transpose3d",)
_NORMS = ("layer_norm", "native_layer_norm", "group_norm", "bilinear")  # with the bias in the fourth place
_BY_CHANNEL = ("_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training", "instance_norm")
_BIAS_FIRST = ("addmm", "baddbmm", "addmv")
_CELLS = ("lstm", "rnn_tanh", "rnn_relu", "gru", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
LARGEST = 600  # parameters that are added to each other, one way or another
MOST = 16  # parts of a tensor that move apart; with more of them all are held for seen


def exchanges(walk: SymmetryPropagation) -> tuple[tuple[str, ...], ...]:
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
    seen, pairs = _seen(walk)
    groups = [*_cancelling(_pruned(seen)), *pairs]
    order = {name: place for place, name in enumerate(walk.captured.parameters.values())}
    return tuple(sorted({tuple(sorted(group, key=order.__getitem__)) for group in groups}, key=lambda g: order[g[0]]))


def _seen(walk: SymmetryPropagation) -> tuple[list[Rates], list[tuple[str, ...]]]:
    """The rates of every tensor whose shift is seen, and the pairs of biases of recurrent layers."""
    moves: dict[fx.Node, Parts] = {}
    seen: list[Parts] = []
    pairs: list[tuple[str, ...]] = []
    for node in walk.captured.graph.nodes:
        name = operation_name(node.target)
        if node.op == "placeholder":
            parameter = walk.captured.parameters.get(node.name)
            moves[node] = _STILL if parameter is None or parameter in walk.frozen else ({parameter: 1.0},)
        elif node.op == "call_function" and name in _CELLS:
            pairs += _biases(node, walk)
            seen += [moves[source] for source in node.all_input_nodes if _two(walk, source)]
        elif node.op == "call_function":
            moves[node], read = _through(node, name, moves)
            seen += [moves.get(source, _STILL) for source in read]
        moves.setdefault(node, _STILL)
    seen += [moves[node] for node in walk.captured.output]
    return [rates for parts in seen for rates in parts if rates], pairs


def _two(walk: SymmetryPropagation, node: fx.Node) -> bool:
    """Whether it is anything but the bias of a layer that has two of them."""
    return node.name not in walk.captured.parameters or "val" not in node.meta or node.meta["val"].ndim != 1


def _biases(node: fx.Node, walk: SymmetryPropagation) -> Iterator[tuple[str, ...]]:
    """The two biases of each direction and layer of a recurrent network, which only their sum is used of."""
    own = [source for source in node.all_input_nodes if not _two(walk, source)]
    names = [walk.captured.parameters[source.name] for source in own]
    yield from (tuple(pair) for pair in zip(names[::2], names[1::2], strict=False) if not set(pair) & set(walk.frozen))


def _through(node: fx.Node, name: str, moves: Mapping[fx.Node, Parts]) -> tuple[Parts, Sequence[fx.Node]]:
    """The rates of a result, and the arguments whose shift is seen."""
    args: Any = node.args
    of = lambda argument: moves.get(argument, _STILL) if isinstance(argument, fx.Node) else _STILL  # noqa: E731
    sources = node.all_input_nodes
    if name in SHAPE_ONLY or name == "sym_size":
        return _STILL, ()
    if name in ("add", "sub"):
        sign = (-1.0 if name == "sub" else 1.0) * float(node.kwargs.get("alpha", 1))  # pyright: ignore[reportArgumentType]
        total = _added(of(args[0]), of(args[1]), sign)
        return (total, ()) if len(total) <= MOST else (_STILL, sources)
    if name in ("mul", "div") and not isinstance(args[1], fx.Node):
        factor = float(args[1]) if name == "mul" else 1 / float(args[1])
        return _added(_STILL, of(args[0]), factor), ()
    if name == "neg":
        return _added(_STILL, of(args[0]), -1.0), ()
    if name in ("cat", "stack"):
        return _joined([of(part) for part in args[0]], sources)
    if name in _MOVING:
        return of(args[0]), sources[1:]
    if name in _BIAS_FIRST and args[0] not in args[1:]:
        return of(args[0]), [source for source in sources if source is not args[0]]
    if name in (*_WITH_BIAS, *_NORMS, *_BY_CHANNEL):
        place = 3 if name in _NORMS else 2
        bias = args[place] if len(args) > place else None
        return of(bias), [source for source in sources if source is not bias]
    if name == "scaled_dot_product_attention":  # weights that sum to one
        return of(args[2]), [source for source in sources if source is not args[2]]
    return _STILL, sources


def _joined(parts: Sequence[Parts], sources: Sequence[fx.Node]) -> tuple[Parts, Sequence[fx.Node]]:
    """Parts side by side."""
    kept = _distinct([rates for each in parts for rates in each])
    return (kept, ()) if len(kept) <= MOST else (_STILL, sources)


def _added(a: Parts, b: Parts, factor: float) -> Parts:
    """Whichever part of the one is added to whichever of the other: too many at most, so that too much is demanded."""
    return _distinct([_sum(one, other, factor) for one in a for other in b])


def _sum(a: Rates, b: Rates, factor: float) -> Rates:
    total = dict(a)
    for name, rate in b.items():
        total[name] = total.get(name, 0.0) + factor * rate
    return {name: rate for name, rate in total.items() if rate}


def _distinct(parts: Sequence[Rates]) -> Parts:
    found: list[Rates] = []
    for rates in parts:
        found += [] if rates in found else [rates]
    return tuple(found)


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
