"""How far weights are from a KKT point of the max-margin problem `min ½‖w‖²`, `m_i(w) ≥ 1` (docs/theory.md §7).

Stationarity `w = Jᵀλ`, `λ ≥ 0`, with `J` the Jacobian of the margins (for sliding pairs with their settled slopes), and
complementary slackness `λ_i (m_i - m_min) = 0` (Lyu & Li 2020). The multipliers minimise both violations together,

    ‖w - Jᵀλ‖² / ‖w‖² + (L Σ_i λ_i (m_i - m_min) / ‖w‖²)²    over λ ≥ 0,

a non-negative least squares with one row more than `w ≈ Jᵀλ`. Without that row `λ` is not unique once the gradients are
linearly dependent, and the slackness of an exact KKT point can come out as anything. All sums run over the examples
passed in: pass every one that may matter. With those at the smallest margin alone, `δ` is zero by construction.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

from equipoise.errors import InputError

NNLS_ITERATIONS = 30
"""Iterations allowed for each example: ten times scipy's own, which near-parallel gradients can exhaust."""


@dataclass(frozen=True)
class KKT:
    """The residuals of docs/theory.md §7; all but `multipliers` are unchanged under `w → a w`.

    - `epsilon = ‖w/‖w‖ - Jᵀλ/‖Jᵀλ‖‖`, in [0, √2], and 1 by convention where `Jᵀλ = 0`;
    - `delta = Σ_i λ_i (m_i - m_min) / m_min^{2/L}`;
    - `balance = L Σ_i λ̂_i / (‖w‖² / m_min^{2/L})` with `λ̂ = λ m_min^{(L-2)/L}`: 1 at a KKT point, a cross-check;
    - `multipliers = λ ≥ 0` in the scale of `w ≈ Jᵀλ`, with `w` and `J` as they are.
    """

    epsilon: float
    delta: float
    balance: float
    multipliers: Float[Tensor, " a"]


def multipliers_from_gram(
    gram: Float[Tensor, "a a"],
    products: Float[Tensor, " a"],
    norm: float | int,
    margins: Float[Tensor, " a"],
    degree: float | int,
) -> Float[Tensor, " a"]:
    """`λ` from `K = J Jᵀ`, `J w` (which is `L m` for a homogeneous network), `‖w‖`, margins and `L = degree` alone.

    Lawson & Hanson's active set, in scipy, on a factor `FᵀF` of `K` with every gradient scaled to length one.
    Directions of `K` below `a · eps` of its largest eigenvalue are left out; an example without gradient gets 0.
    Raises as `kkt_residuals` does.

    >>> X = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # a linear model: J = X, L = 1
    >>> w = torch.tensor([0.5, 1.0], dtype=torch.float64)
    >>> multipliers_from_gram(X @ X.T, X @ w, float(w.norm()), X @ w, degree=1)
    tensor([0.2500, 1.0000], dtype=torch.float64)
    """
    _require_finite(gram=gram, products=products)
    scale = _inverse_lengths(gram.diagonal().double().clamp(min=0).sqrt())
    eigenvalues, vectors = torch.linalg.eigh(scale[:, None] * gram.double() * scale)
    kept = eigenvalues > len(gram) * torch.finfo(gram.dtype).eps * eigenvalues[-1].clamp(min=0)
    roots, vectors = eigenvalues[kept].sqrt(), vectors[:, kept]
    target = vectors.T @ (scale * products.double()) / roots
    slack = _slack(margins, norm, degree)
    return (scale * _nnls(roots[:, None] * vectors.T, scale * slack, target)).to(products.dtype)


def multipliers_from_jacobian(
    jacobian: Float[Tensor, "a D"],
    weights: Float[Tensor, " D"],
    margins: Float[Tensor, " a"],
    degree: float | int,
) -> Float[Tensor, " a"]:
    """`λ` from `J` itself: right where `J Jᵀ` is too ill-conditioned to be formed. Raises as `kkt_residuals` does.

    >>> X = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> w = torch.tensor([0.5, 1.0], dtype=torch.float64)
    >>> multipliers_from_jacobian(X, w, X @ w, degree=1)
    tensor([0.2500, 1.0000], dtype=torch.float64)
    """
    _require_finite(jacobian=jacobian, weights=weights)
    scale = _inverse_lengths(torch.linalg.vector_norm(jacobian.double(), dim=1))
    basis, factor = torch.linalg.qr((scale[:, None] * jacobian.double()).T)
    slack = _slack(margins, float(torch.linalg.vector_norm(weights.double())), degree)
    return (scale * _nnls(factor, scale * slack, basis.T @ weights.double())).to(weights.dtype)


