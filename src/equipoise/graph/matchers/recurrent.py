"""Fused recurrent layers, read through the loop that they stand for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


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


REFERENCES: dict[str, Any] = {"rnn_relu": rnn_relu}
LAWLESS = frozenset({"rnn_tanh", "lstm", "gru"})
"""Fused cells whose gates commute with no linear flow: what they read is held still."""
