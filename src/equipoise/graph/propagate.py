"""Through the graph of a model, operation by operation, gathering what each demands of the generators."""

import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from equipoise.graph.capture import Captured, fetched, placeholders
from equipoise.graph.export.program import Arguments, Keywords
from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.signal import Signal
from equipoise.graph.ops import operation_name, operator_of
from equipoise.graph.ops.contraction import dot, dotted, einsum_terms
from equipoise.graph.ops.operator import Movement, SymmetryRule, Trait, Unreadable
from equipoise.graph.ops.pointwise import FLOOR
from equipoise.stages import staged

Reference: TypeAlias = Callable[..., object]
Value: TypeAlias = object
"""A signal, several of them, or what is no tensor."""

EPS = 1e-5  # of a normalisation that names none
TINY = 1e-2  # constants below this, added under a square root, are read as an `eps`
BATCH = 2  # the size that a free batch dimension is read with
_MAP = Trait.PRODUCT | Trait.TABLE
_ENTERED = frozenset({"mul", "add", "cat", "_weight_norm"})  # through which a parameter is followed to a linear map


@dataclass(frozen=True)
class Leaf:
    """A role of a parameter: `parameter.reshape(view)`, one coordinate for each index into `axes`."""

    parameter: str
    view: tuple[int, ...]
    axes: tuple[int, ...]
    coordinates: np.ndarray


@dataclass(frozen=True)
class Unmatched:
    """An operation whose form is not declared, and the parameters it therefore holds still or cuts off."""

    node: str
    operation: str
    parameters: tuple[str, ...]


