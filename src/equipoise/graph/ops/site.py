"""An operation of a graph with what is known of every tensor: what the rules of shifts read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.fx.node import Argument, map_arg

from equipoise.graph.labels.signal import Signal


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
