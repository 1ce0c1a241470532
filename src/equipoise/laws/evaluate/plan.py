"""Evaluation of many laws at once: planned once, replayed at every instant.

A matrix law has `d²` entries and costs as much as a layer's forward pass. Its sketch `Sᵀ C S` with `k` fixed Gaussian
columns `S` costs one read of each weight, is linear in `C`, and vanishes for every `S` only if `C` does; so the
gradient identity (T1) and the predicted change of a step (T2.2) hold for it exactly as for `C`. For symmetric `C` its
entries off the diagonal have mean zero and variance `‖C‖_F²`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.graph.interface import Interface
from equipoise.graph.precision import narrowest
from equipoise.laws.commutant import Antisymmetric, Blocks, Full, Slices
from equipoise.laws.evaluate.moments import (
    BlockLaws,
    Figures,
    Named,
    PerLaw,
    UnitLaws,
    by_unit,
    is_shift,
    moments_norm,
    on_host,
    square_of_all,
    wide_slices,
)
from equipoise.laws.evaluate.readings import LawLayout, LawReadings, relative
from equipoise.laws.law import Law

Probe = Float[Tensor, "blocks k width"]

DIRECTIONS = 8
"""Columns of the sketch with which a training loop sees large matrix laws."""


@runtime_checkable
class ProcessSums(Protocol):
    """The processes that hold the weights together: a tensor is the sum of what each of them holds."""

    def summands(self, weights: Named) -> Named:
        """This process's part of each weight, as a tensor of the full shape."""
        ...

    def reduce(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sum of each tensor over all processes."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Entered around what all processes do together."""
        ...


class _OneProcess:
    """Weights that one process holds."""

    def summands(self, weights: Named) -> Named:
        """The weights."""
        return weights

    def reduce(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors."""
        return tensors

    def together(self) -> AbstractContextManager[None]:
        """Nothing to agree on."""
        return nullcontext()


# The plan -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LawPlan:
    """Laws to be evaluated together, over and over.

    >>> from torch import nn
    >>> from equipoise.laws import invariances
    >>> model = nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 1))
    >>> weights = {name: weight.detach() for name, weight in model.named_parameters()}
    >>> exact = LawPlan(invariances(model, torch.ones(2, 3)))
    >>> small = LawPlan(exact.laws, sketch=8)
    >>> exact(weights).values.shape, small(weights).values.shape
    ((1600,), (64,))

    Attributes:
        laws: the laws, in the order of the readings.
        sketch: the number of random directions through which matrix laws wider than twice that many are seen.
        seed: of the directions; equal seeds give equal ones.
        processes: where the weights are in shards, the processes that hold them.
    """

    laws: Sequence[Law]
    sketch: int | None = None
    seed: int = 0
    processes: ProcessSums = field(default_factory=_OneProcess)

    @torch.inference_mode()
    @np.errstate(invalid="ignore", over="ignore")
    def __call__(
        self, weights: Named, gradients: Named | None = None, *, before: LawReadings | None = None
    ) -> LawReadings:
        """Read all laws.

        Args:
            weights: the parameters by name.
            gradients: their gradients, for the identity of T1 and for predictions.
            before: readings just before the step that led to these weights.

        Returns:
            The readings, with `before` among them.

        Raises:
            InputError: for parameters that are missing or of another shape.
        """
        with self.processes.together():
            figures = self._figures(weights, gradients)
        dtypes = tuple(_narrowest(law, weights) for law in self.seen)
        values, identities, scales = figures.values, figures.identities, figures.scales
        of_gradients = None if gradients is None else values[1]
        return LawReadings(self.layout, dtypes, values[0], figures.sizes, identities, scales, of_gradients, before)

    @torch.inference_mode()
    def residuals(self, weights: Named, gradients: Named, eps_bias: Named | None = None) -> PerLaw:
        """The residual of T1 of each law, without the values of matrix laws.

        Args:
            weights: the parameters by name.
            gradients: their gradients.
            eps_bias: by the name of a law, what an `eps` is known to add to the identity of each unit; taken off.

        Returns:
            By law `‖P(Σ_p G_p W_pᵀ - Σ_c V_cᵀ G_c)‖ / Σ ‖W‖‖G‖`. With a sketch `‖M‖` of laws wider than that is
            estimated, without bias in the square, by `‖M X‖` for that many Gaussian columns `X`.
        """
        return relative(*self._identities(weights, gradients, eps_bias or {}))

    @cached_property
    def seen(self) -> tuple[Law, ...]:
        """The laws, wide ones through directions."""
        if self.sketch is None:
            return tuple(self.laws)
        return tuple(_seen_through(law, self.sketch, self.seed) for law in self.laws)

    @cached_property
    def layout(self) -> LawLayout:
        """Where the numbers of each law are in the readings."""
        return LawLayout(self.seen, tuple(_shape(law) for law in self.seen))

    @cached_property
    def _probes(self) -> dict[int, Probe]:
        """By the number of each law wider than the sketch, Gaussian columns `X` with `E ‖M X‖² = ‖M‖²`."""
        if self.sketch is None:
            return {}
        generator = torch.Generator().manual_seed(self.seed)
        wide_laws = {n: law for n, law in enumerate(self.laws) if law.kind in ("linear", "blocks")}
        shapes = {n: law.commutant.shape for n, law in wide_laws.items() if law.interface.width > self.sketch}
        return {
            n: torch.randn(blocks, self.sketch, width, generator=generator) / self.sketch**0.5
            for n, (blocks, width) in shapes.items()
        }

    # Evaluation ------------------------------------------------------------------------------------------------------

    def _figures(self, weights: Named, gradients: Named | None) -> "Figures":
        own, share = self.processes.summands(weights), self.processes.summands
        theirs = None if gradients is None else share(gradients)
        sums = [self._units.sums(own, theirs)] if self._units.laws else []
        summed = self.processes.reduce([*sums, *self._blocks.parts(own, theirs)])
        found = [self._blocks.figures(summed[len(sums) :], gradients is not None)] if self._blocks.laws else []
        if sums:
            found = [self._units.figures(summed[0]), *found]
        return self._in_order(found, 1 if gradients is None else 2)

    def _in_order(self, found: "Sequence[Figures]", rows: int) -> "Figures":
        """The figures of unit laws and of the others, in the order of the laws."""
        if len(found) != 2:
            return found[0] if found else Figures(np.zeros((rows, 0)), *[np.zeros(0)] * 3)
        values, sizes, identities, scales = zip(*found, strict=True)
        laws, numbers = self._order
        known = [None if kind[0] is None else np.concatenate(kind)[laws] for kind in (identities, scales)]
        return Figures(np.concatenate(values, axis=1)[:, numbers], np.concatenate(sizes)[laws], *known)

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each law, and each number, is when unit laws come first."""
        first = [number for number, law in enumerate(self.seen) if by_unit(law)]
        rest = [number for number, law in enumerate(self.seen) if not by_unit(law)]
        places = self.layout.places
        numbers = [np.arange(places[number].start, places[number].stop) for number in (*first, *rest)]
        return np.argsort([*first, *rest]), np.argsort(np.concatenate(numbers))

    @cached_property
    def _units(self) -> "UnitLaws":
        return UnitLaws(tuple(law for law in self.seen if by_unit(law)))

    @cached_property
    def _blocks(self) -> "BlockLaws":
        return BlockLaws(tuple(law for law in self.seen if not by_unit(law)))

    def _identities(self, weights: Named, gradients: Named, eps_bias: Named) -> tuple[PerLaw, PerLaw]:
        """Norm of the identity of T1 and its scale, by law."""
        norms, scales = np.zeros(len(self.laws)), np.zeros(len(self.laws))
        own = [number for number, law in enumerate(self.seen) if by_unit(law)]
        if own:
            norms[own], scales[own] = self._units.identities(weights, gradients, eps_bias)
        others = [number for number, law in enumerate(self.seen) if not by_unit(law)]
        found = [_identity(self.laws[number], weights, gradients, self._probes.get(number)) for number in others]
        if found:
            norms[others], scales[others] = on_host([each for pair in found for each in pair]).reshape(-1, 2).T
        shifts = [number for number in others if is_shift(self.seen[number])]
        if shifts:
            scales[shifts] = float(square_of_all(gradients)) ** 0.5
        return norms, scales


