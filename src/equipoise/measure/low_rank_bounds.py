"""Bounds on the distance of a trained matrix to low rank, from how it was trained; and a rate from imbalance."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise import linalg
from equipoise.arguments import require_integer
from equipoise.errors import InputError
from equipoise.measure.collapse import cluster_variation
from equipoise.modes import default_modes


@dataclass(frozen=True)
class RankBound:
    """The distance of a matrix to those of a `rank` is at most `distance`, in the Frobenius norm."""

    rank: int
    distance: float


def distance_to_rank(matrix: Float[Tensor, "out in *taps"], rank: int) -> float:
    """`min ‖W - A‖_F` over all `A` of at most a rank: the root of the sum of the smaller `σ²` (Eckart & Young 1936).

    Args:
        matrix: a weight, or a kernel as its `out × (in·taps)` matrix.
        rank: zero or more.

    Returns:
        The distance, from the singular values beyond the rank and no difference.

    Raises:
        InputError: as `spectrum` does, and for a negative rank.

    >>> distance_to_rank(torch.diag(torch.tensor([5.0, 4.0, 3.0], dtype=torch.float64)), 1)
    5.0
    """
    require_integer("rank", rank, "pass rank=1")
    (values,) = linalg.singular_values([linalg.require_matrix(matrix, "matrix").flatten(1)])
    return float(torch.linalg.vector_norm(values[rank:].double()))


def batch_rank_bound(norm: float, lr: float, weight_decay: float, batch: int, steps: int) -> RankBound:
    """The distance of a weight to rank `s B` after `s` steps of SGD with weight decay (Galanti et al. 2022).

    A step is `W ← (1 - ηλ) W - ηG`, and the gradient `G` of a fully connected layer over `B` examples has rank at most
    `B`. So `W_T - (1 - ηλ)^s W_{T-s}` has rank at most `s B`, exactly, and the distance is at most `|1 - ηλ|^s
    ‖W_{T-s}‖_F`. The decay is PyTorch's, of the penalty `λ/2 ‖W‖²`; for a penalty `λ‖W‖²`, as in the paper, pass `2λ`.
    For plain SGD; layers that are read at `p` places, as convolutions are, have gradients of rank up to `p B`.

    Args:
        norm: `‖W_{T-s}‖_F`, before the steps.
        lr: `η`.
        weight_decay: `λ`.
        batch: `B`.
        steps: `s`, zero or more.

    Returns:
        The rank `s B` and the bound.

    Raises:
        InputError: for a negative count or norm.

    >>> batch_rank_bound(norm=10.0, lr=0.1, weight_decay=0.1, batch=2, steps=3)
    RankBound(rank=6, distance=9.70299)
    """
    if min(norm, batch, steps) < 0:
        raise InputError(
            expected="a norm, a batch and steps of zero or more",
            found=f"norm={norm}, batch={batch}, steps={steps}",
            remedy="pass the norm of the weight before the last steps, and their number",
        )
    return RankBound(steps * batch, abs(1 - lr * weight_decay) ** steps * norm)


def cluster_rank_bound(
    inputs: Float[Tensor, " n *feature"],
    sensitivities: Float[Tensor, " n *out"],
    labels: Int[Tensor, " _"],
    weight_decay: float,
    gradient_norm: float = 0.0,
) -> RankBound:
    """The distance of a weight to rank `K` from how the inputs of its layer cluster (after Zangrando et al. 2024).

    With the loss `ℓ + λ/2 ‖W‖²`, `z_i` the input of the layer and `δ_i = ∂ℓ/∂(W z_i)`, the gradient is
    `∇ = Σ δ_i z_iᵀ + λW`. Split `z_i = z̄_{c(i)} + (z_i - z̄_{c(i)})`: the first part makes a matrix of rank at most `K`,
    the norm of the rest is at most `‖Δ‖_F (Σ ‖z_i - z̄_{c(i)}‖²)^{1/2}`. So `dist_F(W, rank ≤ K)` is at most
    `(‖Δ‖_F √within + ‖∇‖_F) / λ`: our derivation, not compared with the constant of the paper. A bound above `‖W‖_F`
    says nothing.

    Args:
        inputs: `z_i`, what the layer reads.
        sensitivities: `δ_i`, the gradient of the whole data loss in the pre-activation of example `i`.
        labels: class indices, or those of any `K` clusters.
        weight_decay: `λ`, positive.
        gradient_norm: `‖∇‖_F` of the regularised loss in this weight; zero at a critical point.

    Returns:
        The rank `K` and the bound.

    Raises:
        InputError: for a decay that is not positive, and as `cluster_variation` does.

    >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> cluster_rank_bound(z, torch.ones(3, 2), torch.tensor([0, 0, 1]), weight_decay=0.1)
    RankBound(rank=2, distance=0.0)
    """
    if weight_decay <= 0:
        raise InputError(expected="a positive weight decay", found=str(weight_decay), remedy="train with weight decay")
    within = cluster_variation(inputs, labels).within
    total = float(torch.linalg.vector_norm(sensitivities.double())) * within**0.5 + gradient_norm
    return RankBound(len(labels.unique()), total / weight_decay)


@default_modes()
def imbalance_rate(
    first: Float[Tensor, "n hidden"], second: Float[Tensor, "hidden m"], product: Float[Tensor, "n m"] | None = None
) -> float:
    """A lower bound of `λ_n(W₁W₁ᵀ) + λ_m(W₂ᵀW₂)` from the imbalance and the product (Min, Vidal & Mallada 2023).

    For `W = W₁W₂`, `D = W₁ᵀW₁ - W₂W₂ᵀ` conserved by gradient flow, `σ_k` the `k`-th singular value of `W`, and with
    `[x]₊ = max(x, 0)`: `D₊ = [λ_1(D)]₊ - [λ_n(D)]₊`, `D₋ = [λ_1(-D)]₊ - [λ_m(-D)]₊`, `Δ = [λ_n(D)]₊ + [λ_m(-D)]₊`,
    the bound is `½(-D₋ + √((D₋ + Δ)² + 4σ_n²)) + ½(-D₊ + √((D₊ + Δ)² + 4σ_m²))`. For `½‖Y - W₁W₂‖²` the loss then falls
    at least as `e^{-2αt}`, `α` the least bound along the way. The pairing matters: `σ_n` with `D₊` is no bound.

    Args:
        first: `W₁`.
        second: `W₂`.
        product: another `W` to take `σ_n` and `σ_m` from; by default `W₁W₂`.

    Returns:
        The bound.

    Raises:
        InputError: for shapes that do not compose, and fewer hidden units than rows or columns.

    >>> eye = torch.eye(2, dtype=torch.float64)
    >>> imbalance_rate(eye, eye)
    2.0
    """
    (n, hidden), m = first.shape, second.shape[1]
    if second.shape[0] != hidden or hidden < max(n, m):
        raise InputError(
            expected="W₁ of shape (n, h) and W₂ of shape (h, m), h at least n and m",
            found=f"shapes {tuple(first.shape)} and {tuple(second.shape)}",
            remedy="pass the weights in the order of the product",
        )
    eigenvalues = torch.linalg.eigvalsh(first.T @ first - second @ second.T).flip(0)
    up = lambda rank: float(eigenvalues[rank - 1].clamp(min=0))  # noqa: E731
    down = lambda rank: float((-eigenvalues[hidden - rank]).clamp(min=0))  # noqa: E731
    gap = up(n) + down(m)
    values = torch.linalg.svdvals(first @ second if product is None else product)
    sigma = lambda rank: float(values[rank - 1]) if rank <= len(values) else 0.0  # noqa: E731
    part = lambda spread, value: 0.5 * (-spread + ((spread + gap) ** 2 + 4 * value**2) ** 0.5)  # noqa: E731
    return part(down(1) - down(m), sigma(n)) + part(up(1) - up(n), sigma(m))
