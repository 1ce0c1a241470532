"""The measures of a matrix from a few products with thin blocks, each between two bounds."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise import linalg
from equipoise.linalg.bounds import own_generator

_PROBES = 16
_STEPS = 24
_SWEEPS = 5  # for the leading triplets
_ROWS = 1024
_APART = 16  # leading triplets that no probe has to see: they would make most of the scatter


class Range(NamedTuple):
    """An estimate and the bounds it lies between."""

    value: float
    low: float
    high: float


def randomised(matrix: Float[Tensor, "rows columns"], r: int) -> tuple[Float[Tensor, " r"], float, dict[str, Range]]:
    """The `r` leading singular values from below, `‖W‖_F`, and every measure that can be had without the others.

    `matrix` is float32 or float64, and not zero.
    """
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT  # right vectors are orthonormal in any case
    found = linalg.krylov_triplets(matrix, max(r, _APART), sweeps=_SWEEPS)
    norm = math.hypot(*(float(torch.linalg.vector_norm(rows.double())) for rows in matrix.split(_ROWS)))
    ranges = certain(matrix, found, norm) | estimated(matrix, found.triplets, norm)
    return torch.tensor(found.values[:r], dtype=torch.float64), norm, ranges


def certain(matrix: Tensor, found: linalg.LeadingTriplets, norm: float) -> dict[str, Range]:
    """Ranges that follow from the first singular value: bounds that hold but for the 1e-9 of `probable_norm_bound`.

    `σ̂_1 ≤ σ_1 ≤ t`, hence `‖W‖_F²/t² ≤ stable rank ≤ ‖W‖_F²/σ̂_1²`; deflating any unit vectors bounds the residual
    from above.
    """
    top = found.top(1).triplets
    low = min(_stretch(matrix, top.right[:, 0]), norm)  # one rounding apart for a matrix of rank one
    high = max(min(float(linalg.probable_norm_bound(matrix)), found.upper, norm), low)
    deflated = min(_residual(matrix, top) / norm**2, 1.0)
    return {
        "spectral_norm": Range(low, low, high),
        "stable_rank": Range((norm / low) ** 2, (norm / high) ** 2, (norm / low) ** 2),
        "rank_one_residual": Range(deflated, min(max(1 - (high / norm) ** 2, 0.0), deflated), deflated),
    }


def _stretch(matrix: Tensor, vector: Tensor) -> float:
    """`‖W v‖/‖v‖` in float64, which `σ_1` is not below; the values of a float32 iteration may be above it."""
    direction = torch.nn.functional.normalize(vector.double(), dim=0)
    return math.hypot(*(float(torch.linalg.vector_norm(rows.double() @ direction)) for rows in matrix.split(_ROWS)))


def _residual(matrix: Tensor, top: linalg.Triplets) -> float:
    """`‖W - U S Vᵀ‖_F²`, some rows at a time."""
    parts = zip(matrix.split(_ROWS), top.left.split(_ROWS), strict=True)
    return sum(float(linalg.deflated_residual(rows, left, top.values, top.right)) for rows, left in parts)


def estimated(matrix: Tensor, triplets: linalg.Triplets, norm: float) -> dict[str, Range]:
    """Nuclear norm, effective rank and participation ratio by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017).

    The triplets at hand are counted as they are; sixteen Gaussian probes orthogonal to them, and 24 Lanczos steps of
    `WᵀW` each, see the rest. The bounds are two standard errors over the probes (jackknife); they leave out the small
    bias of the quadrature.
    """
    sums = _sums(matrix, triplets, norm)
    measures = {"nuclear_norm": lambda s: norm * s[0], "effective_rank": _effective, "participation_ratio": _ratio}
    return {name: _jackknife(sums, measure) for name, measure in measures.items()}


def _effective(sums: Tensor) -> Tensor:
    """`exp(H)` from `Σσ` and `Σσ log σ`: `H = log Σσ - Σσ log σ / Σσ`."""
    return (sums[0].log() - sums[1] / sums[0]).exp()


def _ratio(sums: Tensor) -> Tensor:
    return 1 / sums[2]  # (Σσ²)² is 1: the matrix is scaled


def _sums(matrix: Tensor, triplets: linalg.Triplets, norm: float) -> Float[Tensor, "3 probes"]:
    """`Σσ`, `Σσ log σ` and `Σσ⁴` of `W/‖W‖_F`, one estimate for each probe."""
    nodes, weights = _quadrature(matrix, triplets, norm)
    known = triplets.values.double().cpu() / norm
    return _powers(known).sum(-1, keepdim=True) + (_powers(nodes) * weights).sum(-1)


def _powers(values: Tensor) -> Tensor:
    return torch.stack([values, torch.special.xlogy(values, values), values**4])


def _quadrature(matrix: Tensor, triplets: linalg.Triplets, norm: float) -> tuple[Tensor, Tensor]:
    """Nodes `σ/‖W‖_F` and weights of each probe: Golub–Kahan, orthogonal to itself and to the triplets."""
    known = triplets.right
    size = matrix.shape[1]
    steps = min(_STEPS, size - known.shape[1])
    if steps == 0:
        return torch.zeros(_PROBES, 1).double(), torch.zeros(_PROBES, 1).double()
    generator = own_generator(matrix.device)
    probes = torch.randn(_PROBES, size, generator=generator, dtype=matrix.dtype, device=matrix.device)
    probes = probes - probes @ known @ known.mT
    basis, images = [torch.nn.functional.normalize(probes, dim=-1)], []
    for _ in range(steps):
        images.append(basis[-1] @ matrix.mT / norm)
        if len(basis) < steps:
            basis.append(_orthogonal(images[-1] @ matrix / norm, torch.stack(basis, dim=1), known))
    _, values, turn = torch.linalg.svd(torch.stack(images, dim=-1).double().cpu(), full_matrices=False)
    return values, turn[..., 0].square() * probes.double().square().sum(-1, keepdim=True).cpu()


def _orthogonal(block: Tensor, basis: Float[Tensor, "probes steps size"], known: Float[Tensor, "size r"]) -> Tensor:
    for _ in range(2):  # twice is enough (Kahan & Parlett)
        block = block - block @ known @ known.mT
        block = block - torch.einsum("ps,psn->pn", torch.einsum("psn,pn->ps", basis, block), basis)
    return torch.nn.functional.normalize(block, dim=-1)


def _jackknife(sums: Tensor, measure: Callable[[Tensor], Tensor]) -> Range:
    count = sums.shape[1]
    value = float(measure(sums.mean(1)))
    others = (sums.sum(1, keepdim=True) - sums) / (count - 1)
    left_out = torch.stack([measure(column) for column in others.T])
    error = 2 * math.sqrt((count - 1) * float(left_out.var(correction=0)))
    return Range(value, value - error, value + error)
