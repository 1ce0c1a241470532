"""A network as paths and signs
============================

Draws docs/decomposition.svg: a 5-4-3-1 network with biases and a skip, and the tree it unrolls into.

::

    python examples/decomposition.py [docs/decomposition.svg]
"""

import sys

import torch
from torch import nn

import equipoise as eq


class Skip(nn.Module):
    """5-4-3-1 with biases, and a trained skip from the inputs to the second hidden layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 1)
        self.skip = nn.Linear(5, 3, bias=False)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(hidden) + self.skip(x)))


torch.manual_seed(0)
model = Skip().double()
x = torch.randn(1000, 5, dtype=torch.float64)
parts = eq.decompose(model)
error = float((parts(x) - model(x)).detach().abs().max())
print(f"{parts.paths:.0f} paths, path norm {parts.path_norm:.4f}; ρ(μ(x)) equals f(x) to {error:.1e}")
print(parts.draw(sys.argv[1] if len(sys.argv) > 1 else "decomposition.svg"))