def _identity(law: Law, weights: Named, gradients: Named, probe: Tensor | None) -> tuple[Tensor, Tensor]:
    """Norm and scale of one law."""
    g = wide_slices(law, gradients)
    if is_shift(law):
        norm = torch.linalg.vector_norm(law.commutant.moments(g, g, law.degrees))
        return norm, torch.zeros_like(norm)  # of all gradients together
    w = wide_slices(law, weights)
    norms = [torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y) for x, y in zip(w, g, strict=True)]
    scale = torch.stack([abs(degree) * norm for degree, norm in zip(law.degrees, norms, strict=True)]).sum()
    if probe is None:
        return moments_norm(law, w, g), scale
    parts = [_probed(*each, probe.to(each[1])) for each in zip(law.degrees, w, g, strict=True)]
    return torch.linalg.vector_norm(torch.stack(parts).sum(0)), scale


def _probed(degree: float, w: Slices, g: Slices, probe: Probe) -> Probe:
    """`degree · X B Aᵀ`, the transposed moments `degree · A Bᵀ` of a member seen by the probe, without the moments."""
    a, b = ((x[:, 0] if x.shape[1] == 1 else x.transpose(1, 2).flatten(2)) for x in ((g, w) if degree > 0 else (w, g)))
    return degree * ((probe @ b) @ a.mT)


def _seen_through(law: Law, directions: int, seed: int) -> Law:
    """The law seen through random directions, where it is wider than twice as many."""
    blocks, width = law.interface.blocks, law.interface.width
    kinds = {"linear": Full, "blocks": Blocks, "antisymmetric": Antisymmetric}
    if law.kind not in kinds or width <= 2 * directions:
        return law
    generator = torch.Generator().manual_seed(seed)
    through = torch.randn(width, directions, generator=generator, dtype=torch.float64)
    members = tuple(replace(member, directions=through) for member in law.interface.members)
    commutant = Full(directions) if law.kind == "linear" else kinds[law.kind](blocks, directions)
    return Law(law.name, Interface(members, blocks, directions, breaks=law.interface.breaks), commutant)


def _shape(law: Law) -> tuple[int, ...]:
    """The shape of its value."""
    blocks, width = law.commutant.shape
    if is_shift(law):
        return blocks, law.count // blocks
    return tuple(law.commutant.folded(torch.empty(blocks, width, width, device="meta")).shape)


def _narrowest(law: Law, tensors: Named) -> torch.dtype:
    dtype = narrowest(*(tensors[name].dtype for name in law.parameters))
    assert dtype is not None
    return dtype
