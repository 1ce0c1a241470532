"""Laws as values: what is conserved, by which weights, and how far a point is from satisfying it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.laws.commutant import Commutant

Parameters = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True)
class Law:
    """`Σ_p W_p W_pᵀ - Σ_c V_cᵀ V_c`, seen through a commutant, is constant along gradient flow (THEORY T2).

    A bias is a column of its producer; a consumer's own bias takes no part.
    """

    name: str
    commutant: Commutant
    producers: tuple[str, ...]
    consumers: tuple[str, ...]

    @property
    def kind(self) -> str:
        """`linear` for a matrix-wise law, `vertex` for a vertex-wise one."""
        return self.commutant.kind

    @property
    def count(self) -> int:
        """Linearly independent conserved quadratics it stands for."""
        return self.commutant.count

    def value(self, parameters: Parameters) -> Tensor:
        """The conserved quantity at these weights: `(d, d)` for a matrix-wise law, `(d,)` for a vertex-wise one."""
        tensors = named(parameters)
        gained = sum(self.commutant.second_moment(_rows(tensors[name])) for name in self.producers)
        lost = sum(self.commutant.second_moment(_rows(tensors[name]).T) for name in self.consumers)
        return torch.as_tensor(gained - lost)

    def residual(self, parameters: Parameters, gradients: Mapping[str, Tensor]) -> Tensor:
        """The relative residual of the gradient identity T1 at one point: rounding for a right gradient."""
        tensors = named(parameters)
        pairs = [(_rows(gradients[name]), _rows(tensors[name])) for name in self.producers]
        reads = [(_rows(tensors[name]), _rows(gradients[name])) for name in self.consumers]
        defect = sum(g @ w.T for g, w in pairs) - sum(v.T @ g for v, g in reads)
        scale = sum(a.norm() * b.norm() for a, b in pairs + reads)
        norm = torch.as_tensor(self.commutant.project(torch.as_tensor(defect)).norm())
        return torch.where(norm == 0, norm, norm / scale)


@dataclass(frozen=True)
class Laws(Sequence[Law]):
    """The laws of one network."""

    laws: tuple[Law, ...]

    def __getitem__(self, index):
        return Laws(self.laws[index]) if isinstance(index, slice) else self.laws[index]

    def __len__(self) -> int:
        return len(self.laws)

    def __iter__(self) -> Iterator[Law]:
        return iter(self.laws)

    def __str__(self) -> str:
        return "\n".join(f"{law.name}: {law.kind}, {law.count} conserved" for law in self.laws)

    def value(self, parameters: Parameters) -> dict[str, Tensor]:
        """Every conserved quantity, by the name of its law.

        >>> from equipoise.laws import invariances
        >>> model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> {name: value.shape for name, value in invariances(model, torch.ones(4, 3)).value(model).items()}
        {'0.weight → 2.weight': torch.Size([2])}
        """
        return {law.name: law.value(parameters) for law in self.laws}

    def residual(self, model: nn.Module) -> dict[str, Tensor]:
        """After `backward()`, the relative residual of T1 of every law: an exact check of the gradient.

        Raises `InputError` when a parameter that a law needs has no gradient.
        """
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        needed = {name for law in self.laws for name in (*law.producers, *law.consumers)}
        missing = sorted(name for name in needed if gradients.get(name) is None)
        if missing:
            raise InputError(
                expected="a gradient for every parameter of the laws",
                found=f"none for {', '.join(missing)}",
                remedy="call loss.backward() first",
            )
        known = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        return {law.name: law.residual(model, known) for law in self.laws}


def named(parameters: Parameters) -> Mapping[str, Tensor]:
    """Parameters by name, of a module or as they are."""
    if isinstance(parameters, nn.Module):
        return {name: parameter.detach() for name, parameter in parameters.named_parameters()}
    return parameters


def _rows(tensor: Tensor) -> Tensor:
    """A weight as `(out, in)`; a bias as a column."""
    return tensor.reshape(tensor.shape[0], -1)
