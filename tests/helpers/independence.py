"""Quantities that laws count although they follow from others."""

import torch
from torch import Tensor

from equipoise.laws import Laws
from equipoise.laws.law import Parameters, named

RANK = 1e-9  # relative singular values that count as zero


def dependent(laws: Laws, parameters: Parameters) -> int:
    """How many quantities there are beyond independent ones: as many as their values at random weights have rank."""
    generator = torch.Generator().manual_seed(0)
    rows = [_values(laws, _drawn(parameters, generator)) for _ in range(laws.conserved + 8)]
    values = torch.stack(rows)
    moving = values[:, values.abs().amax(0) > 0]
    return laws.conserved - int(torch.linalg.matrix_rank(moving / moving.norm(dim=0), rtol=RANK))


def _drawn(parameters: Parameters, generator: torch.Generator) -> dict[str, Tensor]:
    shapes = {name: value.shape for name, value in named(parameters).items()}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def _values(laws: Laws, weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([law.value(weights).double().reshape(-1) for law in laws] or [torch.zeros(0)])
