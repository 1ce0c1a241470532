"""Blocks of a ReLU layer: the rows of neurons that are co-active, and their bound (T4.2)."""

import torch
from torch import Tensor

from equipoise.gallery.case import Moment
from equipoise.measure.spectrum import spectrum


def together_since(moments: tuple[Moment, ...], position: int, members: Tensor) -> int:
    """The first point from which these neurons had equal slopes on every example, up to the last one."""
    for t in range(len(moments) - 1, 0, -1):
        slopes = moments[t].slopes[position][:, members]
        if not (slopes == slopes[:, :1]).all():
            return t
    return 0


def beyond(matrix: Tensor, r: int) -> float:
    """`Σ_{i>r} σ_i²`."""
    found = spectrum(matrix)
    return found.rank_residual(r) * found.frobenius_norm**2


def block_bound(lower: tuple[Tensor, Tensor], upper: tuple[Tensor, Tensor], members: Tensor, r: int = 1) -> float:
    """The bound of T4.2 on `Σ_{i>r} σ_i²` of the rows `members` of a layer, given (then, now) of it and the next.

    `Σ_{i>r} σ_i([W₊]_{:,S})² + Σ_{i≤r} λ_i(C) - tr C` with the first term now and `C = [W₊ᵀW₊ - WWᵀ]_{SS}` as it was
    when the neurons became co-active: the law of the block, and Ky Fan. Rounding of a few eps is added.
    """
    above, below = upper[0][:, members], lower[0][members]
    eigenvalues = torch.linalg.eigvalsh(above.T @ above - below @ below.T)
    rounding = 100 * len(members) * torch.finfo(below.dtype).eps * float(lower[1].square().sum())
    return beyond(upper[1][:, members], r) - float(eigenvalues[: len(members) - r].sum()) + rounding
