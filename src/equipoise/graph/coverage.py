"""Proof that every use of every parameter was read, or the list of what was not, or not followed exactly.

The symmetries that operations declare are sound, and exact for most networks. Where one keeps only a part of the
generators that an operation commutes with, the propagation notes the place, and what reads the result decides whether
anything is lost: the common scale of attention scores is of no use in front of a softmax, the rotations that a norm
leaves alone end at a gain.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from equipoise.graph.exchanges import exchanges
from equipoise.graph.labels.signal import Signal
from equipoise.graph.ops import operation_name, operator_of
from equipoise.graph.ops.operator import Movement, Trait
from equipoise.graph.propagate import SymmetryPropagation, Unmatched, summed

_LINEAR = Trait.PRODUCT | Trait.CONVOLUTION


@dataclass(frozen=True)
class Unfollowed:
    """An operation that is not read exactly, and the parameters whose laws through it may be missing."""

    node: str
    operation: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.operation} at {self.node} (laws through it may be missing for {', '.join(self.parameters)})"


@dataclass(frozen=True)
class Refuted:
    """A law that a backward pass at random weights shows to be false, and the operations between its members."""

    law: str
    residual: float
    operations: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.law} (residual {self.residual:.1e}; one of {', '.join(self.operations)} is misread)"


@dataclass(frozen=True)
class Coverage:
    """Uses of parameters that were read, and what was not.

    An operation that is not declared holds still all that it reads: the laws that are returned stay proved, those that
    it might have had are missing. `unfollowed` operations are read, but keep less than they might: a law through them
    may be missing beside those found. `lawless` counts the maps, such as GELU, that commute with no linear flow: the
    units in front of them have no law of their own. `unused` parameters take no part in the output, `frozen` ones in
    training.
    `in_no_law` are trained parameters that no law found names: what they conserve, if anything, was not derived.
    Within each group of `exchanges` parameters are added to each other, so that differences of their sums are conserved
    too; these linear laws are not among those returned.
    `refuted` laws were dropped by the self-test; `untested` says why there was none, empty if there was.
    """

    uses: Mapping[str, tuple[str, ...]]
    unmatched: tuple[Unmatched, ...] = ()
    unfollowed: tuple[Unfollowed, ...] = ()
    unused: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    lawless: Mapping[str, int] = field(default_factory=dict)
    exchanges: tuple[tuple[str, ...], ...] = ()
    in_no_law: tuple[str, ...] = ()
    refuted: tuple[Refuted, ...] = ()
    untested: str = ""

    def beside(self, named: Collection[str]) -> "Coverage":
        """The same, beside laws that name these parameters."""
        lost = tuple(name for name in self.uses if name not in named and name not in self.frozen)
        return replace(self, in_no_law=lost)

    def exchanging(self, groups: Collection[tuple[str, ...]]) -> "Coverage":
        """The same, with more groups of parameters whose shifts cancel."""
        return replace(self, exchanges=(*self.exchanges, *groups))

    @property
    def complete(self) -> bool:
        """Whether the symmetry of every operation is declared."""
        return not self.unmatched

    def __str__(self) -> str:
        head = f"{sum(map(len, self.uses.values()))} uses of {len(self.uses)} parameters seen"
        missing = [f"{u.operation} at {u.node} (touches {', '.join(u.parameters) or 'none'})" for u in self.unmatched]
        through = [f"{name} ({count})" for name, count in self.lawless.items()]
        exchanges = [" with ".join(group) for group in self.exchanges]
        parts = [
            ("not read", missing),
            ("not followed", [str(each) for each in self.unfollowed]),
            ("no law through", through),
            ("in no law", self.in_no_law),
            ("no law stated of shifts that cancel", exchanges),
            ("unused", self.unused),
            ("frozen", self.frozen),
            ("dropped as false", [str(each) for each in self.refuted]),
            ("not tested", [self.untested] if self.untested else []),
        ]
        return "; ".join([head, *(f"{label}: {', '.join(names)}" for label, names in parts if names)])


def coverage(propagation: SymmetryPropagation) -> Coverage:
    """The uses of parameters that a propagation has read, and what it has not.

    >>> import torch
    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> print(coverage(SymmetryPropagation(capture(nn.Linear(2, 1), torch.ones(2, 2)))))
    2 uses of 2 parameters seen
    """
    captured, groups = propagation.captured, exchanges(propagation)
    users = {node.name: tuple(user.name for user in node.users) for node in captured.graph.find_nodes(op="placeholder")}
    uses = {name: users[placeholder] for placeholder, name in captured.parameters.items()}
    return Coverage(
        uses={name: nodes for name, nodes in uses.items() if nodes},
        unmatched=tuple(propagation.unmatched),
        unfollowed=unfollowed(propagation, groups),
        unused=tuple(name for name, nodes in uses.items() if not nodes),
        frozen=tuple(name for name in uses if name in propagation.frozen),
        lawless=dict(Counter(_lawless(propagation))),
        exchanges=groups,
    )


def _lawless(propagation: SymmetryPropagation) -> Iterator[str]:
    """Operations on what parameters compute that leave no linear flow."""
    for node in propagation.captured.graph.nodes:
        if node.op == "call_function" and operator_of(node).is_a(Trait.LAWLESS) and propagation.upstream(node):
            yield operation_name(node.target)


# What is read, but not followed ------------------------------------------------------------------------------------


def unfollowed(propagation: SymmetryPropagation, groups: Collection[tuple[str, ...]] = ()) -> tuple[Unfollowed, ...]:
    """The places at which something may be lost, in the order of the graph, beside shifts exchanged within `groups`.

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
    >>> (lost,) = eq.invariances(Neighbours(), torch.ones(4, 2)).coverage.unfollowed
    >>> lost.operation, lost.parameters
    ('add', ('a.weight',))
    """
    return tuple(_noted(propagation, groups))


def _noted(propagation: SymmetryPropagation, groups: Collection[tuple[str, ...]]) -> Iterator[Unfollowed]:
    algebra, read = propagation.algebra, {each.node for each in propagation.unmatched}
    for node in propagation.captured.graph.nodes:
        parameter = propagation.captured.parameters.get(node.name)
        if parameter is not None and parameter not in propagation.frozen and (cut := _cut_up(node)):
            yield Unfollowed(cut.name, operation_name(cut.target), (parameter,))
        lost = (
            node.name in algebra.narrowed
            or node.name in propagation.unshifted
            or (node.name in algebra.scalable and _scales(node, propagation))
            or (node.name in algebra.turnable and _turns(node, propagation))
        )
        parameters = propagation.upstream(node) if lost and node.name not in read else ()
        if lost and not parameters and node.name not in read and node.name not in propagation.unshifted:
            parameters = _behind(node, propagation)
        parameters = parameters or _skip(node, propagation) or _normed_map(node, propagation)
        parameters = parameters or _rows_of_tokens(node, propagation, groups)
        if operation_name(node.target) == "exp" and (weighed := _softmax_over_data(node)):
            parameters = tuple(dict.fromkeys(name for each in (node, *weighed) for name in propagation.upstream(each)))
        if parameters:
            yield Unfollowed(node.name, operation_name(node.target), parameters)


def _behind(node: fx.Node, propagation: SymmetryPropagation) -> tuple[str, ...]:
    """The parameters that a node is computed from, through products of data with each other too."""
    sources = [source for source in node.all_input_nodes if operator_of(source).is_a(Trait.PRODUCT)]
    queue, seen = sources or list(node.all_input_nodes), set()
    found: dict[str, None] = {}
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        if operator_of(current).is_a(Trait.PRODUCT):
            found |= dict.fromkeys(name for each in current.all_input_nodes for name in propagation.upstream(each))
        else:
            queue += current.all_input_nodes
    return tuple(found)


def _normed_map(node: fx.Node, propagation: SymmetryPropagation) -> tuple[str, ...]:
    """Parameters of a linear map whose vectors only a map of normed weight reads: rotations leave its norms alone."""
    if operation_name(node.target) not in ("_weight_norm", "_weight_norm_interface"):
        return ()
    for reader in _after(node):
        for vector in _linear_maps(reader.all_input_nodes) if operator_of(reader).is_a(_LINEAR) else ():
            trained = propagation.upstream(vector)
            if trained and all(operator_of(each).is_a(_LINEAR) for each in _after(vector)):
                return tuple(dict.fromkeys([*trained, *propagation.upstream(node)]))
    return ()


def _skip(node: fx.Node, propagation: SymmetryPropagation) -> tuple[str, ...]:
    """Parameters around a sum of a vector and a trained linear map of it: `W + I`, whose laws are not of `W` alone."""
    name = operation_name(node.target)
    if name not in ("add", "sub", "addmm"):
        return ()
    summands = node.args[: 1 if name == "addmm" else 2]
    vectors = {each for each in map(_unmoved, summands) if isinstance(each, fx.Node)}
    for product in _linear_maps([node] if name == "addmm" else summands):
        adds = operation_name(product.target) == "addmm"  # its first argument to the product of the others
        factors = [each for each in product.args[adds:] if isinstance(each, fx.Node)]
        trained = [each for each in factors if _made_of_weights(propagation, each)]
        read = {_unmoved(each) for each in factors if each not in trained}
        if trained and vectors & read:
            return tuple(dict.fromkeys([*propagation.upstream(node), *propagation.upstream(product)]))
    return ()


def _linear_maps(values: Iterable[object]) -> list[fx.Node]:
    """The linear maps whose results these values are, their elements moved or all multiplied by one number."""
    sources = map(_unmoved, values)
    return [each for each in sources if isinstance(each, fx.Node) and operator_of(each).is_a(_LINEAR)]


def _rows_of_tokens(
    node: fx.Node, propagation: SymmetryPropagation, groups: Collection[tuple[str, ...]]
) -> tuple[str, ...]:
    """Parameters set beside data, as a class token, to which positions add a row that nothing else reads."""
    if operation_name(node.target) != "add":
        return ()
    for joined, other in (node.args[:2], node.args[1::-1]):
        parts = _parts(_unmoved(joined)) if _rows(other, propagation) else []
        tokens = [part for part in parts if _made_of_weights(propagation, part)]
        beside = len(tokens) < len(parts)
        sources = [*tokens, *([other] if isinstance(other, fx.Node) else [])]
        names = tuple(dict.fromkeys(name for each in sources for name in _parameters_of(each, propagation)))
        trained = [name for name in names if name not in propagation.frozen]
        if tokens and beside and len(trained) > 1 and not any(set(names) <= set(group) for group in groups):
            return names
    return ()


def _parts(argument: object) -> list[fx.Node]:
    """Tensors side by side."""
    first = argument.args[:1] if isinstance(argument, fx.Node) else ()
    return [part for each in first if isinstance(each, (list, tuple)) for part in each if isinstance(part, fx.Node)]


def _rows(argument: object, propagation: SymmetryPropagation) -> bool:
    """Whether a value is made of weights alone, or of rows of a table at places that are known."""
    if not isinstance(argument, fx.Node):
        return False
    places = [propagation.signals[each] for each in argument.all_input_nodes[1:2]]
    known = any(isinstance(each, Signal) and each.value is not None for each in places)
    return _made_of_weights(propagation, argument) or (operator_of(argument).is_a(Trait.TABLE) and known)


def _parameters_of(node: fx.Node, propagation: SymmetryPropagation) -> tuple[str, ...]:
    """The parameters that a value is made of."""
    own = propagation.captured.parameters.get(node.name)
    return (own,) if own is not None else propagation.upstream(node)


def _unmoved(argument: object) -> object:
    """The source of a value that only has its elements moved, and all multiplied by one number."""
    while isinstance(argument, fx.Node) and argument.op == "call_function":
        scaled = operation_name(argument.target) in ("mul", "div") and len(argument.all_input_nodes) == 1
        if not (scaled or operator_of(argument).movement is Movement.ORDERED):
            break
        argument = argument.all_input_nodes[0]
    return argument


def _cut_up(node: fx.Node) -> fx.Node | None:
    """Notes on weights cut into parts that read different vectors: only what is common to all of these is kept."""
    matrix = node.meta["val"].ndim > 1
    cuts = [user for user in node.users if matrix and operator_of(user).movement is Movement.DROPPED]
    parts = [reader for cut in cuts for reader in _after(cut) if operation_name(reader.target) == "linear"]
    vectors = {part.args[0] for part in parts if isinstance(part.args[0], fx.Node)} - {node}
    return cuts[0] if len(vectors) > 1 else None


def _softmax_over_data(node: fx.Node) -> list[fx.Node]:
    """Notes on `exp / index(scatter(exp))`, a softmax over sets that the data choose: it ignores shifts."""
    sums = {
        user for user in _after(node) if operation_name(user.target) in ("scatter_add", "index_add", "scatter_reduce")
    }
    totals = {each for total in sums for each in _after(total)}
    shares = [user for user in node.users if operation_name(user.target) == "div" and user.args[1] in totals]
    products = {each for share in shares for each in _after(share) if operation_name(each.target) == "mul"}
    return [*shares, *products]


def _after(node: fx.Node) -> set[fx.Node]:
    """The readers of a value, through operations that only move it or add a number."""
    found: set[fx.Node] = set()
    queue = [node]
    while queue:
        for user in queue.pop().users:
            passes = operator_of(user).passes or operation_name(user.target) in _KEEPING_SHIFTS
            queue += [user] if passes and user not in found else []
            found.add(user)
    return found


def _scales(node: fx.Node, propagation: SymmetryPropagation) -> bool:
    """Whether some reader can use the scale of a product.

    Piecewise linear maps pass it on, products and normalisations use it, activations and sums with data end it.
    """
    queue, seen = [node], {node}
    while queue:
        current = queue.pop()
        for user in current.users:
            operator = operator_of(user)
            if user.op == "output" or operator.is_a(Trait.RESTING):
                continue
            other, name = _other(current, user), operation_name(user.target)
            scales = operator.passes or operator.is_a(Trait.TOTAL | Trait.HOMOGENEOUS)
            passes = scales or (name in ("mul", "div") and other is None)
            if not passes and name not in ("add", "sub"):
                return True
            if (passes or (other is not None and propagation.upstream(other))) and user not in seen:
                seen.add(user)
                queue.append(user)
    return False


_KEEPING_SHIFTS = ("index_select", "index", "add", "clamp_min")


def _turns(node: fx.Node, propagation: SymmetryPropagation) -> bool:
    """Whether nothing that reads the vector whose norm is taken depends on its directions."""
    vector = node.all_input_nodes[0]
    queue, seen = [vector], {vector}
    while queue:
        current = queue.pop()
        for user in current.users:
            kept = _turned(current, user, propagation)
            if kept is False:
                return False
            if kept is None and user not in seen:
                seen.add(user)
                queue.append(user)
    return True


def _turned(source: fx.Node, user: fx.Node, propagation: SymmetryPropagation) -> bool | None:
    """Whether rotations pass on from a vector to what is computed from it (None), end well (True) or not (False)."""
    name, operator, other = operation_name(user.target), operator_of(user), _other(source, user)
    if operator.is_a(Trait.PRODUCT | Trait.ROTATABLE | Trait.SHAPE_ONLY) or name == "detach":
        return True
    if operator.is_a(Trait.TOTAL):
        axes, ndim = summed(user)[0], source.meta["val"].ndim
        return True if not axes or ndim - 1 in axes else None
    if operator.passes or name == "square" or (name == "pow" and user.args[1] == 2):
        return None
    if name in ("add", "sub", "mul", "div") and (other is None or _narrow(propagation, other)):
        return None
    if name in ("add", "sub", "mul") and other is not None and propagation.upstream(other):
        return None if not _made_of_weights(propagation, other) else False
    return None if name in ("layer_norm", "rms_norm") and len(user.all_input_nodes) == 1 else False


def _other(source: fx.Node, user: fx.Node) -> fx.Node | None:
    """The other factor or summand; None for a number."""
    return next((argument for argument in user.all_input_nodes if argument is not source), None)


def _made_of_weights(propagation: SymmetryPropagation, node: fx.Node) -> bool:
    signal = propagation.signals[node]
    return isinstance(signal, Signal) and bool(signal.weights)


def _narrow(propagation: SymmetryPropagation, node: fx.Node) -> bool:
    """Whether a tensor has one number for each vector along the last axis."""
    signal = propagation.signals[node]
    return not isinstance(signal, Signal) or not signal.ndim or signal.shape[-1] == 1 or signal.ndim - 1 in signal.alike
