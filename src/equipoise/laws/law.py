"""One law as a value: what is conserved, by which weights, and how far a point is from satisfying it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.graph.interface import Interface, Member
from equipoise.graph.precision import narrowest
from equipoise.laws.commutant import Commutant

Parameters = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Law:
    """`Σ_p W_p W_pᵀ - Σ_c V_cᵀ V_c`, seen through a commutant, is constant along gradient flow (T2).

    A bias is a column of its producer; a consumer's own bias takes no part. A map of degree `q` counts its consumers
    `q` times.
    """

    name: str
    interface: Interface
    commutant: Commutant

    @property
    def kind(self) -> str:
        """`linear` for a matrix-wise law, `vertex` for a vertex-wise one; else the commutant's own kind."""
        return self.commutant.kind

    @property
    def count(self) -> int:
        """The number of linearly independent conserved quantities."""
        return self.commutant.count

    @property
    def producers(self) -> tuple[str, ...]:
        """Parameters that write into the interface."""
        return self.interface.producers

    @property
    def consumers(self) -> tuple[str, ...]:
        """Parameters that read from it."""
        return self.interface.consumers

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(dict.fromkeys((*self.producers, *self.consumers)))

    @property
    def exact(self) -> bool:
        """False where the `eps` of a normalisation breaks the symmetry."""
        return not self.interface.breaks

    @property
    def precision(self) -> torch.dtype | None:
        """The narrowest dtype in which the model computes between its members; None where that is the weights' own."""
        return narrowest(*(member.precision for member in self.interface.members))

    @property
    def statement(self) -> str:
        """The conserved quantity as a formula in the parameters."""
        if self.kind == "shift":
            return ", ".join(f"Σ {member.label}" for member in self.interface.members)
        return " ".join(_terms(self)).removeprefix("+ ")

    def explain(self) -> str:
        """The law in words: what is conserved, why, when it is exact, and where it was first shown."""
        lines = [f"{self.name}: {_REASONS[self.kind]}", f"Conserved by gradient flow: {self.statement}."]
        lines.append(f"It has {self.count} independent quantities; source: {_SOURCES[self.kind]}.")
        for place, eps in self.interface.breaks:
            lines.append(f"Not exact: the eps = {eps:g} of {place} breaks the scaling a little.")
        return "\n".join(lines)

    def value(self, parameters: Parameters) -> Tensor:
        """The conserved quantity at these weights (T2).

        `(d, d)` for a matrix-wise law, `(d,)` for a vertex-wise one, `(blocks, width, width)` for blocks.
        """
        weights = self.slices(named(parameters))
        projected = self.commutant.project(self.commutant.moments(weights, weights, self.degrees))
        return self.commutant.folded(projected)

    def residual(self, parameters: Parameters, gradients: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """`‖P(Σ_p G_p W_pᵀ - Σ_c V_cᵀ G_c)‖ / (Σ_p ‖W_p‖‖G_p‖ + Σ_c ‖V_c‖‖G_c‖)`, with `0/0 = 0` (T1).

        `P` projects on the whole commutant, antisymmetric part included: rounding for a right gradient.
        """
        defect = self.identity(parameters, gradients).norm()
        return torch.where(defect == 0, defect, defect / self.scale(parameters, gradients))

    def residuals(self, parameters: Parameters, gradients: Mapping[str, Tensor]) -> Float[Tensor, " units"]:
        """The residual of each head, neuron or group by itself, over its own `Σ ‖W‖‖G‖`.

        For a shift, over the norm of all gradients given.
        """
        defects = self.identity(parameters, gradients).flatten(1).norm(dim=1)
        if self.kind == "shift":
            return torch.where(defects == 0, defects, defects / self.scale(parameters, gradients))
        sides = zip(self.degrees, self.slices(named(parameters)), self.slices(gradients), strict=True)
        terms = [abs(degree) * w.flatten(1).norm(dim=1) * g.flatten(1).norm(dim=1) for degree, w, g in sides]
        return torch.where(defects == 0, defects, defects / torch.stack(terms).sum(0))

    def identity(self, parameters: Parameters, gradients: Mapping[str, Tensor]) -> Tensor:
        """The projected moments `P(Σ_p G_p W_pᵀ - Σ_c V_cᵀ G_c)` themselves, block by block."""
        weights = self.slices(named(parameters))
        return self.commutant.project(self.commutant.moments(self.slices(gradients), weights, self.degrees))

    def contributions(self, parameters: Parameters, gradients: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        """The contribution of each member to `identity`, by parameter; for a shift, the sums of each member."""
        if self.kind == "shift":
            return [(member.parameter, self.identity(parameters, gradients)) for member in self.interface.members]
        sides = zip(self.interface.members, self.slices(gradients), self.slices(named(parameters)), strict=True)
        return [
            (member.parameter, self.commutant.project(self.commutant.moments([g], [w], [member.degree])))
            for member, g, w in sides
        ]

    def change(self, parameters: Parameters, updates: Mapping[str, Tensor]) -> Tensor:
        """How adding `updates` to the weights changes the value: `ΔWᵀ + WΔᵀ + ΔΔᵀ`, without cancellation."""
        old, new = self.slices(named(parameters)), self.slices(updates)
        if self.kind == "shift":
            return self.value(updates)
        parts = [(new, old), (old, new), (new, new)]
        total = sum(self.commutant.moments(left, right, self.degrees) for left, right in parts)
        return self.commutant.folded(self.commutant.project(torch.as_tensor(total)))

    def scale(self, parameters: Parameters, gradients: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """`Σ |degree| ‖W‖ ‖G‖` over the slices that take part; for a shift, the norm of all gradients given."""
        if self.kind == "shift":
            return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        pairs = zip(self.degrees, self.slices(named(parameters)), self.slices(gradients), strict=True)
        return torch.stack([abs(degree) * w.norm() * g.norm() for degree, w, g in pairs]).sum()

    @cached_property
    def degrees(self) -> tuple[float, ...]:
        """How each member counts: positive for producers, negative for consumers."""
        return tuple(member.degree for member in self.interface.members)

    def slices(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The slices of each member, of shape (blocks, copies, width, rest)."""
        return [member.slices(fitting(member, tensors)) for member in self.interface.members]


def fitting(member: Member, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor of a member, dense; an embedding may have sparse gradients."""
    tensor = tensors.get(member.parameter)
    if tensor is None or (tensor.shape != member.view and tensor.numel() != math.prod(member.view)):
        raise InputError(
            expected=f"{member.parameter} with {math.prod(member.view)} elements",
            found="none" if tensor is None else f"shape {tuple(tensor.shape)}",
            remedy="pass the model that the laws were derived from, and all its gradients",
        )
    return tensor.to_dense() if tensor.is_sparse else tensor


_REASONS = {
    "linear": "the map from producers to consumers is linear, so any matrix A may act: W ← e^{tA} W, V ← V e^{-tA}",
    "vertex": "every unit may be scaled by itself: what writes it by e^{t}, what reads it by e^{-t}",
    "blocks": "any matrix may act within each block (a head, a group, a class of co-active neurons), none across",
    "planes": "rotations by distinct angles commute with complex numbers on each plane",
    "scalar": "all units may be scaled together, and the map between undoes it",
    "antisymmetric": "the same weight stands on both sides: only rotations are left, an identity between gradients",
    "product": "each part of the vector may be acted on by itself, as the map there allows",
    "intersection": "what commutes with every map that the vector meets may act",
    "shift": "its readers ignore a common shift, or what it reads sums to zero: so does the gradient over each group",
}
_SOURCES = {
    "linear": "Du, Hu & Lee 2018 (du2018algorithmic)",
    "vertex": "Du, Hu & Lee 2018 (du2018algorithmic); Le & Jegelka 2022 (le2022training)",
    "blocks": "docs/theory.md §1, beyond Le & Jegelka 2022 (le2022training)",
    "planes": "docs/theory.md §1",
    "scalar": "docs/theory.md §1",
    "antisymmetric": "docs/theory.md §1",
    "product": "docs/theory.md §1",
    "intersection": "docs/theory.md §1",
    "shift": "docs/theory.md §1",
}


def _terms(law: Law) -> Iterator[str]:
    for member in law.interface.members:
        sign = "+" if member.degree > 0 else "-"
        weight = "" if abs(member.degree) == 1 else f"{abs(member.degree):g} "
        yield f"{sign} {weight}{_square(law, member)}"


def _square(law: Law, member: Member) -> str:
    name = member.label
    by_rows = member.axes[-1] == len(member.axes) - 1
    if law.interface.width > 1:
        return f"{name} {name}ᵀ" if by_rows else f"{name}ᵀ {name}"
    if law.interface.blocks == 1:
        return f"‖{name}‖²"
    if len(member.view) == 1:
        return f"{name}[i]²"
    return f"‖{name}[i]‖²" if by_rows else f"‖{name}[:, i]‖²"


def named(parameters: Parameters) -> Mapping[str, Tensor]:
    """Parameters by name, of a module or as they are.

    >>> named(nn.Linear(1, 1, device="meta"))
    Traceback (most recent call last):
    ...
    equipoise.errors.InputError: expected parameters with values; found weight on the meta device; load the weights ...

    Raises:
        InputError: where they have no values.
    """
    if not isinstance(parameters, nn.Module):
        return parameters
    values = {name: parameter.detach() for name, parameter in parameters.named_parameters()}
    without = [name for name, value in values.items() if value.is_meta]
    if without:
        raise InputError(
            expected="parameters with values",
            found=f"{without[0]} on the meta device",
            remedy="load the weights first (deriving the laws needs none)",
        )
    return values


def gradients_of(parameters: Parameters, aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """The `.grad` of a module's parameters, by canonical name; those of parameters that share storage are summed."""
    if not isinstance(parameters, nn.Module):
        raise InputError(
            expected="gradients beside a mapping of parameters",
            found="none",
            remedy="pass gradients={name: tensor}, or a module after backward()",
        )
    owned = {name: p for name, p in parameters.named_parameters() if p.is_floating_point()}
    if all(parameter.grad is None for parameter in owned.values()):
        raise InputError(expected="gradients", found="none on any parameter", remedy="call loss.backward() first")
    total: dict[str, Tensor] = {}
    for name, parameter in owned.items():
        canonical = aliases.get(name, name)
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        total[canonical] = total[canonical] + gradient if canonical in total else gradient
    return total
