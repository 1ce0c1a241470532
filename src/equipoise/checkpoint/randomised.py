"""The measures of a matrix from a few products with thin blocks, each between two bounds."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise import linalg

_PROBES = 16
_STEPS = 24


class Range(NamedTuple):
    """An estimate and the bounds it lies between."""

    value: float
    low: float
    high: float


def leading(matrix: Float[Tensor, "rows columns"], r: int) -> tuple[Tensor, dict[str, Range]]:
    """The `r` leading singular values, from below, and what follows from the first.

    The bounds are certain but for the chance of 1e-9 that `probable_norm_bound` states: `σ̂_1 ≤ σ_1 ≤ t`, hence
    `‖W‖_F²/t² ≤ stable rank ≤ ‖W‖_F²/σ̂_1²`; deflating any unit vectors bounds the residual from above. `matrix` is
    float32 or float64, not zero.
    """
    found = linalg.krylov_triplets(matrix, r)
    top = found.triplets.top(1)
    norm = float(linalg.frobenius_norm(matrix))
    low = float(top.values[0])
    high = max(min(float(linalg.probable_norm_bound(matrix)), float(found.upper), norm), low)
    deflated = float(linalg.deflated_residual(matrix, top.left, top.values, top.right)) / norm**2
    return found.triplets.values.double(), {
        "spectral_norm": Range(low, low, high),
        "stable_rank": Range((norm / low) ** 2, max((norm / high) ** 2, 1.0), (norm / low) ** 2),
        "rank_one_residual": Range(min(deflated, 1.0), max(1 - (high / norm) ** 2, 0.0), min(deflated, 1.0)),
    }


def spread(matrix: Float[Tensor, "rows columns"]) -> dict[str, Range]:
    """Nuclear norm, effective rank and participation ratio by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017).

    Sixteen Gaussian probes, 24 Lanczos steps of `WᵀW` each; the bounds are two standard errors over the probes
    (jackknife), which leave out the small bias of the quadrature.
    """
    scale = float(linalg.frobenius_norm(matrix))
    sums = _sums(matrix, scale)
    measures = {"nuclear_norm": lambda s: scale * s[0], "effective_rank": _effective, "participation_ratio": _ratio}
    return {name: _jackknife(sums, measure) for name, measure in measures.items()}


def _effective(sums: Tensor) -> Tensor:
    """`exp(H)` from `Σσ` and `Σσ log σ`: `H = log Σσ - Σσ log σ / Σσ`."""
    return (sums[0].log() - sums[1] / sums[0]).exp()


def _ratio(sums: Tensor) -> Tensor:
    return 1 / sums[2]  # (Σσ²)² is 1: the matrix is scaled


def _sums(matrix: Tensor, scale: float) -> Float[Tensor, "3 probes"]:
    """`Σσ`, `Σσ log σ` and `Σσ⁴` of `W/‖W‖_F`, one estimate for each probe."""
    nodes, weights = _quadrature(matrix, scale)
    size = min(matrix.shape)
    functions = torch.stack([nodes, torch.special.xlogy(nodes, nodes), nodes**4])
    return size * (functions * weights).sum(-1)


def _quadrature(matrix: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Nodes `σ` and weights of each probe: Golub–Kahan bidiagonalisation, its basis kept orthogonal."""
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.mT
    size = matrix.shape[1]
    steps = min(_STEPS, size)
    generator = torch.Generator(matrix.device).manual_seed(0)
    probe = torch.randn(_PROBES, size, generator=generator, dtype=matrix.dtype, device=matrix.device)
    weight = probe.square().sum(-1).double().cpu() / size
    basis = [probe / torch.linalg.vector_norm(probe, dim=-1, keepdim=True)]
    images: list[Tensor] = []
    for _ in range(steps):
        images.append(basis[-1] @ matrix.mT / scale)
        if len(basis) < steps:
            basis.append(_orthogonal(images[-1] @ matrix / scale, torch.stack(basis, dim=1)))
    projected = torch.stack(images, dim=-1).double().cpu()
    _, values, turn = torch.linalg.svd(projected, full_matrices=False)
    return values, turn[..., 0].square() * weight[:, None]


def _orthogonal(block: Tensor, basis: Float[Tensor, "probes steps size"]) -> Tensor:
    for _ in range(2):  # twice is enough (Kahan & Parlett)
        block = block - torch.einsum("ps,psn->pn", torch.einsum("psn,pn->ps", basis, block), basis)
    size = torch.linalg.vector_norm(block, dim=-1, keepdim=True)
    return block / size.clamp(min=torch.finfo(block.dtype).tiny)


def _jackknife(sums: Tensor, measure) -> Range:
    count = sums.shape[1]
    value = float(measure(sums.mean(1)))
    others = (sums.sum(1, keepdim=True) - sums) / (count - 1)
    left_out = torch.stack([measure(column) for column in others.T])
    error = 2 * math.sqrt((count - 1) * float(left_out.var(correction=0)))
    return Range(value, value - error, value + error)
