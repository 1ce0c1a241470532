"""Operations at which a propagation keeps less than the operation allows: laws through them may be missing.

The rules of `graph/matchers` are sound, and exact for most networks. Where one of them keeps only a part of the
generators that an operation commutes with, the walk notes the place, and what reads the result decides whether
anything is lost: the common scale of attention scores is of no use in front of a softmax, the rotations that a norm
leaves alone end at a gain.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from equipoise.graph.matchers.movement import COPYING, DROPPING, KEEPING
from equipoise.graph.matchers.pointwise import LAWLESS, SOFTMAX
from equipoise.graph.matchers.recurrent import LAWLESS as CELLS
from equipoise.graph.signal import Signal
from equipoise.graph.walk import Walk, operation_name, summed


@dataclass(frozen=True)
class Unfollowed:
    """An operation that is not read exactly, and the parameters whose laws through it may be missing."""

    node: str
    operation: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.operation} at {self.node} (laws through it may be missing for {', '.join(self.parameters)})"


def unfollowed(walk: Walk) -> tuple[Unfollowed, ...]:
    """The places at which something may be lost, in the order of the graph.

    >>> import torch
    >>> from torch import nn
    >>> import equipoise as eq
    >>> class Neighbours(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(2, 3, bias=False), nn.Linear(3, 1)
    ...     def forward(self, x):
    ...         h = self.a(x)
    ...         return self.b(h + h.roll(1, -1))
    >>> print(*eq.invariances(Neighbours(), torch.ones(4, 2)).coverage.unfollowed)
    add at add_6 (laws through it may be missing for a.weight)
    """
    return tuple(_noted(walk))


def _noted(walk: Walk) -> Iterator[Unfollowed]:
    algebra, read = walk.algebra, {each.node for each in walk.unmatched}
    for node in walk.captured.graph.nodes:
        name = operation_name(node.target)
        parameter = walk.captured.parameters.get(node.name)
        if parameter is not None and parameter not in walk.frozen and (cut := _cut_up(node)):
            yield Unfollowed(cut.name, operation_name(cut.target), (parameter,))
        lost = (
            node.name in algebra.narrowed
            or node.name in walk.unshifted
            or (node.name in algebra.scalable and _scales(node, walk))
            or (node.name in algebra.turnable and _turns(node, walk))
        )
        parameters = walk.upstream(node) if lost and node.name not in read else ()
        if name == "exp" and (weighed := _softmax_over_data(node)):
            parameters = tuple(dict.fromkeys(name for each in (node, *weighed) for name in walk.upstream(each)))
        if parameters:
            yield Unfollowed(node.name, name, parameters)


def _cut_up(node: fx.Node) -> fx.Node | None:
    """What cuts a weight into parts that read different vectors: only what is common to all of these is kept."""
    matrix = node.meta["val"].ndim > 1
    cuts = [user for user in node.users if matrix and operation_name(user.target) in DROPPING]
    parts = [reader for cut in cuts for reader in _after(cut) if operation_name(reader.target) == "linear"]
    vectors = {part.args[0] for part in parts if isinstance(part.args[0], fx.Node)} - {node}
    return cuts[0] if len(vectors) > 1 else None


def _softmax_over_data(node: fx.Node) -> list[fx.Node]:
    """What is weighed by `exp / index(scatter(exp))`, a softmax over sets that the data choose: it ignores shifts."""
    sums = {
        user for user in _after(node) if operation_name(user.target) in ("scatter_add", "index_add", "scatter_reduce")
    }
    totals = {each for total in sums for each in _after(total)}
    shares = [user for user in node.users if operation_name(user.target) == "div" and user.args[1] in totals]
    products = {each for share in shares for each in _after(share) if operation_name(each.target) == "mul"}
    return [*shares, *products]


def _after(node: fx.Node) -> set[fx.Node]:
    """What reads a value, through operations that only move it or add a number."""
    found: set[fx.Node] = set()
    queue = [node]
    while queue:
        for user in queue.pop().users:
            passes = operation_name(user.target) in (*_PASSING, "index_select", "index", "add", "clamp_min")
            queue += [user] if passes and user not in found else []
            found.add(user)
    return found


def _scales(node: fx.Node, walk: Walk) -> bool:
    """Whether some reader can use the scale of a product.

    Piecewise linear maps pass it on, products and normalisations use it, activations and sums with data end it.
    """
    queue, seen = [node], {node}
    while queue:
        current = queue.pop()
        for user in current.users:
            name = operation_name(user.target)
            if user.op == "output" or name in _ENDS:
                continue
            other = _other(current, user)
            passes = name in (*_PASSING, *_SUMS, *_HOMOGENEOUS) or (name in ("mul", "div") and other is None)
            if not passes and name not in ("add", "sub"):
                return True
            if (passes or (other is not None and walk.upstream(other))) and user not in seen:
                seen.add(user)
                queue.append(user)
    return False


_PASSING = (*KEEPING, *DROPPING, *COPYING, "_to_copy", "to", "type_as", "neg", "getitem", "dropout", "native_dropout")
_HOMOGENEOUS = ("relu", "leaky_relu", "abs", "masked_fill", "where", "pow", "sqrt", "clamp_min")
_SUMS = ("sum", "mean")
_ENDS = (*LAWLESS, *SOFTMAX, *CELLS, "scaled_dot_product_attention", "sym_size", "detach")


def _turns(node: fx.Node, walk: Walk) -> bool:
    """Whether nothing that reads the vector whose norm is taken tells its directions apart."""
    vector = node.all_input_nodes[0]
    queue, seen = [vector], {vector}
    while queue:
        current = queue.pop()
        for user in current.users:
            kept = _turned(current, user, walk)
            if kept is False:
                return False
            if kept is None and user not in seen:
                seen.add(user)
                queue.append(user)
    return True


def _turned(source: fx.Node, user: fx.Node, walk: Walk) -> bool | None:
    """Whether rotations pass on from a vector to what is computed from it (None), end well (True) or not (False)."""
    name, other = operation_name(user.target), _other(source, user)
    if name in (*_PRODUCTS, "linalg_vector_norm", "sym_size", "detach"):
        return True
    if name in _SUMS:
        axes, ndim = summed(user)[0], source.meta["val"].ndim
        return True if not axes or ndim - 1 in axes else None
    if name in (*_PASSING, "square") or (name == "pow" and user.args[1] == 2):
        return None
    if name in ("add", "sub", "mul", "div") and (other is None or _narrow(walk, other)):
        return None
    if name in ("add", "sub", "mul") and other is not None and walk.upstream(other):
        return None if not _made_of_weights(walk, other) else False
    return None if name in ("layer_norm", "rms_norm") and len(user.all_input_nodes) == 1 else False


_PRODUCTS = ("linear", "matmul", "mm", "bmm", "einsum", "addmm", "baddbmm", "scaled_dot_product_attention")
_PRODUCTS += ("cosine_similarity",)


def _other(source: fx.Node, user: fx.Node) -> fx.Node | None:
    """The other factor or summand; None for a number."""
    return next((argument for argument in user.all_input_nodes if argument is not source), None)


def _made_of_weights(walk: Walk, node: fx.Node) -> bool:
    signal = walk.signals[node]
    return isinstance(signal, Signal) and bool(signal.weights)


def _narrow(walk: Walk, node: fx.Node) -> bool:
    """Whether a tensor has one number for each vector along the last axis."""
    signal = walk.signals[node]
    return not isinstance(signal, Signal) or not signal.ndim or signal.shape[-1] == 1 or signal.ndim - 1 in signal.alike