@dataclass
class SymmetryPropagation:
    """The restrictions and labels gathered on one pass; `refine` may split a piecewise linear unit's cell by a key."""

    captured: Captured
    frozen: Collection[str] = ()
    patterns: Mapping[str, Tensor] = field(default_factory=dict)
    references: Mapping[str, Reference] = field(default_factory=dict)
    through_detach: bool = False

    def __post_init__(self):
        self.algebra = Algebra()
        self.leaves: list[Leaf] = []
        self.unmatched: list[Unmatched] = []
        self.unread: set[fx.Node] = set()  # whose form, or shape at this batch, no declaration reads
        self.unshifted: set[str] = set()  # nodes at which shifts are not followed (graph/shifts.py)
        self.signals: dict[fx.Node, object] = {}
        self._products: dict[fx.Node, list[Signal]] = {}  # factors of products that are only summed
        for node in staged(self.captured.graph.nodes, "propagating symmetries"):
            self.algebra.place = node.name
            self.signals[node] = self._visit(node)
        returned = [self.signals[node] for node in self.captured.output]
        self.algebra.still(*(signal for signal in returned if isinstance(signal, Signal)))

    def _visit(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "call_function":
            return self._call(node, *fetched(node, self.signals))
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.captured.module)
            return Signal(tuple(value.shape), value=value) if isinstance(value, Tensor) else value
        return None

    # Leaves ---------------------------------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> Signal:
        shape = _shape(node.meta["val"])
        if node.name in self.captured.constants:
            value = self.captured.constants[node.name]
            return Signal(shape, value=None if value.is_meta else value)
        name = self.captured.parameters.get(node.name)
        if name is None or name in self.frozen:
            return Signal(shape, weights=frozenset() if name is None else frozenset({name}))
        return self._leaf(node, name, shape)

    def _leaf(self, node: fx.Node, name: str, shape: tuple[int, ...]) -> Signal:
        roles = []
        for view, axes in _leaf_axes(node, shape, self.references):
            role, coordinates = self.algebra.fresh(view, axes)
            self.leaves.append(Leaf(name, view, axes, coordinates))
            roles.append(role.moved(lambda labels: labels.reshape(shape)))
        return Signal(shape, tuple(roles), weights=frozenset({name}))

    # Operations -----------------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node, args: Arguments, kwargs: Keywords) -> Value:
        name, known = operation_name(node.target), operator_of(node)
        signals = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Signal)]
        if not signals or name == "getitem":
            return self._plain(node, args, kwargs)
        if name == "sym_size":
            return args[0].shape[args[1]]
        if all(signal.value is not None for signal in signals) and not known.draws(node):
            return self._constant(node, args, kwargs)
        if (constant_eps := self._softening(node, name, args)) is not None:
            return constant_eps
        if node.name in self.patterns:
            return self._by_pattern(node.name, args[0])
        if name == "detach" and not self.through_detach:
            return Signal(args[0].shape)
        if (reference := self.references.get(name, known.reference)) is not None:
            return self._nested(reference, args, kwargs)
        if name == "mul" and (factors := self._factors_of_sums(node, args)):
            self._products[node] = factors
            return Signal(factors[0].shape)
        if known.is_a(Trait.TOTAL) and node.args[0] in self._products:
            left, right = self._products[node.args[0]]
            return dot(self.algebra, left, right, *summed(node))
        if name == "embedding":
            args = (self._rows_apart(node, args[0]), *args[1:])
        found, reason = self._read(known.symmetry, node, args, kwargs)
        if found is not None:
            return found
        touched = self.upstream(node)
        if not known.is_a(Trait.LAWLESS) and touched:
            self.unmatched.append(Unmatched(node.name, name + reason, touched))
        return self._held(node, signals)

    def _read(
        self, symmetry: SymmetryRule | None, node: fx.Node, args: Arguments, kwargs: Keywords
    ) -> tuple[Value | None, str]:
        """How the result moves, and if that is not known why not; nothing that is read may then move."""
        if symmetry is None:
            return None, ""
        reason = ""
        try:
            found = symmetry(self.algebra, *args, **kwargs)
            if _fits(found, node.meta.get("val")):
                return found, ""
            self.unread.add(node)
        except Unreadable as error:
            reason = f" ({error})"
        except (RuntimeError, ValueError, IndexError):  # torch refuses the shapes: a batch that must not be BATCH
            self.unread.add(node)
        for leaf in pytree.tree_leaves((args, kwargs)):
            for role in leaf.roles if isinstance(leaf, Signal) else ():
                self.algebra.pin(role)
        return None, reason

    def _factors_of_sums(self, node: fx.Node, args: Arguments) -> list[Signal]:
        """The factors of a product that is only ever summed over axes along which both are acted on: a dot product."""
        over = [summed(user)[0] if operator_of(user).is_a(Trait.TOTAL) else [] for user in node.users]
        if not all(over) or not all(isinstance(side, Signal) for side in args) or node.args[0] is node.args[1]:
            return []
        factors = self.algebra.broadcast(*args)
        acted = all(any(role.varies(*axes) for role in factor.roles) for factor in factors for axes in over)
        return factors if acted else []

    def _plain(self, node: fx.Node, args: Arguments, kwargs: Keywords) -> Value:
        if node.target is operator.getitem:
            held, index = args
            return held[index] if isinstance(held, (tuple, list)) else held if index == 0 else Signal(held.shape)
        value = node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        if isinstance(value, Tensor):
            return Signal(tuple(value.shape), value=None if operator_of(node).draws(node) else value)
        return value

    def _constant(self, node: fx.Node, args: Arguments, kwargs: Keywords) -> Value:
        """Compute nodes that depend on neither inputs nor parameters."""
        args, kwargs = pytree.tree_map_only(Signal, lambda signal: signal.value, (args, kwargs))
        value = node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        return pytree.tree_map_only(Tensor, lambda tensor: Signal(tuple(tensor.shape), value=tensor), value)

    def _softening(self, node: fx.Node, name: str, args: Arguments) -> Signal | None:
        """A tiny constant under a root is the `eps` of a normalisation: its symmetry is broken by that much.

        A tiny floor under a norm, as in `F.normalize`, is never reached.
        """
        if name in ("clamp", "clamp_min") and operator_of(node.all_input_nodes[0]).is_a(Trait.NORM):
            inactive = len(args) == 2 and isinstance(args[1], float) and 0 < args[1] <= FLOOR
            return args[0] if inactive else None
        small = name == "add" and len(args) == 2 and isinstance(args[1], float) and 0 < args[1] <= TINY
        if not small or not isinstance(args[0], Signal):
            return None
        if not all(operator_of(user).is_a(Trait.ROOT) for user in node.users):
            return None
        for role in args[0].roles:
            self.algebra.absorb(role, args[1])
        return args[0]

    def _by_pattern(self, name: str, signal: Signal) -> Signal:
        """A piecewise linear unit whose patterns are known: co-active neurons may mix.

        Patterns are compared position by position: channels mix that agree at every one. A neuron that is off for
        everything stays by itself.
        """
        states = self.patterns[name]
        _, key = torch.unique(states.flatten(1).T, dim=0, return_inverse=True)
        alone, on = len(key) + torch.arange(len(key)), states.any(0).flatten()
        for role in signal.roles:
            units = role.coordinates[0].flatten()
            own = torch.where(torch.isin(units, units[on]), key, alone)
            self.algebra.separate(role, own.reshape(1, *signal.shape[1:]))
        return signal.with_roles([self.algebra.renewed(role) for role in signal.roles])

    def _nested(self, reference: Reference, args: Arguments, kwargs: Keywords) -> Value:
        """SymmetryPropagation a reference implementation in place of an operation that cannot be read."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Signal)]

        def call(*tensors: Tensor) -> object:
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            own_args, own_kwargs = pytree.tree_unflatten(filled, spec)
            return reference(*own_args, **own_kwargs)

        body = make_fx(call)(*(torch.empty(leaves[place].shape) for place in places))
        inner: dict[fx.Node, object] = dict(zip(placeholders(body.graph), (leaves[p] for p in places), strict=True))
        outer, self.signals = self.signals, inner
        for node in body.graph.nodes:
            if node.op == "call_function":
                inner[node] = self._call(node, *fetched(node, inner))
        self.signals = outer
        return pytree.tree_map_only(fx.Node, lambda node: inner[node], body.graph.output_node().args[0])

    def _held(self, node: fx.Node, signals: list[Signal]) -> Value:
        """Hold still all that an operation reads: always sound."""
        self.algebra.still(*signals)
        return pytree.tree_map_only(Tensor, lambda tensor: Signal(_shape(tensor)), node.meta.get("val"))

    def upstream(self, node: fx.Node) -> tuple[str, ...]:
        """The parameters that the arguments of a node are computed from without another linear map in between."""
        return upstream(self.captured, node, self._of_weights)

    def _of_weights(self, node: fx.Node) -> bool:
        signal = self.signals.get(node)
        return isinstance(signal, Signal) and bool(signal.weights)

    def _rows_apart(self, node: fx.Node, table: Signal) -> Signal:
        """A table whose rows are only ever normalised, each by itself: their scales have no effect.

        The common scale of all rows follows from these, and is no law of its own.
        """
        readers = [reader for user in node.all_input_nodes[0].users for reader in _readers_of_rows(user)]
        rows = [role for role in table.roles if role.varies(0)]
        if not rows or not all(_normalises(reader) for reader in readers):
            return table
        others = [role for role in table.roles if not role.varies(0)]
        self.algebra.diagonal(table.with_roles(rows))
        for norm in readers:
            eps = operator_of(norm).eps
            given = norm.args[eps.place] if eps is not None and len(norm.args) > eps.place else None
            self.algebra.place = norm.name
            self.algebra.absorb(rows[0], given if isinstance(given, (int, float)) else EPS)
            if len(norm.all_input_nodes) == 1:  # without a gain
                self.algebra.turns(table.with_roles(others), [1])
        self.algebra.place = node.name
        for role in others:
            self.algebra.pin(role)
        return Signal(table.shape, (), table.value, table.weights)


def upstream(
    captured: Captured, node: fx.Node, of_weights: Callable[[fx.Node], bool] = lambda node: False
) -> tuple[str, ...]:
    """The parameters that the arguments of a node are computed from without another linear map in between.

    Through a linear map go what it reads straight from the inputs, and what `of_weights` says is computed from weights.
    """
    found, queue, seen = [], list(node.all_input_nodes), set()
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.name in captured.parameters:
            found.append(captured.parameters[current.name])
        elif operator_of(current).is_a(_MAP):
            queue += [n for n in current.all_input_nodes if n.op == "placeholder" or of_weights(n)]
        else:
            queue += current.all_input_nodes
    return tuple(dict.fromkeys(reversed(found)))


def _readers_of_rows(node: fx.Node) -> Iterator[fx.Node]:
    """The reader of rows that a table is asked for, through operations that leave each of them whole; else the node."""
    if not operator_of(node).is_a(Trait.TABLE) or len(node.args) > 2:  # with padding, some row has no gradient
        yield node
        return
    queue, width = list(node.users), node.meta["val"].shape[-1]
    while queue:
        user = queue.pop()
        operator, value = operator_of(user), user.meta.get("val")
        whole = operator.movement in (Movement.ORDERED, Movement.DROPPED) or operator.is_a(Trait.CASTING)
        if whole and isinstance(value, Tensor) and value.ndim > 1 and value.shape[-1] == width:
            queue += user.users
        elif not operator.is_a(Trait.SHAPE_ONLY):
            yield user


def _normalises(node: fx.Node) -> bool:
    """Whether a node normalises each row by itself."""
    axes: Any = node.args[1] if operator_of(node).is_a(Trait.SLICEWISE) else ()
    return len(axes) == 1


def summed(node: fx.Node) -> tuple[list[int], bool]:
    """The axes that a sum or mean names, and whether it keeps them; none where it takes all."""
    dims: Any = node.args[1] if len(node.args) > 1 else []
    axes = [dims] if isinstance(dims, int) else list(dims or [])
    ndim = node.all_input_nodes[0].meta["val"].ndim
    return [axis % ndim for axis in axes], len(node.args) > 2 and bool(node.args[2])


def _fits(found: object, value: object) -> bool:
    """Whether what a rule returns has the shape of what the operation does (of its first result, if several)."""
    first = next(iter(found), None) if isinstance(found, (tuple, list)) else found
    like = next(iter(value), None) if isinstance(value, (tuple, list)) else value
    return not isinstance(like, Tensor) or not isinstance(first, Signal) or first.shape == _shape(like)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape with every free dimension at that batch."""
    return tuple(size if isinstance(size, int) else _concrete(size) for size in tensor.shape)


