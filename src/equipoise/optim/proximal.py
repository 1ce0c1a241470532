"""Neuron sharing: proximal steps of a group lasso on neurons, and the fewest neurons that give the same outputs.

Weight decay on a two-layer network `Σ_k v_k σ(⟨w_k, x⟩)` penalises `Σ_k ‖w_k‖ ‖v_k‖` once balanced, with one norm for
all the outputs of a neuron: the multi-task lasso, by which outputs share neurons (Shenouda, Parhi, Lee & Nowak 2023).
"""

from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linprog
from torch import Tensor
from torch.optim import Optimizer

from equipoise.arguments import checked, checked_fields
from equipoise.errors import InputError
from equipoise.optim.validation import require_dense

_ROUNDS = 100  # of added directions, at most
_GAP = 1e-6  # relative distance from the least norm at which directions are no longer added


@checked_fields
class ProximalSGD(Optimizer):
    """Gradient steps, each followed by the proximal map of `λ Σ_k ‖v_k‖`: whole neurons become exactly zero.

    `v ← v (1 - η λ / ‖v‖)₊` for every slice of a parameter, as the column of the layer that reads a neuron. Set
    `strength=0.0` for the groups that are not penalised.

    Args:
        params: parameters, or groups of them with a rate, strength and axis of their own.
        lr: learning rate `η`.
        strength: `λ`.
        axis: along which the slices are counted: 1 for the columns of a linear or convolutional layer, which read one
            neuron each; 0 for the rows, which write one.
        momentum: of the gradient, as `torch.optim.SGD` has it.
        maximize: ascend the loss, less the penalty.

    Raises:
        InputError: for a rate that is not positive, a negative strength, a momentum outside [0, 1), parameters without
            that axis; and at a step, for sparse gradients.

    >>> layer = torch.nn.Linear(3, 2, bias=False)
    >>> optimizer = ProximalSGD(layer.parameters(), lr=0.1, strength=100.0)
    >>> layer(torch.ones(1, 3)).sum().backward()
    >>> optimizer.step()
    >>> int(active_neurons(layer.weight).numel())
    0
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, object]],
        lr: float = 1e-2,
        strength: float = 1e-3,
        *,
        axis: int = 1,
        momentum: float = 0.0,
        maximize: bool = False,
    ):
        defaults = {"lr": lr, "strength": strength, "axis": axis, "momentum": momentum, "maximize": maximize}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Add a group, checked."""
        given = {**self.defaults, **param_group}
        for name, least, most in (("lr", 0.0, None), ("strength", 0.0, None), ("momentum", 0.0, 1.0)):
            value = given[name]
            fits = isinstance(value, (int, float, Tensor)) and least <= float(value) < float(most or "inf")
            if not fits or (name == "lr" and float(cast("float", value)) == 0.0):
                raise InputError(
                    expected=f"{name} {'above 0' if name == 'lr' else 'of 0 or more'}" + (", below 1" if most else ""),
                    found=repr(value),
                    remedy=f"leave out {name}= for its default",
                )
        super().add_param_group(param_group)
        axis = cast("int", given["axis"])
        for parameter in self.param_groups[-1]["params"]:
            if float(cast("float", given["strength"])) > 0 and not 0 <= axis < parameter.ndim:
                self.param_groups.pop()
                raise InputError(
                    expected=f"penalised parameters with an axis {axis}",
                    found=f"one of shape {tuple(parameter.shape)}",
                    remedy="put it into a group with strength=0.0",
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor | float] | None = None) -> Tensor | float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; returns the loss of the closure, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                require_dense(parameter.grad, group, place)
                self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, object]) -> None:
        gradient, momentum = cast("Tensor", parameter.grad), cast("float", group["momentum"])
        if momentum:
            state = self.state[parameter]
            kept = state.get("momentum_buffer")
            gradient = gradient.clone() if kept is None else kept.mul_(momentum).add_(gradient)
            state["momentum_buffer"] = gradient
        rate, strength = cast("float", group["lr"]), cast("float", group["strength"])
        parameter.add_(gradient * rate if group["maximize"] else gradient * -rate)
        if float(strength) > 0:
            _shrink_(parameter, rate * strength, cast("int", group["axis"]))


@checked
@torch.no_grad()
def shrink_groups_(weight: Float[Tensor, "..."], amount: float | Tensor, axis: int = 1) -> Float[Tensor, "..."]:
    """The proximal map of `amount Σ_k ‖v_k‖` over the slices of a tensor, in place: `v ← v (1 - amount/‖v‖)₊`.

    Args:
        weight: changed in place.
        amount: of the shrinkage.
        axis: along which the slices are counted.

    Returns:
        The tensor.

    >>> shrink_groups_(torch.tensor([[3.0, 0.3], [4.0, 0.4]]), 1.0)
    tensor([[2.4000, 0.0000],
            [3.2000, 0.0000]])
    """
    return _shrink_(weight, amount, axis)


def _shrink_(weight: Tensor, amount: float | Tensor, axis: int) -> Tensor:
    others = [each for each in range(weight.ndim) if each != axis]
    norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True) if others else weight.abs()
    return weight.mul_((1 - amount / norms.clamp_min(torch.finfo(weight.dtype).tiny)).clamp_min(0))


@checked
def active_neurons(weight: Float[Tensor, "..."], axis: int = 1, tolerance: float = 0.0) -> Int[Tensor, " active"]:
    """The neurons that a layer reads: the indices of its columns above a share of the largest.

    Args:
        weight: of the layer that reads them.
        axis: 1 for the columns, which read; 0 for the rows, which write.
        tolerance: the share.

    Returns:
        Indices, ascending.

    >>> active_neurons(torch.tensor([[1.0, 0.0, 2.0]]))
    tensor([0, 2])
    """
    norms = torch.linalg.vector_norm(weight.detach().movedim(axis, 0).flatten(1), dim=1)
    return (norms > tolerance * norms.max()).nonzero().flatten() if len(norms) else norms.long()


