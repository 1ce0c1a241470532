"""The rank of a function: singular values of its Jacobian, its pseudo-determinant, and the norm that depth asks for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.errors import InputError
from equipoise.modes import default_modes


@dataclass(frozen=True)
class JacobianSpectrum:
    """Singular values `s_1 ≥ s_2 ≥ …` of the Jacobian of a function at each of some points."""

    values: Float[Tensor, "n k"]

    def ranks(self, tolerance: float = 1e-3) -> Tensor:
        """By point, how many `s_i > tolerance · s_1`; 0 where the Jacobian is zero."""
        return (self.values > tolerance * self.values[:, :1]).sum(1)

    def rank(self, tolerance: float = 1e-3) -> int:
        """The largest of these: a lower bound of the bottleneck rank of Jacot (2023), up to the tolerance."""
        return int(self.ranks(tolerance).max())

    def log_pseudo_determinants(self, tolerance: float = 1e-3) -> Tensor:
        """By point `log|J|₊ = Σ log s_i` over the `s_i > tolerance · s_1`."""
        counted = self.values > tolerance * self.values[:, :1]
        return torch.where(counted, self.values.clamp(min=torch.finfo(self.values.dtype).tiny).log(), 0.0).sum(1)


@default_modes()
def jacobian_spectrum(f: Callable[[Tensor], Tensor], inputs: Float[Tensor, "n ..."]) -> JacobianSpectrum:
    """Singular values of `∂f(x)/∂x` at each example: the local rank of a trained function (Jacot 2023).

    `2 log|J|₊` bounds from below what a deep network of a given bottleneck rank needs beyond the part of its squared
    norm that grows with depth.

    Args:
        f: a module or function that treats examples in a batch independently (BatchNorm in evaluation mode).
        inputs: the points.

    Returns:
        Their singular values, a row for each point.

    Raises:
        InputError: for an output that does not depend on the inputs.

    >>> A = torch.diag(torch.tensor([3.0, 2.0, 0.0]))
    >>> found = jacobian_spectrum(lambda x: x @ A.T, torch.ones(2, 3))
    >>> found.rank(), found.log_pseudo_determinants().exp().tolist()
    (2, [6.0, 6.0])
    """
    with torch.enable_grad():
        x = inputs.detach().requires_grad_()
        output = f(x).reshape(len(inputs), -1)
        if not output.requires_grad:
            raise InputError(
                expected="a function of its inputs", found="an output without a gradient", remedy="pass a module"
            )
        rows = [torch.autograd.grad(output[:, k].sum(), x, retain_graph=True)[0] for k in range(output.shape[1])]
    jacobian = torch.stack([row.flatten(1) for row in rows], 1).double()
    return JacobianSpectrum(torch.linalg.svdvals(jacobian))


@default_modes()
def linear_representation_cost(matrix: Float[Tensor, "out in"], depth: int, tolerance: float = 1e-12) -> float:
    """`R(A; L) = L Σ s_i^{2/L}`: the least `Σ ‖W_l‖²` of a product of `L` matrices that is `A` (Dai et al. 2021).

    `R/L → rank A` and `R - L · rank A → 2 log|A|₊` as depth grows, the latter with an error of
    `(2/L) Σ log² s_i + O(1/L²)`.

    Args:
        matrix: `A`.
        depth: `L`.
        tolerance: singular values below that share of the largest one are zero.

    Returns:
        The cost.

    Raises:
        InputError: for a depth below one.

    >>> linear_representation_cost(torch.diag(torch.tensor([4.0, 1.0])).double(), depth=2)
    10.0
    """
    if depth < 1:
        raise InputError(expected="a depth of one or more", found=str(depth), remedy="pass the number of matrices")
    values = torch.linalg.svdvals(matrix.double())
    counted = values[values > tolerance * values[0]]
    return float(depth * (counted ** (2 / depth)).sum())