def kkt_residuals(
    weights: Float[Tensor, " D"],
    combination: Float[Tensor, " D"],
    multipliers: Float[Tensor, " a"],
    margins: Float[Tensor, " a"],
    degree: float | int,
) -> KKT:
    """The residuals of given multipliers, with `combination = Jᵀλ` (one backward pass) and `L = degree`.

    `ε` is the norm of the difference itself, right to rounding. Raises `InputError` for weights that are zero, margins
    that are not all positive, and NaN or infinite entries.

    >>> w = torch.tensor([1.0, 0.0], dtype=torch.float64)
    >>> found = kkt_residuals(w, 0.5 * w, torch.tensor([0.5]), torch.tensor([2.0]), degree=1)
    >>> found.epsilon, found.delta, found.balance
    (0.0, 0.0, 1.0)
    """
    _require_finite(weights=weights, combination=combination)
    weights, combination = weights.double(), combination.double()
    norm, length = torch.linalg.vector_norm(weights), torch.linalg.vector_norm(combination)
    difference = weights / norm - (combination / length if length > 0 else 0.0)
    return _residuals(float(torch.linalg.vector_norm(difference)), multipliers, float(norm), margins, degree)


def kkt_from_jacobian(
    jacobian: Float[Tensor, "a D"],
    weights: Float[Tensor, " D"],
    margins: Float[Tensor, " a"],
    degree: float | int,
) -> KKT:
    """Multipliers and residuals from `J` and `w`; `ε` is right to rounding. Raises as `kkt_residuals` does.

    >>> X = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # a linear model: J = X, L = 1
    >>> w = torch.tensor([0.5, 1.0], dtype=torch.float64)
    >>> found = kkt_from_jacobian(X, w, X @ w, degree=1)
    >>> found.epsilon < 1e-15, round(found.delta, 12), round(found.balance, 12)
    (True, 0.0, 1.0)
    """
    multipliers = multipliers_from_jacobian(jacobian, weights, margins, degree)
    return kkt_residuals(weights, jacobian.T @ multipliers, multipliers, margins, degree)


def kkt_from_gram(
    gram: Float[Tensor, "a a"],
    products: Float[Tensor, " a"],
    norm: float | int,
    margins: Float[Tensor, " a"],
    degree: float | int,
) -> KKT:
    """Multipliers and residuals from `K = J Jᵀ`, `J w` and `‖w‖` alone.

    `ε² = 2 - 2 cos(w, Jᵀλ)` is a difference here, so `ε` resolves nothing under about 1e-8 and is never reported below
    its rounding level `√(4 √a eps λᵀ|K|λ / λᵀKλ)`; for less, pass `Jᵀλ` to `kkt_residuals`. Raises as that does.

    >>> X = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> w = torch.tensor([0.5, 1.0], dtype=torch.float64)
    >>> found = kkt_from_gram(X @ X.T, X @ w, float(w.norm()), X @ w, degree=1)
    >>> found.epsilon < 1e-7, round(found.balance, 12)
    (True, 1.0)
    """
    multipliers = multipliers_from_gram(gram, products, norm, margins, degree)
    weight, kernel = multipliers.double(), gram.double()
    length = float(weight @ kernel @ weight)
    if length <= 0:
        return _residuals(1.0, multipliers, float(norm), margins, degree)
    cosine = float(weight @ products.double()) / (norm * math.sqrt(length))
    rounding = math.sqrt(len(gram)) * torch.finfo(gram.dtype).eps * float(weight @ kernel.abs() @ weight) / length
    return _residuals(math.sqrt(max(2 - 2 * cosine, 4 * rounding)), multipliers, float(norm), margins, degree)


def _residuals(epsilon: float, multipliers: Tensor, norm: float, margins: Tensor, degree: float | int) -> KKT:
    smallest = _smallest(margins, norm, degree)
    hat = multipliers.double() * smallest ** ((degree - 2) / degree)
    excess = (margins.double() - smallest) / smallest
    balance = degree * float(hat.sum()) * smallest ** (2 / degree) / norm**2
    return KKT(epsilon, float(hat @ excess), balance, multipliers)


def _slack(margins: Tensor, norm: float | int, degree: float | int) -> Tensor:
    """The additional row `L (m_i - m_min) / ‖w‖`, in the units of a row of `w ≈ Jᵀλ`."""
    return degree * (margins.double() - _smallest(margins, norm, degree)) / norm


def _smallest(margins: Tensor, norm: float | int, degree: float | int) -> float:
    _require_finite(margins=margins)
    smallest = float(margins.min())
    if not (smallest > 0 and norm > 0 and degree > 0):
        raise InputError(
            expected="positive margins, weights that are not zero, and a positive degree of homogeneity",
            found=f"smallest margin {smallest:.3g}, ‖w‖ = {norm:.3g}, degree {degree}",
            remedy="train until every example is classified correctly",
        )
    return smallest


def _nnls(factor: Tensor, slack: Tensor, target: Tensor) -> Tensor:
    system = torch.cat([factor, slack[None]]), torch.cat([target, target.new_zeros(1)])
    solution, _ = nnls(*map(_array, system), maxiter=NNLS_ITERATIONS * len(slack))
    return torch.as_tensor(solution, dtype=target.dtype, device=target.device)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _inverse_lengths(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, 1 / lengths, 0.0)


def _require_finite(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or not torch.isfinite(tensor).all():
            raise InputError(
                expected=f"finite {name} of at least one example",
                found=f"shape {tuple(tensor.shape)} with {int((~torch.isfinite(tensor)).sum())} NaN or infinite",
                remedy="check the margins and their gradients",
            )
