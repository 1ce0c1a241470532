"""One law solved exactly: the element of its group at which both sides weigh the same (docs/theory.md, T8)."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equipoise.laws import Law
from equipoise.transform.symmetry_action import Weights, reads, scale, stacked, transform, writes

ROUNDS = 100  # of Newton's method for the rate of a unit, which needs one where there are two degrees
Combine = Callable[[Tensor, int], Tensor]  # of the members of one side
LogSizes = Float[Tensor, "members blocks width"]


def least_norm(law: Law, weights: Weights) -> None:
    """Move the members of a law to the least sum of squares within its group, where the conserved quantity is zero."""
    if law.interface.width > 1:
        _square_root_balance(law, weights)
    else:
        sizes = torch.stack([slices.square().sum((1, 3)) for slices in law.slices(weights)])
        degrees = torch.tensor(law.degrees, dtype=sizes.dtype, device=sizes.device)
        _equalise(law, weights, (sizes * degrees.abs()[:, None, None]).log(), 2 * degrees, torch.logsumexp)


def equal_range(law: Law, weights: Weights) -> None:
    """Scale every component so that the largest entries of both sides agree; biases follow their weights."""
    sizes, degrees = log_ranges(law, weights)
    _equalise(law, weights, sizes, degrees, torch.amax)


def log_ranges(law: Law, weights: Weights) -> tuple[LogSizes, Float[Tensor, " members"]]:
    """The logarithm of the largest entry of each member in each component, and the degrees of the members.

    Vectors, such as biases and gains, count on a side that has no matrix.
    """
    members = law.interface.members
    matrices = {member.degree > 0 for member in members if weights[member.parameter].ndim > 1}
    counted = [weights[m.parameter].ndim > 1 or (m.degree > 0) not in matrices for m in members]
    sizes = [slices.abs().amax((1, 3)) for slices, kept in zip(law.slices(weights), counted, strict=True) if kept]
    degrees = [degree for degree, kept in zip(law.degrees, counted, strict=True) if kept]
    found = torch.stack(sizes).log()
    return found, torch.tensor(degrees, dtype=found.dtype, device=found.device)


def _equalise(law: Law, weights: Weights, sizes: LogSizes, degrees: Tensor, combine: Combine) -> None:
    rates, vanishing = equal_rates(sizes, degrees, combine)
    scale(law, weights, rates, vanishing)


def equal_rates(sizes: LogSizes, degrees: Tensor, combine: Combine) -> tuple[Tensor, Bool[Tensor, "blocks width"]]:
    """The rate `t` of every component at which `combine(sizes + degrees · t)` agrees between the two signs of degree.

    The difference of the two increases with `t`, with a slope between those of the extreme degrees: Newton's method
    from zero, kept within the bracket that this gives. One step is exact where each side has one degree:
    `t = ¼ log(b/a)` for degree one. A component of which one side is zero vanishes.

    >>> sizes = torch.tensor([[[0.0]], [[4.0]]])
    >>> float(equal_rates(sizes, torch.tensor([2.0, -2.0]), torch.logsumexp)[0])
    1.0
    """
    degrees = degrees[:, None, None]
    up, down = degrees[:, 0, 0] > 0, degrees[:, 0, 0] < 0
    vanishing = (sizes[up].amax(0) == -torch.inf) | (sizes[down].amax(0) == -torch.inf)
    sizes = torch.where(vanishing, 0.0, sizes)

    def difference(rates: Tensor) -> Tensor:
        moved = sizes + degrees * rates
        return combine(moved[up], 0) - combine(moved[down], 0)

    rates = torch.zeros_like(sizes[0])
    gap = difference(rates)
    slopes = degrees[up].min() - degrees[down].max(), degrees[up].max() - degrees[down].min()
    ends = torch.stack([-gap / slope for slope in slopes])
    low, high = ends.amin(0), ends.amax(0)
    for _ in range(ROUNDS):
        with torch.enable_grad():
            point = rates.clone().requires_grad_()
            gap = difference(point)
            (slope,) = torch.autograd.grad(gap.sum(), point)
        low, high = torch.where(gap < 0, rates, low), torch.where(gap > 0, rates, high)
        step = rates - gap.detach() / slope
        step = torch.where((step < low) | (step > high), (low + high) / 2, step)
        done = bool(((step - rates).abs() <= 1e-15 * (1 + rates.abs())).all())
        rates = step
        if done:
            break
    return rates, vanishing


def _square_root_balance(law: Law, weights: Weights) -> None:
    """All matrices on each block: `T` with `T A Tᵀ = T⁻ᵀ B T⁻¹`, symmetric, from factors and not from squares.

    With `W = R_wᵀ Q_wᵀ` and `V = Q_v R_v`, and `U S Yᵀ` the singular value decomposition of `R_v R_wᵀ`, producers are
    multiplied by `S^{-½} Uᵀ R_v` and consumers by `R_wᵀ Y S^{-½}` from the right: the square-root form of balanced
    truncation (Laub, Heath, Paige & Ward 1987). Directions of `S = 0`, which nobody writes or nobody reads, vanish.
    """
    producers, consumers = (torch.linalg.qr(stacked(law, weights, side).mT, mode="r").R for side in (writes, reads))
    left, values, right = torch.linalg.svd(consumers @ producers.mT, full_matrices=False)
    sizes = torch.linalg.matrix_norm(producers) * torch.linalg.matrix_norm(consumers)
    rounding = law.interface.width * torch.finfo(values.dtype).eps * sizes
    kept = values > rounding[:, None]
    root = torch.where(kept, values, 1.0).rsqrt().masked_fill(~kept, 0.0)[..., None]
    into, out_of = root * (left.mT @ consumers), root * (right @ producers)
    turned, _, axes = torch.linalg.svd(into, full_matrices=False)
    symmetric = axes.mT @ turned.mT  # the nearest to leaving the weights where they are
    transform(law, weights, symmetric @ into, symmetric @ out_of)


def log_range_gap(laws: Sequence[Law], weights: Weights) -> float:
    """The largest logarithm of the ratio of the ranges of the two sides, over all components of all laws."""
    gaps = [0.0]
    for law in laws:
        sizes, degrees = log_ranges(law, weights)
        gap = sizes[degrees > 0].amax(0) - sizes[degrees < 0].amax(0)
        gaps += [float(gap[gap.isfinite()].abs().max())] if bool(gap.isfinite().any()) else []
    return max(gaps)
