"""Laws as values: what is conserved, by which weights, and how far a point is from satisfying it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.graph.capture import Captured
from equipoise.graph.coverage import Coverage
from equipoise.graph.interface import Interface, Member
from equipoise.laws.commutant import Commutant

Parameters = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Law:
    """`Σ_p W_p W_pᵀ - Σ_c V_cᵀ V_c`, seen through a commutant, is constant along gradient flow (THEORY T2).

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
        """Linearly independent conserved quantities it stands for."""
        return self.commutant.count

    @property
    def producers(self) -> tuple[str, ...]:
        """Parameters that write into the interface."""
        return self.interface.producers

    @property
    def consumers(self) -> tuple[str, ...]:
        """Parameters that read from it."""
        return self.interface.consumers

    @property
    def parameters(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(dict.fromkeys((*self.producers, *self.consumers)))

    @property
    def exact(self) -> bool:
        """False where the `eps` of a normalisation breaks the symmetry."""
        return not self.interface.breaks

    @property
    def statement(self) -> str:
        """The conserved quantity as a formula in the parameters."""
        return " ".join(_terms(self)).removeprefix("+ ")

    def value(self, parameters: Parameters) -> Tensor:
        """The conserved quantity at these weights (T2).

        `(d, d)` for a matrix-wise law, `(d,)` for a vertex-wise one, `(blocks, width, width)` for blocks.
        """
        weights = self._slices(named(parameters))
        projected = self.commutant.project(self.commutant.moments(weights, weights, self._degrees))
        return self.commutant.folded(projected)

    def residual(self, parameters: Parameters, gradients: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """`‖P(Σ_p G_p W_pᵀ - Σ_c V_cᵀ G_c)‖ / (Σ_p ‖W_p‖‖G_p‖ + Σ_c ‖V_c‖‖G_c‖)`, with `0/0 = 0` (T1).

        `P` projects on the whole commutant, antisymmetric part included: rounding for a right gradient.
        """
        defect = self.identity(parameters, gradients).norm()
        return torch.where(defect == 0, defect, defect / self.scale(parameters, gradients))

    def identity(self, parameters: Parameters, gradients: Mapping[str, Tensor]) -> Tensor:
        """The projected moments `P(Σ_p G_p W_pᵀ - Σ_c V_cᵀ G_c)` themselves, block by block."""
        weights = self._slices(named(parameters))
        return self.commutant.project(self.commutant.moments(self._slices(gradients), weights, self._degrees))

    def scale(self, parameters: Parameters, gradients: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """`Σ |degree| ‖W‖ ‖G‖` over the slices that take part."""
        pairs = zip(self._degrees, self._slices(named(parameters)), self._slices(gradients), strict=True)
        return torch.stack([abs(degree) * w.norm() * g.norm() for degree, w, g in pairs]).sum()

    @property
    def _degrees(self) -> list[float]:
        return [member.degree for member in self.interface.members]

    def _slices(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        return [member.slices(tensors[member.parameter]) for member in self.interface.members]


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


@dataclass(frozen=True, eq=False)
class Laws(Sequence[Law]):
    """The laws of one network, and the proof that every use of every parameter was looked at.

    >>> from equipoise.laws import invariances
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 1)).double()
    >>> laws = invariances(model, torch.ones(2, 3).double())
    >>> [(law.name, law.kind, law.count) for law in laws]
    [('0.weight → 2.weight', 'vertex', 4), ('2.weight → 3.weight', 'linear', 10)]
    >>> model(torch.ones(2, 3).double()).sum().backward()
    >>> all(residual < 1e-15 for residual in laws.residual(model).values())
    True
    """

    laws: tuple[Law, ...]
    coverage: Coverage
    captured: Captured

    @overload
    def __getitem__(self, index: int) -> Law: ...
    @overload
    def __getitem__(self, index: slice) -> "Laws": ...
    def __getitem__(self, index: int | slice) -> "Law | Laws":
        if isinstance(index, slice):
            return Laws(self.laws[index], self.coverage, self.captured)
        return self.laws[index]

    def __len__(self) -> int:
        return len(self.laws)

    def __str__(self) -> str:
        return "\n".join(f"{law.name}: {law.kind}, {law.count} conserved" for law in self.laws)

    @property
    def count(self) -> int:
        """Linearly independent conserved quantities of all laws together."""
        return sum(law.count for law in self)

    def named(self, name: str) -> Law:
        """The law of that name; raises `InputError` naming the others."""
        for law in self:
            if law.name == name:
                return law
        raise InputError(
            expected=f"the name of a law, among {', '.join(law.name for law in self)}",
            found=repr(name),
            remedy="print the laws to see their names",
        )

    def value(self, parameters: Parameters) -> dict[str, Tensor]:
        """Every conserved quantity, by the name of its law, of a module or of a mapping of names to tensors.

        >>> from equipoise.laws import invariances
        >>> model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> {name: value.shape for name, value in invariances(model, torch.ones(4, 3)).value(model).items()}
        {'0.weight → 2.weight': torch.Size([2])}
        """
        values = named(parameters)
        return {law.name: law.value(values) for law in self.laws}

    def residual(
        self, parameters: Parameters, gradients: Mapping[str, Tensor] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """The relative residual of T1 of every law: an exact check of the gradient.

        After `backward()` on a module, or from `gradients` by name. A parameter without a gradient counts as zero
        when others have one. Raises `InputError` if there are no gradients at all.
        """
        slopes = gradients_of(parameters, self.captured.aliases) if gradients is None else gradients
        values = named(parameters)
        return {law.name: law.residual(values, slopes) for law in self.laws}


def named(parameters: Parameters) -> Mapping[str, Tensor]:
    """Parameters by name, of a module or as they are; raises `InputError` if they have no values.

    >>> named(nn.Linear(1, 1, device="meta"))
    Traceback (most recent call last):
    ...
    equipoise.errors.InputError: expected parameters with values; found weight on the meta device; load the weights ...
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
    owned = dict(parameters.named_parameters())
    if all(parameter.grad is None for parameter in owned.values()):
        raise InputError(expected="gradients", found="none on any parameter", remedy="call loss.backward() first")
    total: dict[str, Tensor] = {}
    for name, parameter in owned.items():
        canonical = aliases.get(name, name)
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        total[canonical] = total[canonical] + gradient if canonical in total else gradient
    return total