@checked
def share_neurons(
    features: Float[Tensor, "n neurons"], outputs: Float[Tensor, "n outputs"], *, iterations: int = 300
) -> Float[Tensor, "outputs neurons"]:
    """Weights `V` of least `Σ_k ‖v_k‖` with `Φ Vᵀ = Ψ`, in which at most `rank Φ · rank Ψ` neurons are active.

    By reweighted least squares, whose directions of `v_k` begin a linear programme over their lengths; it is given
    further directions until its dual proves the norm to be the least to 1e-6. A basic solution has so few of them
    (Shenouda et al. 2023, theorem on the number of neurons).

    Args:
        features: `Φ`, the activations of all neurons on the examples.
        outputs: `Ψ`, what is to be read from them; must lie in their span.
        iterations: of reweighted least squares.

    Returns:
        `V`, in float64.

    Raises:
        InputError: for other numbers of rows, outputs that these neurons cannot give, and features that are too badly
            conditioned for the programme.

    >>> phi = torch.tensor([[1.0, 0.0, 0.9], [0.0, 1.0, 0.9]])
    >>> share_neurons(phi, torch.ones(2, 2)).abs().gt(0).any(0)
    tensor([False, False,  True])
    """
    phi, psi = features.detach().double(), outputs.detach().double()
    least = torch.linalg.lstsq(phi, psi, driver="gelsd").solution if len(phi) == len(psi) else psi
    if len(phi) != len(psi) or float((phi @ least - psi).norm()) > 1e-9 * max(float(psi.norm()), 1e-300):
        raise InputError(
            expected="outputs that a combination of the features gives exactly",
            found=f"features {tuple(phi.shape)}, outputs {tuple(psi.shape)}",
            remedy="pass outputs = features @ weight.T of a layer that reads them",
        )
    left, right = _coordinates(phi), _coordinates(psi.T)
    phi, psi = left.T @ phi, left.T @ psi @ right  # rank Φ × neurons, rank Φ × rank Ψ
    if not psi.numel():  # outputs that are zero
        return torch.zeros(outputs.shape[1], features.shape[1], dtype=phi.dtype)
    size, unit = psi.norm(), torch.linalg.matrix_norm(phi, 2)  # tolerances of the programme are absolute
    phi, psi = phi / unit, psi / size
    found = _reweighted(phi, psi, iterations)
    return (size / unit * right @ _few(phi, psi, found).T).contiguous()


def _coordinates(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns."""
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, values > 1e-10 * values.max().clamp_min(1e-300)]


def _reweighted(phi: Tensor, psi: Tensor, iterations: int) -> Float[Tensor, "neurons r"]:
    """`min Σ ‖v_k‖` by `min Σ ‖v_k‖²/η_k`, `η_k = √(‖v_k‖² + ε²)`, with `ε` falling to 1e-10 of the largest."""
    found = torch.linalg.pinv(phi) @ psi
    for place in range(iterations):
        norms = torch.linalg.vector_norm(found, dim=1)
        rate = torch.sqrt(norms.square() + (norms.max() * 10 ** (-10 * (place + 1) / iterations)) ** 2)
        root = rate.sqrt()[:, None]
        found = root * torch.linalg.lstsq(phi * root.T, psi, driver="gelsd").solution
    return found


def _few(phi: Tensor, psi: Tensor, found: Tensor) -> Float[Tensor, "neurons r"]:
    """A basic solution of the linear programme over the lengths of `v_k`, directions added until none would help.

    A direction helps neuron `k` where the dual `Λ` has `‖Λᵀ φ_k‖ > 1`; it is then the direction of `Λᵀ φ_k`.

    Raises:
        InputError: where the programme finds no solution.
    """
    norms = torch.linalg.vector_norm(found, dim=1)
    neurons = (norms > 1e-8 * norms.max()).nonzero().flatten()
    directions = found[neurons] / norms[neurons, None]
    lengths = torch.zeros(0)
    for _ in range(_ROUNDS):
        terms = torch.einsum("ak,kb->abk", phi[:, neurons], directions).flatten(0, 1)
        solved = linprog(np.ones(terms.shape[1]), A_eq=terms.numpy(), b_eq=psi.flatten().numpy(), method="highs-ds")
        if solved.x is None:
            raise InputError(
                expected="features well enough conditioned for a linear programme with a tolerance of 1e-7",
                found=solved.message,
                remedy="drop features that are nearly the same, or scale them",
            )
        lengths = torch.from_numpy(np.array(solved.x))
        pull = phi.T @ torch.from_numpy(np.array(solved.eqlin.marginals)).view_as(psi)
        strength = torch.linalg.vector_norm(pull, dim=1)
        helpful = (strength > 1 + _GAP).nonzero().flatten()
        if not len(helpful):
            break
        neurons = torch.cat([neurons, helpful])
        directions = torch.cat([directions, pull[helpful] / strength[helpful, None]])
    used = lengths > 1e-9 * lengths.max()
    result = torch.zeros_like(found).index_add_(0, neurons[used], lengths[used, None] * directions[used])
    places = neurons[used].unique()
    left = psi - phi @ result  # of the linear programme's tolerance
    result[places] += torch.linalg.lstsq(phi[:, places], left, driver="gelsd").solution
    return result
