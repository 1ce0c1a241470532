"""Low-rank gradient descent: directional derivatives along a few directions in place of gradients.

Where the gradients of a loss lie near an `r`-dimensional subspace, `ĝ = Σ_i ⟨∇f, u_i⟩ u_i` over an orthonormal basis of
it costs `r` directional derivatives, by forward mode, instead of the `p` of a gradient (Cosson, Jadbabaie, Makur,
Reisizadeh & Shah, 2022 and 2023). Calls of the oracle are counted as in these papers: one for a directional
derivative, `p` for a gradient.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from torch.optim import Optimizer

from equipoise.arguments import checked_fields
from equipoise.errors import InputError
from equipoise.optim.validation import require_positive

Oracle = Callable[[Sequence[Tensor]], Tensor]
Refresh = Literal["never", "converged", "residual"]


def oracle(model: nn.Module, closure: Callable[[nn.Module], Tensor]) -> Oracle:
    """The loss of a model as a function of its trained parameters, which leaves its buffers as they are.

    The running statistics of a BatchNorm in training mode are therefore not those of the data: call the model on them
    before it is evaluated.

    Args:
        model: whose `parameters()` that require gradients are the arguments, in their order.
        closure: computes the loss by calling the model.

    Returns:
        A function of tensors in place of the parameters.

    >>> model = nn.Linear(2, 1)
    >>> loss = oracle(model, lambda model: model(torch.ones(3, 2)).square().mean())
    >>> bool(torch.isclose(loss(list(model.parameters())), model(torch.ones(2)).square().sum()))
    True
    """
    names = [f"model.{name}" for name, parameter in model.named_parameters() if parameter.requires_grad]
    module = _Closure(model, closure)

    def loss(tensors: Sequence[Tensor]) -> Tensor:
        copies = {name: buffer.clone() for name, buffer in module.named_buffers()}  # which it may update in place
        return functional_call(module, copies | dict(zip(names, tensors, strict=True)), ())

    return loss


class _Closure(nn.Module):
    def __init__(self, model: nn.Module, closure: Callable[[nn.Module], Tensor]):
        super().__init__()
        self.model, self.closure = model, closure

    def forward(self) -> Tensor:
        """The loss."""
        return self.closure(self.model)


@checked_fields
class LowRankGD(Optimizer):
    """Gradient descent along an orthonormal basis of earlier gradients.

    The first step takes `rank` gradients, at the start and at points near it, for the basis; then each step costs
    `rank` directional derivatives. When the projected gradient falls to `tolerance`, one full gradient decides: if
    that is small as well, `converged` is True and steps do nothing more; else the basis is renewed.

    Args:
        params: parameters, or groups of them with learning rates of their own.
        rank: the number of directions.
        oracle: the loss as a function of all trained parameters in the order of `params`; see
            `equipoise.optim.oracle`.
        lr: learning rate.
        tolerance: norm of the gradient at which the descent has converged.
        refresh: `converged` takes new gradients for the whole basis at apparent convergence; `residual` exchanges the
            oldest direction for the part of the full gradient outside of the basis; `never` keeps the basis, and
            `converged` is then apparent only.
        spread: distance of the points near the start, relative to the norm of the parameters (to 1, if that is zero).
        maximize: ascend.

    Raises:
        InputError: for a rank below one or above the number of parameters, a rate or tolerance that is no positive
            number, parameters without gradients, and an unknown `refresh`.

    >>> model = nn.Linear(20, 1, bias=False)
    >>> X, y = torch.randn(50, 20), torch.randn(50, 1)
    >>> loss = oracle(model, lambda model: (model(X) - y).square().mean())
    >>> optimizer = LowRankGD(model.parameters(), rank=3, oracle=loss, lr=0.1)
    >>> first = float(optimizer.step())
    >>> optimizer.calls, float(optimizer.step()) < first
    (63, True)
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, object]],
        rank: int,
        oracle: Oracle,
        lr: float = 1e-2,
        *,
        tolerance: float = 1e-6,
        refresh: Refresh = "converged",
        spread: float = 1e-2,
        maximize: bool = False,
    ):
        if refresh not in ("never", "converged", "residual"):
            raise InputError(
                expected="refresh 'never', 'converged' or 'residual'", found=repr(refresh), remedy="pass 'converged'"
            )
        for name, value in (("lr", lr), ("tolerance", tolerance), ("spread", spread)):
            require_positive(name, value, f"pass {name}=1e-2")
        counted = {"calls": 0, "converged": False, "oldest": 0}
        super().__init__(params, {"lr": lr, "maximize": maximize, **counted})
        self.oracle, self.rank, self.tolerance, self.refresh, self.spread = oracle, rank, tolerance, refresh, spread
        size = sum(parameter.numel() for parameter in self._parameters())
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= size:
            raise InputError(expected=f"a rank from 1 to {size}", found=repr(rank), remedy="pass rank=5")

    @property
    def calls(self) -> int:
        """Calls of the oracle: one for a directional derivative, one for each parameter for a gradient."""
        return self.param_groups[0]["calls"]

    @property
    def converged(self) -> bool:
        """Whether the gradient has fallen to the tolerance."""
        return self.param_groups[0]["converged"]

    def _parameters(self) -> list[Tensor]:
        found = [parameter for group in self.param_groups for parameter in group["params"]]
        without = [tuple(each.shape) for each in found if not each.requires_grad]
        if without:
            raise InputError(
                expected="parameters that require gradients",
                found=f"one of shape {without[0]} that does not",
                remedy="pass [p for p in model.parameters() if p.requires_grad]",
            )
        return found

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; `closure` is not used, because the oracle computes the loss.

        Returns:
            The loss before the step.
        """
        parameters = self._parameters()
        if not self._has_basis(parameters):
            self._renew(parameters)
        loss, slopes = self._along(parameters)
        gradient = self._combined(parameters, slopes)
        small = float(slopes.norm()) <= self.tolerance
        if small and not self.converged and self.refresh != "never":
            loss, gradient = self._decide(parameters)
        elif small:
            self.param_groups[0]["converged"] = True
        if not self.converged:
            self._move(gradient)
        return loss

    def _has_basis(self, parameters: Sequence[Tensor]) -> bool:
        return all("directions" in self.state[parameter] for parameter in parameters)

    def _basis(self, parameters: Sequence[Tensor]) -> Float[Tensor, "r p"]:
        return torch.cat([self.state[parameter]["directions"].flatten(1) for parameter in parameters], 1)

    def _keep(self, parameters: Sequence[Tensor], basis: Float[Tensor, "r p"]) -> None:
        parts = basis.split([parameter.numel() for parameter in parameters], 1)
        for parameter, part in zip(parameters, parts, strict=True):
            self.state[parameter]["directions"] = part.reshape(-1, *parameter.shape).clone()

    def _along(self, parameters: Sequence[Tensor]) -> tuple[Tensor, Float[Tensor, " r"]]:
        """The loss, and its derivative along each direction, by forward mode."""
        count = len(self.state[parameters[0]]["directions"])
        found = []
        loss = torch.zeros(())
        for place in range(count):
            tangents = tuple(self.state[parameter]["directions"][place] for parameter in parameters)
            loss, slope, *_ = jvp(lambda *tensors: self.oracle(tensors), tuple(parameters), tangents)
            found.append(slope)
        self.param_groups[0]["calls"] += count
        return loss, torch.stack(found)

    def _combined(self, parameters: Sequence[Tensor], slopes: Float[Tensor, " r"]) -> list[Tensor]:
        return [torch.tensordot(slopes, self.state[parameter]["directions"], 1) for parameter in parameters]

    def _gradient(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss and its gradient, for `p` calls."""
        loss, pull, *_ = vjp(lambda *each: self.oracle(each), *tensors)
        self.param_groups[0]["calls"] += sum(tensor.numel() for tensor in tensors)
        return loss, list(pull(torch.ones_like(loss)))

    def _renew(self, parameters: Sequence[Tensor]) -> None:
        """An orthonormal basis of gradients here and at points nearby."""
        norm = float(torch.stack([parameter.norm() for parameter in parameters]).norm()) or 1.0
        rows = []
        for place in range(self.rank):
            scale = 0.0 if place == 0 else self.spread * norm
            moved = [parameter + scale * _unit(parameter, parameters) for parameter in parameters]
            rows.append(torch.cat([gradient.flatten() for gradient in self._gradient(moved)[1]]))
        self._keep(parameters, _orthonormal(torch.stack(rows)))
        self.param_groups[0]["oldest"] = 0

    def _decide(self, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The full gradient at apparent convergence: the end, or a new direction or basis."""
        loss, gradient = self._gradient(parameters)
        flat = torch.cat([each.flatten() for each in gradient])
        if float(flat.norm()) <= self.tolerance:
            self.param_groups[0]["converged"] = True
        elif self.refresh == "converged":
            self._renew(parameters)
        else:
            basis, oldest = self._basis(parameters), self.param_groups[0]["oldest"]
            if len(basis) < self.rank:
                rows = torch.cat([basis, flat[None]])
            else:
                rows = torch.cat([basis[:oldest], flat[None], basis[oldest + 1 :]])
                self.param_groups[0]["oldest"] = (oldest + 1) % self.rank
            self._keep(parameters, _orthonormal(rows))
        return loss, gradient

    def _move(self, gradient: Sequence[Tensor]) -> None:
        rest = iter(gradient)
        for group in self.param_groups:
            sign = 1.0 if group["maximize"] else -1.0
            for parameter in group["params"]:
                parameter.add_(next(rest), alpha=sign * float(group["lr"]))


def _unit(parameter: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Random numbers whose norm over all parameters is about one."""
    return torch.randn_like(parameter) / sum(each.numel() for each in parameters) ** 0.5


def _orthonormal(rows: Float[Tensor, "r p"]) -> Float[Tensor, "k p"]:
    """An orthonormal basis of the span of the rows, in their order; dependent ones are left out."""
    scaled = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    basis: list[Tensor] = []
    for row in scaled:
        for _ in range(2):  # twice is enough
            for known in basis:
                row = row - (row @ known) * known
        if float(row.norm()) > 1e3 * torch.finfo(rows.dtype).eps:
            basis.append(row / row.norm())
    return torch.stack(basis) if basis else torch.zeros_like(rows[:1])
