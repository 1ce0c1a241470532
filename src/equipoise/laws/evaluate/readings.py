"""Readings of many laws at one instant, and what they predict of a step (T2.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
from torch import Tensor

from equipoise.errors import InputError
from equipoise.laws.evaluate.moments import Named, Numbers, PerLaw, is_shift, offsets
from equipoise.laws.law import Law

Rates = Sequence[tuple[float, float] | None]  # by law: learning rate and weight decay, where both are known


@dataclass(frozen=True, eq=False)
class LawLayout:
    """Where the numbers of each law are: law by law, each of its shape, flat."""

    laws: tuple[Law, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Numbers of each law."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def places(self) -> list[slice]:
        """The numbers of each law."""
        ends = np.cumsum(self.counts).tolist()
        return [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]

    def tensors(self, numbers: Numbers, like: Named) -> dict[str, Tensor]:
        """Numbers of every law as a tensor of its shape, by its name; dtype and device are those of its weights."""
        known = zip(self.laws, self.places, self.shapes, strict=True)
        return {law.name: _tensor(numbers[place].reshape(shape), law, like) for law, place, shape in known}

    def norms(self, differences: Numbers) -> list[float]:
        """`‖ΔC‖_F` of a change of every value: exact, or estimated from a sketch's entries off the diagonal."""
        return self._lengths(differences**2 * self._shares)

    def lengths(self, differences: Numbers) -> list[float]:
        """The norm of what is seen of each change."""
        return self._lengths(differences**2)

    def _lengths(self, squares: Numbers) -> list[float]:
        return np.sqrt(np.add.reduceat(squares, offsets(self.counts))).tolist() if self.laws else []

    @cached_property
    def _shares(self) -> Numbers:
        each = [_shares(law, count) for law, count in zip(self.laws, self.counts, strict=True)]
        return np.concatenate([np.zeros(0), *each])


@dataclass(frozen=True, eq=False)
class LawReadings:
    """Readings of laws at one instant, in float64 on the host.

    Attributes:
        layout: the laws, and where the numbers of each are in `values`.
        dtypes: by law, the narrowest dtype of its weights.
        values: the conserved quantities `C` (T2), flat, each in the shape of its sketch if it has one.
        sizes: by law, `Σ |degree| ‖W‖²` over what is seen of it, the scale of its rounding; for a shift, a bound on
            the norm of `Σ |w|` over each group.
        identities: with gradients, by law, the norm of the identity of T1.
        scales: with gradients, by law, `Σ |degree| ‖W‖ ‖G‖`; for a shift, the norm of all gradients.
        of_gradients: with gradients, the values at the gradients in place of the weights.
        before: readings just before the step that led here, with gradients; None if not recorded.
    """

    layout: LawLayout
    dtypes: tuple[torch.dtype, ...]
    values: Numbers
    sizes: PerLaw
    identities: PerLaw | None = None
    scales: PerLaw | None = None
    of_gradients: Numbers | None = None
    before: "LawReadings | None" = None

    @property
    def laws(self) -> tuple[Law, ...]:
        """In the order of the figures, as they are seen: a sketched law has its sketch's width."""
        return self.layout.laws

    @property
    def at_gradient(self) -> "LawReadings | None":
        """Readings where weights and gradients belong together: these, or those before the step; None without any."""
        return self.before if self.identities is None else self

    @cached_property
    def residuals(self) -> list[float]:
        """The relative residual of T1 of each law, `0/0 = 0`."""
        return relative(self._identities, self._scales).tolist()

    def predicted(self, rates: Rates) -> Numbers:
        """The change of every value under a plain gradient step (T2.2); NaN for a law without rates."""
        known = zip(self.laws, rates, strict=True)
        each = [(math.nan, math.nan) if rate is None else step_factors(law, *rate) for law, rate in known]
        of_values, of_squares = np.array(each).reshape(-1, 2).repeat(self.layout.counts, axis=0).T
        return of_values * self.values + of_squares * self._of_gradients

    @property
    def _identities(self) -> PerLaw:
        return _with_gradients(self.identities)

    @property
    def _scales(self) -> PerLaw:
        return _with_gradients(self.scales)

    @property
    def _of_gradients(self) -> Numbers:
        return _with_gradients(self.of_gradients)


def step_factors(law: Law, rate: float, decay: float) -> tuple[float, float]:
    """Factors of `C` and of its value at the gradients in the change by a step `w ← (1 - ηλ) w - ηG` (T2.2).

    `((1 - ηλ)² - 1) C + η² (Σ_p G_p G_pᵀ - Σ_c G_cᵀ G_c)`; for a law linear in the weights `-ηλ C`.
    """
    shrunk = -rate * decay
    return (shrunk, 0.0) if is_shift(law) else (shrunk * (2 + shrunk), rate**2)


def sketched(law: Law) -> bool:
    """Whether a law is seen through random directions; those of a shift are the signs of what it adds up."""
    return not is_shift(law) and law.interface.members[0].directions is not None


def _tensor(numbers: np.ndarray, law: Law, like: Named) -> Tensor:
    members = [like[name] for name in law.parameters]
    dtype = reduce(torch.promote_types, (member.dtype for member in members))
    return torch.as_tensor(numbers, dtype=dtype, device=members[0].device)


def _with_gradients(figures: np.ndarray | None) -> np.ndarray:
    if figures is None:
        raise InputError(expected="readings with gradients", found="none", remedy="call plan(weights, gradients)")
    return figures


def relative(identities: PerLaw, scales: PerLaw) -> PerLaw:
    """`identities / scales`, with `0/0 = 0`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(identities == 0, 0.0, identities / scales)


def _shares(law: Law, count: int) -> Numbers:
    """By how much the square of each number counts in an estimate of the squared norm."""
    if not sketched(law):
        return np.ones(count)
    k = law.interface.width
    return np.tile((1 - np.eye(k)).reshape(-1) / (k * (k - 1)), count // k**2)
