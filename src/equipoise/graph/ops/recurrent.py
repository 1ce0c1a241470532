"""Fused recurrent layers and cells: one with ReLU is read through its loop, gated ones by what they read and write."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.signal import Signal
from equipoise.graph.ops.contraction import linear
from equipoise.graph.ops.movement import join, stack
from equipoise.graph.ops.operator import Operator, Trait, declare

State: TypeAlias = Signal | Sequence[Signal]
"""A hidden state, or one and the state of the cell."""


def rnn_relu(
    x: Tensor,
    state: Tensor,
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    dropout: float | int,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """`h ← relu(W x + b + U h + c)`, layer by layer and step by step, both ways if asked for."""
    steps = x.transpose(0, 1) if batch_first else x
    directions, size = 2 if bidirectional else 1, 4 if biases else 2
    last = []
    for layer in range(layers):
        sides = []
        for side in range(directions):
            number = layer * directions + side
            hidden, final = _scan(steps, state[number], weights[size * number : size * (number + 1)], side == 1)
            sides.append(hidden)
            last.append(final)
        steps = torch.cat(sides, -1)
    return (steps.transpose(0, 1) if batch_first else steps), torch.stack(last)


def _scan(steps: Tensor, hidden: Tensor, weights: Sequence[Tensor], backwards: bool) -> tuple[Tensor, Tensor]:
    inward, across, *biases = weights
    order = range(steps.shape[0] - 1, -1, -1) if backwards else range(steps.shape[0])
    states: dict[int, Tensor] = {}
    for step in order:
        hidden = F.relu(F.linear(steps[step], inward, *biases[:1]) + F.linear(hidden, across, *biases[1:]))
        states[step] = hidden
    return torch.stack([states[step] for step in range(steps.shape[0])]), hidden


def rnn_relu_cell(
    x: Tensor, hidden: Tensor, inward: Tensor, across: Tensor, b: Tensor | None = None, c: Tensor | None = None
) -> Tensor:
    """One step of `rnn_relu`."""
    return F.relu(F.linear(x, inward, b) + F.linear(hidden, across, c))


def gated_layers(algebra: Algebra, x: Signal, *args: Any) -> tuple[Signal, ...]:
    """Layers of cells whose pre-activations rest; only a projection of the hidden state writes linearly.

    Arguments are those of ATen: `(x, state, weights, …)`, or with packed sequences `(x, sizes, state, weights, …)`.
    """
    packed = isinstance(args[2], (list, tuple))
    state, weights, biases, layers, dropout, training, bidirectional = args[1:8] if packed else args[:7]
    start, *cells = state if isinstance(state, (list, tuple)) else [state]
    algebra.still(start, *cells)
    directions = 2 if bidirectional else 1
    size = len(weights) // (layers * directions)
    last: list[Signal] = []
    for layer in range(layers):
        sides = []
        for side in range(directions):
            number = layer * directions + side
            sides.append(_gated(algebra, x, start, weights[size * number : size * (number + 1)], bool(biases)))
            last.append(_at_one_time(algebra, sides[-1], start.shape[1:]))
        x = join(algebra, sides, -1)
        x = algebra.diagonal(x) if dropout and training else x
    return x, stack(algebra, last), *(Signal(cell.shape) for cell in cells)


def _gated(algebra: Algebra, x: Signal, start: Signal, weights: Sequence[Signal], biases: bool) -> Signal:
    """The hidden states of one layer, in one direction."""
    inward, across, *others = weights
    algebra.still(linear(algebra, x, inward), *others[: 2 if biases else 0])
    hidden = Signal((*x.shape[:-1], start.shape[-1]))
    if len(others) > (2 if biases else 0):
        unprojected = Signal((*x.shape[:-1], others[-1].shape[1]))
        hidden = linear(algebra, unprojected, others[-1])
    for read in (hidden, start):
        algebra.still(linear(algebra, read, across))
    return hidden


def _at_one_time(algebra: Algebra, hidden: Signal, shape: Sequence[int]) -> Signal:
    """The last hidden state of each sequence: the roles of any."""
    place = (0,) * (hidden.ndim - 1)
    roles = [algebra.expanded(role.moved(lambda labels: labels[place]), tuple(shape)) for role in hidden.roles]
    return Signal(tuple(shape), tuple(roles))


def gated_cell(
    algebra: Algebra,
    x: Signal,
    state: State,
    inward: Signal,
    across: Signal,
    inward_bias: Signal | None = None,
    across_bias: Signal | None = None,
) -> Signal | tuple[Signal, ...]:
    """One step of a gated cell."""
    hidden, *cell = [state] if isinstance(state, Signal) else state
    algebra.still(*(bias for bias in (inward_bias, across_bias) if bias is not None))
    algebra.still(linear(algebra, x, inward), linear(algebra, hidden, across), *cell)
    if inward.shape[0] == 3 * hidden.shape[-1]:  # a GRU carries its state over
        algebra.still(hidden)
    return tuple(Signal(each.shape) for each in (hidden, *cell)) if cell else Signal(hidden.shape)


# Declarations ---------------------------------------------------------------------------------------------------------

declare("rnn_relu", Operator(reference=rnn_relu, traits=Trait.RECURRENT))
declare("rnn_relu_cell", Operator(reference=rnn_relu_cell, traits=Trait.RECURRENT))
_GATED = Trait.LAWLESS | Trait.RESTING | Trait.RECURRENT
declare("rnn_tanh gru lstm", Operator(symmetry=gated_layers, traits=_GATED))
declare("rnn_tanh_cell gru_cell lstm_cell", Operator(symmetry=gated_cell, traits=_GATED))
