"""A captured network run with fixed weights in place of its kinks (T6.2), or recording its pre-activations.

Piecewise-linear operations are kinks, each replaced by a linear map (`graph/piecewise.py`). All else that depends on
the weights must be differentiable almost everywhere and is known by name; it is taken at the midpoint as it is.
Anything unknown is refused.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from equipoise.errors import InputError
from equipoise.graph.capture import Captured, Decompositions, Inputs, Intercept, capture
from equipoise.graph.export.program import Arguments
from equipoise.graph.ops import OPERATORS, operation_name, operator_of
from equipoise.graph.ops.operator import Regularity, Trait
from equipoise.graph.piecewise import Piecewise, Rectifier

DECOMPOSITIONS: Decompositions = {
    getattr(getattr(torch.ops.aten, name), overload): function
    for name, operator in OPERATORS.items()
    for overload, function in operator.decompositions.items()
}
"""Operations that bend, in terms of ReLU and of maxima along an axis: the two whose kinks are known (T6.2).

A flow does not pass a kink that it does not know of: the midpoint rule stalls where the derivative jumps.
"""

_DIFFERENTIABLE = (Regularity.MOVES, Regularity.LINEAR, Regularity.SMOOTH, Regularity.BENT)


@dataclass(frozen=True)
class Kink:
    """A piecewise-linear operation at a node of the graph."""

    node: fx.Node
    map: Piecewise

    @property
    def negative_slope(self) -> float | None:
        """The slope below zero; `None` for a maximum."""
        return self.map.negative_slope

    @property
    def source(self) -> fx.Node:
        """The node that computes the pre-activation."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source


def kinks(captured: Captured) -> tuple[Kink, ...]:
    """The piecewise-linear operations that depend on the weights, in execution order.

    Raises `InputError`, naming the operation, when some other one is not known to be differentiable almost everywhere.
    """
    found = []
    for node in _depending(captured):
        piecewise = _read_piecewise(node)
        if piecewise is not None:
            found.append(Kink(node, piecewise))
        else:
            _require_differentiable(node)
    return tuple(found)


def rectified(captured: Captured, model: nn.Module, example_inputs: Inputs) -> Captured:
    """The same computation, read again where that makes more of its kinks known.

    >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU6())
    >>> graph = rectified(capture(model, torch.ones(4, 3)), model, torch.ones(4, 3)).graph
    >>> [node.target.__name__ for node in graph.nodes if node.op == "call_function"]
    ['linear.default', 'relu.default', 'neg.default', 'sub.Tensor', 'relu.default', 'add.Tensor', 'neg.default']
    """
    bends = any(node.target in DECOMPOSITIONS for node in captured.graph.nodes)
    return capture(model, example_inputs, DECOMPOSITIONS) if bends else captured


def unfollowed(captured: Captured) -> list[str]:
    """The operations whose derivative jumps where no kink is known: a flow may stall there.

    >>> from equipoise.graph.capture import capture
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.MaxPool1d(2, dilation=2))
    >>> unfollowed(capture(model, torch.ones(2, 4)))
    ['max_pool1d']
    """
    bent = [node for node in _depending(captured) if operator_of(node).regularity is Regularity.BENT]
    return [node.name for node in bent if _read_piecewise(node) is None]


def rectifiers(captured: Captured) -> list[fx.Node]:
    """The operations of any network that bend each number at zero, with fixed slopes: ReLU, leaky ReLU, abs."""
    return [node for node in captured.graph.nodes if isinstance(_read_piecewise(node), Rectifier)]


def piecewise_linear(captured: Captured, besides: Collection[str] = ()) -> tuple[Kink, ...] | None:
    """The kinks of a network that is linear between them, multilinear in its weights; `None` for any other.

    `besides` names further operations that may occur.
    """
    try:
        found = kinks(captured)
    except InputError:
        return None
    bent, depending = {kink.node for kink in found}, _depending(captured)
    divided = any(operation_name(node.target) == "div" and node.args[1] in depending for node in depending)
    return (
        found
        if not divided
        and all(node in bent or is_linear(node) or operation_name(node.target) in besides for node in depending)
        else None
    )


def _depending(captured: Captured) -> list[fx.Node]:
    """The operations whose value depends on the weights; unpacking of tuples left out."""
    depending: dict[fx.Node, None] = {}
    for node in captured.graph.nodes:
        if node.name in captured.parameters or any(source in depending for source in node.all_input_nodes):
            depending[node] = None
    return [node for node in depending if node.op == "call_function" and not _is_plumbing(node)]


def is_linear(node: fx.Node) -> bool:
    """Whether a node is one of the linear operations of a network, in its input; sizes are none."""
    return operator_of(node).linear and operation_name(node.target) != "sym_size"


