"""The registry of operations: each is declared once, and every pass over a graph is a fold over the declarations.

An operation of ATen has a name without overload (`relu`). What is declared of it is a value, `Operator`; a fact that is
left out is not known, and the pass that needs it says so or demands the most: an operation without `symmetry` holds
still all that it reads, one without `degree` ends a proof of homogeneity, one without `lift` cannot be decomposed.
Rules of shifts read a `Site`, a node at which an operation is applied, with what is known of every tensor.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from numpy import ndarray
from scipy.sparse import csr_array
from torch import Tensor, fx
from torch.fx.node import Argument, map_arg

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.shift_groups import Groups, Rows
from equipoise.graph.labels.signal import Signal
from equipoise.graph.ops.rules import DegreeRule, ExchangeRule, LiftRule
from equipoise.graph.piecewise import Piecewise

# Kinds of operations --------------------------------------------------------------------------------------------------


class Regularity(Enum):
    """How the result of an operation depends on what it reads."""

    MOVES = auto()  # elements are moved, copied, masked or left out
    LINEAR = auto()  # linear, or a product of two inputs
    SMOOTH = auto()  # differentiable where it is defined
    BENT = auto()  # differentiable almost everywhere
    FLAT = auto()  # its derivative is zero almost everywhere


class Movement(Enum):
    """The effect on copies of elements of an operation that only moves them."""

    ORDERED = auto()  # the same elements in the same order
    TURNED = auto()  # axes in another order
    KEPT = auto()  # each element once
    DROPPED = auto()  # some are left out
    COPIED = auto()  # some come more than once


class Trait(Flag):
    """Kinds of operations that a pass treats alike."""

    NONE = 0
    LAWLESS = auto()  # commutes with no linear flow
    RESTING = auto()  # what it reads must rest: no scale is left behind it
    HOMOGENEOUS = auto()  # passes on a positive scale of what it reads
    SHAPE_ONLY = auto()  # reads shapes, no values
    CHANNELWISE = auto()  # leaves every channel to itself
    ELEMENTWISE = auto()  # a function of each element by itself, beside those that are CHANNELWISE
    POOLING = auto()  # over the positions of each channel
    PRODUCT = auto()  # sums products of what it reads
    ROTATABLE = auto()  # rotations of the vectors that it reads may leave it as it is
    CONVOLUTION = auto()
    TABLE = auto()  # picks rows of a table
    TOTAL = auto()  # a sum or a mean
    CENTRE = auto()  # what is subtracted to centre a tensor
    NORM = auto()
    ROOT = auto()  # a power, under which a tiny constant is the `eps` of a normalisation
    SPLITTING = auto()  # returns several parts of what it reads
    PICKING = auto()  # entries at places given by a tensor
    CASTING = auto()  # the same numbers, in another type or with another sign
    SLICEWISE = auto()  # normalises each slice along the last axes by itself
    RECURRENT = auto()  # layers with two biases of which only the sum is used


# Sites ----------------------------------------------------------------------------------------------------------------


class Unreadable(ValueError):
    """A form of an operation that its declaration does not read; nothing that it reads may then move."""


@dataclass(frozen=True)
class Site:
    """A node, and the signal of every node of its graph; with `through_detach`, `detach` is the identity."""

    node: fx.Node
    signals: Mapping[fx.Node, object]
    through_detach: bool = False

    @property
    def args(self) -> tuple[Argument, ...]:
        """The arguments of the node."""
        return self.node.args

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its result, or of the first of several."""
        return self.shape_of(self.node)

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of another value."""
        signal = self.signals[node]
        signal = signal[0] if isinstance(signal, (tuple, list)) and signal else signal
        return signal.shape if isinstance(signal, Signal) else ()

    def signal(self, node: fx.Node) -> Signal:
        """The signal of a node that computes one tensor."""
        signal = self.signals[node]
        return signal if isinstance(signal, Signal) else Signal(self.shape_of(node))

    def value(self, node: fx.Node) -> Tensor | None:
        """The tensor itself, where it depends on neither inputs nor parameters."""
        return self.signal(node).value

    def tensors(self, count: int = 2) -> Iterator[fx.Node]:
        """Those of the first arguments that other nodes compute."""
        return (argument for argument in self.args[:count] if isinstance(argument, fx.Node))

    def source(self) -> fx.Node:
        """The first of these."""
        return next(self.tensors())

    def tensor(self, place: int) -> fx.Node | None:
        """The argument at a place, if another node computes it."""
        argument = self.args[place] if len(self.args) > place else None
        return argument if isinstance(argument, fx.Node) else None

    def integer(self, place: int, default: int = 0) -> int:
        """The argument at a place, an integer."""
        argument = self.args[place] if len(self.args) > place else default
        return int(argument) if isinstance(argument, (int, float)) else default

    def integers(self, place: int, default: Sequence[int] = ()) -> list[int]:
        """The argument at a place, integers or a single one."""
        argument = self.args[place] if len(self.args) > place else None
        if isinstance(argument, int) and not isinstance(argument, bool):
            return [argument]
        return [int(each) for each in argument] if isinstance(argument, (list, tuple)) else list(default)  # pyright: ignore[reportArgumentType]

    def plain(self, arguments: Sequence[Argument]) -> list[Argument]:
        """Arguments with values in place of nodes; raises `Unreadable` where one depends on the data."""
        return [map_arg(argument, self._held) for argument in arguments]  # pyright: ignore[reportArgumentType]

    def _held(self, node: fx.Node) -> object:
        signal = self.signals[node]
        if not isinstance(signal, Signal):
            return signal
        if signal.value is None:
            raise Unreadable("by the data")
        return signal.value


def element_numbers(shape: Sequence[int]) -> Tensor:
    """`0, 1, …` in a shape.

    >>> element_numbers((2, 2))
    tensor([[0, 1],
            [2, 3]])
    """
    return torch.arange(math.prod(shape)).reshape(tuple(shape))


# Rules ----------------------------------------------------------------------------------------------------------------

SymmetryRule: TypeAlias = Callable[..., "Signal | tuple[Signal, ...]"]
"""`rule(algebra, *args, **kwargs)`: restrict the generators of the arguments and return how the result moves."""

Sources: TypeAlias = Iterator[tuple[fx.Node, Groups | Rows | None]]
IgnoringRule: TypeAlias = Callable[[Site], Sources]
"""Groups of elements of the arguments whose common shift changes no result."""

ShiftRule: TypeAlias = Callable[[Site, Groups | Rows], Sources]
"""Groups of the arguments, from groups of the result whose shift no reader sees."""


Summands: TypeAlias = Iterator[tuple[fx.Node | None, csr_array]]
CombinationRule: TypeAlias = Callable[[Site], Summands]
"""Matrices by which the elements of the result are combined of those of the arguments; of the number one for None."""

BalanceRule: TypeAlias = Callable[[Site], "tuple[ndarray, float] | None"]
"""The numbers of elements of the result, slice by slice, that sum to one number for all data; and that number."""

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Contraction:
    """A product as an `einsum`: `terms` gives the axes of each factor and of the result, one letter each.

    `factors` says which arguments they are, `bias` which one is added.
    """

    terms: Callable[[Site, list[Shape]], tuple[list[str], str]]
    factors: slice = field(default_factory=lambda: slice(0, 2))
    bias: int | None = 2


@runtime_checkable
class EpsRule(Protocol):
    """A normalisation of `args` with its `eps` multiplied by a factor, one for each of its units."""

    def __call__(self, args: Sequence[object], factor: Tensor, /) -> Tensor | tuple[Tensor, ...]:
        """Its result."""
        ...


@dataclass(frozen=True)
class Eps:
    """The small constant that breaks the scale symmetry of a normalisation (T1).

    `place` is its argument, `defaults` are the optional arguments before it. `compute` is the operation with another
    one, `units(node)` how many statistics it has for each example, where that is known.
    """

    place: int
    defaults: tuple[object, ...] = ()
    compute: EpsRule | None = None
    units: Callable[[fx.Node], int] | None = None


# Declarations ---------------------------------------------------------------------------------------------------------


def _never(node: fx.Node) -> bool:
    return False


@dataclass(frozen=True)
class Operator:
    """All that is known of one operation.

    Args:
        symmetry: What it demands of the generators of its arguments, and how its result moves (docs/theory.md, T1).
        reference: What it computes, in operations that have a symmetry, in place of one of its own.
        ignores: Shifts of its arguments that it ignores by itself, as a softmax does.
        shift: From the shifts of its result that no reader sees, those of its arguments.
        shifts_and_ignores: Whether `shift` counts where something is ignored already.
        exchange: By how much its result moves if parameters are shifted by constants.
        combination: The result as a linear combination of the arguments, with constant coefficients.
        balance: Slices of the result whose sum the data cannot change.
        contraction: The product that it computes.
        degree: The degree of its result in the weights, from those of its arguments.
        regularity: How the result depends on what is read.
        movement: What it does to the copies of elements, if it only moves these.
        piecewise: The piecewise-linear map of a node with kinks (T6.2); None for a form without one.
        decompositions: By overload, the same numbers in terms of operations whose kinks are known.
        lift: Its sums over paths (T5.3).
        eps: The constant that breaks its scale symmetry.
        draws: Whether a node draws random numbers.
        traits: The kinds it belongs to.
    """

    symmetry: SymmetryRule | None = None
    reference: Callable[..., Tensor | tuple[Tensor, ...]] | None = None
    ignores: IgnoringRule | None = None
    shift: ShiftRule | None = None
    shifts_and_ignores: bool = False
    exchange: ExchangeRule | None = None
    combination: CombinationRule | None = None
    balance: BalanceRule | None = None
    contraction: Contraction | None = None
    degree: DegreeRule | None = None
    regularity: Regularity | None = None
    movement: Movement | None = None
    piecewise: Callable[[fx.Node], Piecewise | None] | None = None
    decompositions: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    lift: LiftRule | None = None
    eps: Eps | None = None
    draws: Callable[[fx.Node], bool] = _never
    traits: Trait = Trait.NONE

    def is_a(self, trait: Trait) -> bool:
        """Whether it belongs to one of these kinds."""
        return bool(self.traits & trait)

    @property
    def moves(self) -> bool:
        """Whether it only moves elements."""
        return self.movement is not None

    @property
    def passes(self) -> bool:
        """Whether its result is what it reads, moved, converted or masked."""
        return self.moves or self.is_a(Trait.CASTING)

    @property
    def linear(self) -> bool:
        """Whether it is linear, or a product of two of its inputs."""
        return self.regularity in (Regularity.MOVES, Regularity.LINEAR)


OPERATORS: dict[str, Operator] = {}
_UNKNOWN = Operator()


def declare(names: str, operator: Operator) -> None:
    """Register an operator under names separated by spaces; each name once."""
    for name in names.split():
        if name in OPERATORS:
            raise ValueError(f"{name} is declared twice")
        OPERATORS[name] = operator


def operator_of(node: fx.Node) -> Operator:
    """The declaration of the operation at a node.

    >>> from equipoise.graph.capture import capture
    >>> graph = capture(torch.nn.ReLU(), torch.ones(2)).graph
    >>> [operator_of(node).regularity for node in graph.nodes if node.op == "call_function"]
    [<Regularity.BENT: 4>]
    """
    return OPERATORS.get(operation_name(node.target), _UNKNOWN)


# Common to the rules --------------------------------------------------------------------------------------------------


def moving(argument: object) -> bool:
    """Whether an argument is a tensor under some role."""
    return isinstance(argument, Signal) and bool(argument.roles)


def rest(algebra: Algebra, shape: tuple[int, ...], *signals: Signal) -> Signal:
    """Demand that the signals do not move; the result of the given shape then does not either."""
    algebra.still(*signals)
    return Signal(shape)


def operation_name(target: object) -> str:
    """`relu` for `aten.relu.default`; the full name for operators of other libraries."""
    if isinstance(target, torch._ops.OpOverload):
        return target._opname if target.namespace == "aten" else f"{target.namespace}::{target._opname}"
    return getattr(target, "__name__", str(target))