def _concrete(size: torch.SymInt) -> int:
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, BATCH)))


def _leaf_axes(
    node: fx.Node, shape: tuple[int, ...], references: Collection[str]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """How a parameter may be acted on, by its use: `(view, axes)` of each role.

    A matrix by its rows and by its columns (a stack of matrices each by its own), an operand of an einsum by the axes
    that it writes and by those that it reads, a convolution by output and input channels of each group, anything else
    as one vector.
    """
    use = _first_use(node, references)
    yield from ((shape, (axis,)) for axis in _normed_axes(node) if axis > 1)
    if use is not None and len(shape) >= 2 and (sides := list(_einsum_axes(node, use))):
        yield from ((shape, axes) for axes in sides)
        return
    if use is not None and operator_of(use).is_a(Trait.CONVOLUTION) and len(shape) >= 3:
        yield from _convolution_axes(use, shape)
    elif use is not None and operation_name(use.target) == "bilinear" and len(shape) == 3:
        yield from ((shape, (axis,)) for axis in range(3))
    elif use is not None and len(shape) >= 2:
        leading = tuple(range(len(shape) - 2))
        yield shape, (*leading, len(shape) - 2)
        yield shape, (*leading, len(shape) - 1)
    else:
        yield shape, tuple(range(len(shape)))


def _normed_axes(node: fx.Node) -> Iterator[int]:
    """Axes along which a weight norm takes the scale of each index by itself."""
    for user in node.users:
        if operation_name(user.target) in ("_weight_norm", "_weight_norm_interface") and user.args[0] is node:
            dim: Any = user.args[2] if len(user.args) > 2 else 0
            yield int(dim)


def _einsum_axes(node: fx.Node, use: fx.Node) -> Iterator[tuple[int, ...]]:
    """Axes that an operand of an einsum gives to the output, and those that are summed over; shared ones with both.

    Of a tensordot likewise.
    """
    args: Any = use.args
    name = operation_name(use.target)
    spelled = name == "einsum"
    operands: Any = args[1] if spelled else args[:2] if name == "tensordot" else ()
    if list(operands).count(node) != 1:
        return
    ndims = [operand.meta["val"].ndim for operand in operands]
    terms, output = einsum_terms(str(args[0]), ndims) if spelled else dotted(ndims, *args[2:4])
    own = terms.pop(list(operands).index(node))
    shared = [axis in "".join(terms) for axis in own]
    written = tuple(place for place, axis in enumerate(own) if axis in output)
    read = tuple(place for place, axis in enumerate(own) if shared[place])
    yield from dict.fromkeys(axes for axes in (written, read) if axes)


def _first_use(node: fx.Node, references: Collection[str]) -> fx.Node | None:
    """The first linear map or convolution that a parameter enters, through operations that only move elements."""
    queue = [node]
    while queue:
        for user in queue.pop(0).users:
            name, use = operation_name(user.target), operator_of(user)
            if use.is_a(_MAP | Trait.CONVOLUTION | Trait.RECURRENT) or use.reference is not None or name in references:
                return user
            if use.moves or name in _ENTERED:
                queue.append(user)
    return None


def _convolution_axes(use: fx.Node, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    groups: Any = use.args[6] if len(use.args) > 6 else 1  # the same place for transposed convolutions
    if shape[0] % int(groups):  # no kernel: what one is computed from
        yield shape, tuple(range(len(shape)))
        return
    view = (int(groups), shape[0] // int(groups), *shape[1:])
    yield view, (0, 1)
    yield view, (0, 2)