def stand_ins(kinks: Sequence[Kink], slopes: Sequence[Tensor], offsets: Sequence[Tensor] | None = None) -> Intercept:
    """An interceptor that replaces every kink by its linear map with these weights, for `Captured.run` (T6.2).

    `offsets`, one for each kink, are added to what leaves it.
    """
    chosen = {kink.node: (kink.map, weights) for kink, weights in zip(kinks, slopes, strict=True)}
    added = {} if offsets is None else {kink.node: offset for kink, offset in zip(kinks, offsets, strict=True)}

    def intercept(node: fx.Node, args: Arguments) -> object:
        if node not in chosen:
            return NotImplemented
        stand_in, weights = chosen[node]
        leaving = stand_in.sloped(args[0], weights, *_tensors(args[1:]))
        return leaving + added[node] if node in added else leaving

    return intercept


def frozen(
    captured: Captured,
    kinks: Sequence[Kink],
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    slopes: Sequence[Tensor],
    offsets: Sequence[Tensor] | None = None,
) -> Tensor:
    """The network's output with every kink replaced by its linear map with these weights, as by `stand_ins` (T6.2)."""
    return captured.run(parameters, inputs, intercept=stand_ins(kinks, slopes, offsets))


def recorded(
    captured: Captured,
    kinks: Sequence[Kink],
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    slopes: Sequence[Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The network's output and the pre-activation of every kink; with `slopes`, those of the frozen network."""
    through = _exactly(kinks) if slopes is None else stand_ins(kinks, slopes)
    seen: dict[fx.Node, Tensor] = {}

    def intercept(node: fx.Node, args: Arguments) -> object:
        leaving = through(node, args)
        if leaving is not NotImplemented:
            seen[node] = args[0]
        return leaving

    output = captured.run(parameters, inputs, intercept=intercept)
    return output, tuple(seen[kink.node] for kink in kinks)


@dataclass(frozen=True)
class Activations:
    """One pass through a network.

    Attributes:
        output: all that it returns.
        entering: what each of the nodes asked for reads first.
        features: what each linear map reads, by the name of its weight, in execution order.
    """

    output: Tensor | tuple[Tensor, ...]
    entering: Mapping[fx.Node, Tensor]
    features: Mapping[str, Tensor]


def activations(
    captured: Captured, nodes: Collection[fx.Node], parameters: Mapping[str, Tensor], inputs: Tensor
) -> Activations:
    """The output, what enters some nodes, and what each linear map by a parameter reads; of its first use.

    >>> model = nn.Sequential(nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 1))
    >>> seen = activations(capture(model, torch.ones(4, 3)), (), dict(model.named_parameters()), torch.ones(5, 3))
    >>> {name: tuple(read.shape) for name, read in seen.features.items()}
    {'0.weight': (5, 3), '2.weight': (5, 2)}
    """
    maps = {
        node: captured.parameters[weight.name]
        for node in captured.graph.nodes
        if operator_of(node).is_a(Trait.PRODUCT | Trait.CONVOLUTION)
        for weight in node.args[1:2]
        if isinstance(weight, fx.Node) and weight.name in captured.parameters
    }
    entering: dict[fx.Node, Tensor] = {}
    features: dict[str, Tensor] = {}

    def record(node: fx.Node, args: Arguments) -> object:
        if node in nodes:
            entering[node] = args[0]
        if node in maps:
            features.setdefault(maps[node], args[0])
        return NotImplemented

    return Activations(captured.run(parameters, inputs, intercept=record), entering, features)


def _exactly(kinks: Sequence[Kink]) -> Intercept:
    """Every kink as it is."""
    maps = {kink.node: kink.map for kink in kinks}
    return lambda node, args: maps[node].exact(args[0], *_tensors(args[1:])) if node in maps else NotImplemented


def _require_differentiable(node: fx.Node) -> None:
    name, operator = operation_name(node.target), operator_of(node)
    if operator.draws(node):
        raise InputError(
            expected="a model whose output is the same each time",
            found=f"{name} at {node.name} in training mode",
            remedy="call model.eval() first",
        )
    if operator.regularity in _DIFFERENTIABLE:
        return
    raise InputError(
        expected="a network whose output is differentiable almost everywhere in its weights",
        found=f"{name} at {node.name}, "
        + (
            "whose derivative is zero almost everywhere"
            if operator.regularity is Regularity.FLAT
            else "an operation that is not known to be"
        ),
        remedy="replace it (nn.ReLU() and nn.GELU() will do), or use eq.watch, which takes any network",
    )


def _tensors(args: Sequence[object]) -> list[Tensor]:
    return [argument for argument in args if isinstance(argument, Tensor)]


def _is_plumbing(node: fx.Node) -> bool:
    """Unpacking of tuples and arithmetic on sizes."""
    return getattr(node.target, "__module__", "") in ("_operator", "math")


def _read_piecewise(node: fx.Node) -> Piecewise | None:
    """The map of a node that is piecewise linear, or `None`."""
    read = operator_of(node).piecewise
    return None if read is None else read(node)
