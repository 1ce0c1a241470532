"""`W = U diag(d) Vᵀ` with bounded `U` and `V`: factorisations that train to low rank (Hou et al., 2025).

The Frobenius norms of `U` and `V` are kept at most `radius` by a projection after each step of the optimizer. Unlike
with `W = U Vᵀ`, where small singular values persist, most entries of `d` become negligible and can be pruned.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from equipoise.arguments import checked
from equipoise.errors import InputError
from equipoise.parametrize.weights import chosen


class UDV(nn.Module):
    """A matrix as `U diag(d) Vᵀ`, further axes of the weight flattened into the columns.

    Args:
        shape: of the weight.
        rank: the number of columns of `U` and `V`.
        radius: the largest Frobenius norm of `U` and of `V`.
        symmetric: `W = U diag(d) Uᵀ` with `d ≥ 0`.
    """

    def __init__(self, shape: torch.Size, rank: int, radius: float = 1.0, symmetric: bool = False):
        super().__init__()
        rows, columns = shape[0], shape[1:].numel()
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(rows, columns):
            raise InputError(
                expected=f"a rank from 1 to {min(rows, columns)}, for a weight of shape {tuple(shape)}",
                found=repr(rank),
                remedy=f"pass rank={min(rows, columns)}",
            )
        if not 0 < radius < float("inf"):
            raise InputError(expected="a positive radius", found=repr(radius), remedy="pass radius=1.0")
        if symmetric and rows != columns:
            raise InputError(
                expected="a square weight for symmetric=True", found=f"{tuple(shape)}", remedy="pass symmetric=False"
            )
        self.shape, self.rank, self.radius, self.symmetric = shape, rank, radius, symmetric

    def forward(
        self,
        left: Float[Tensor, "rows r"],
        values: Float[Tensor, " r"],
        right: Float[Tensor, "columns r"] | None = None,
    ) -> Float[Tensor, "..."]:
        """The product, in the shape of the weight."""
        other = left if right is None else right
        return ((left * values) @ other.T).reshape(self.shape)

    def right_inverse(self, weight: Float[Tensor, "..."]) -> tuple[Tensor, ...]:
        """The leading singular vectors, scaled to the radius: the nearest weight of this rank."""
        matrix = weight.flatten(1)
        scale = self.radius / self.rank**0.5
        if self.symmetric:
            values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
            return vectors[:, -self.rank :] * scale, values[-self.rank :].clamp_min(0) / scale**2
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        r = self.rank
        return left[:, :r] * scale, values[:r] / scale**2, right[:r].T.contiguous() * scale

    @torch.no_grad()
    def project_(self, left: Tensor, values: Tensor, right: Tensor | None = None) -> None:
        """Bring the factors back to the constraints, in place."""
        for factor in (left,) if right is None else (left, right):
            norm = float(factor.norm())
            if norm > self.radius:
                factor.mul_(self.radius / norm)
        if self.symmetric:
            values.clamp_(min=0)


@checked
def udv(
    model: nn.Module,
    rank: int,
    radius: float = 1.0,
    names: str | Sequence[str] | None = None,
    *,
    symmetric: bool = False,
) -> nn.Module:
    """Replace weights by `U diag(d) Vᵀ`; train with `constrain(optimizer, model)`.

    Args:
        model: changed in place. Weights of higher rank become the nearest of this rank.
        rank: the number of columns of `U` and `V`; at most the smaller side of every weight.
        radius: the largest Frobenius norm of `U` and `V`.
        names: patterns of the parameters; the weights of linear and convolutional layers if None.
        symmetric: `U diag(d) Uᵀ` with `d ≥ 0`, for square weights.

    Returns:
        The model.

    Raises:
        InputError: for a rank or radius out of range, and names that match nothing or a parameter that cannot be
            parametrised.

    >>> model = udv(nn.Linear(4, 3), rank=2)
    >>> int(torch.linalg.matrix_rank(model.weight))
    2
    """
    places = chosen(model, names, least_axes=2)
    made = [UDV(getattr(module, own).shape, rank, radius, symmetric) for module, own, _ in places]
    for (module, own, _), parametrization in zip(places, made, strict=True):
        parametrize.register_parametrization(module, own, parametrization)
    return model


def _factored(model: nn.Module) -> list[tuple[UDV, nn.ModuleList]]:
    lists = [
        steps
        for module in model.modules()
        if parametrize.is_parametrized(module) and isinstance(module.parametrizations, nn.ModuleDict)
        for steps in module.parametrizations.values()
    ]
    found = [
        (first, steps) for steps in lists if isinstance(steps, nn.ModuleList) and isinstance(first := steps[0], UDV)
    ]
    if not found:
        raise InputError(
            expected="a model with weights U D Vᵀ", found="none", remedy="call eq.parametrize.udv(model, rank)"
        )
    return found


def _factors(steps: nn.ModuleList, symmetric: bool) -> list[Tensor]:
    return [getattr(steps, f"original{place}") for place in range(2 if symmetric else 3)]


@checked
def project(model: nn.Module) -> None:
    """Bring all factors back to their constraints.

    Args:
        model: changed in place.

    Raises:
        InputError: for a model without weights `U D Vᵀ`.
    """
    for parametrization, steps in _factored(model):
        parametrization.project_(*_factors(steps, parametrization.symmetric))


@checked
def constrain(optimizer: Optimizer, model: nn.Module) -> RemovableHandle:
    """Project after every step of an optimizer.

    Args:
        optimizer: any optimizer of the factors.
        model: with weights `U D Vᵀ`.

    Returns:
        A handle whose `remove()` ends it.

    Raises:
        InputError: for a model without weights `U D Vᵀ`.

    >>> model = udv(nn.Linear(4, 3), rank=2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> handle = constrain(optimizer, model)
    """
    project(model)
    return optimizer.register_step_post_hook(lambda *_: project(model))


@checked
@torch.no_grad()
def prune(model: nn.Module, tolerance: float = 1e-3) -> dict[str, int]:
    """Reduce the rank of `U diag(d) Vᵀ` to the singular values of the product above a share of the largest.

    Args:
        model: changed in place; make the optimizer anew.
        tolerance: that share.

    Returns:
        The rank of every such weight, by name.

    Raises:
        InputError: for a model without weights `U D Vᵀ`, and a tolerance outside [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise InputError(expected="a tolerance from 0 to below 1", found=repr(tolerance), remedy="pass tolerance=1e-3")
    names = {id(steps): name for name, steps in model.named_modules()}
    ranks = {}
    for parametrization, steps in _factored(model):
        factors = _factors(steps, parametrization.symmetric)
        weight = parametrization(*factors)
        values = torch.linalg.svdvals(weight.flatten(1))[: parametrization.rank]
        parametrization.rank = max(int((values > tolerance * values[0]).sum()), 1)
        for place, (old, new) in enumerate(zip(factors, parametrization.right_inverse(weight), strict=True)):
            setattr(steps, f"original{place}", nn.Parameter(new.contiguous(), requires_grad=old.requires_grad))
        ranks[names[id(steps)].replace("parametrizations.", "", 1)] = parametrization.rank
    return ranks
