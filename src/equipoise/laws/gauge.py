"""Laws read over and over: planned once, large matrix laws through a small seeded sketch, one reduction for all.

A matrix law has `d²` entries and costs as much as a layer's forward pass. `Sᵀ C S` with `k` fixed Gaussian columns `S`
costs one read of each weight, is linear in `C`, and vanishes for every `S` only if `C` does; so the gradient identity
(T1) and the predicted change of a step (T2.2) hold for it exactly as for `C`. For symmetric `C` its entries off the
diagonal have mean zero and variance `‖C‖_F²`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from equipoise.graph.interface import Interface, Member
from equipoise.laws.commutant import Antisymmetric, Blocks, Full
from equipoise.laws.law import Law
from equipoise.laws.panel import Figures, Layout, Panel, dtype_of
from equipoise.laws.singly import Singly
from equipoise.laws.units import Units, by_unit

Named = Mapping[str, Tensor]
Reduce = Callable[[list[Tensor]], list[Tensor]]  # sums of each tensor over all processes

DIRECTIONS = 8


@dataclass(frozen=True, eq=False)
class Gauge:
    """Laws to be read together.

    Where the weights are in shards, `share` gives one process's part of each as a tensor of the full shape, `reduce`
    sums over the processes, and `together` is entered around what all of them do. The vectors `beside` the laws, by
    name and length, go along for their `Σ w²`.
    """

    laws: tuple[Law, ...]
    reduce: Reduce = list
    share: Callable[[Named], Named] = dict
    together: Callable[[], AbstractContextManager[object]] = nullcontext
    beside: tuple[tuple[str, int], ...] = ()

    @classmethod
    def sketch(cls, laws: Sequence[Law], directions: int = DIRECTIONS, seed: int = 0) -> "Gauge":
        """Laws wider than twice `directions` through that many random directions, the same for equal seeds.

        >>> from torch import nn
        >>> from equipoise.laws import invariances
        >>> from equipoise.laws.panel import sketched
        >>> laws = invariances(nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 1)), torch.ones(2, 3))
        >>> weights = {"0.weight": torch.ones(40, 3), "0.bias": torch.ones(40), "1.weight": torch.ones(1, 40)}
        >>> panel = Gauge.sketch(laws).read(weights)
        >>> [(law.kind, sketched(law)) for law in panel.laws], panel.values.shape
        ([('linear', True)], (64,))
        """
        return cls(tuple(_sketch(law, directions, seed) for law in laws))

    def read(self, weights: Named, gradients: Named | None = None) -> Panel:
        """What the laws say; matrix laws and shifts after the others."""
        return self.at(weights, gradients).panel

    def at(self, weights: Named, gradients: Named | None = None, before: "Taken | None" = None) -> "Dials":
        """What is read at one instant, when it is asked for; and `before` a step that led there."""
        return Dials(self, weights, gradients, before)

    @torch.inference_mode()
    def take(self, weights: Named, gradients: Named | None = None) -> "Taken":
        """All that has to be read of weights and gradients, which may move afterwards."""
        with self.together():
            units, singly = self._kinds
            w, g = self.share(weights), None if gradients is None else self.share(gradients)
            sums = [units.sums(w, g)] if units.laws else []
            summed = self.reduce([*sums, *(singly.parts(w, g) if singly.laws else [])])
            apart = [singly.figures(summed[len(sums) :], gradients is not None)] if singly.laws else []
            return Taken(weights, summed[: len(sums)], apart)

    @np.errstate(invalid="ignore", over="ignore")
    def tell(self, *taken: "Taken") -> "Told":
        """What the laws say at each instant; and `Σ w²` at the first, of the parameters that have been read whole."""
        with self.together():
            units, _ = self._kinds
            own: Sequence[Sequence[Figures]] = [()] * len(taken)
            squares: dict[str, float] = {}
            if units.laws:
                sums = torch.cat([each.sums[0] for each in taken]).double().cpu().numpy()
                own = [(mine,) for mine in units.figures(sums, [len(each.sums[0]) for each in taken])]
                squares = units.squares(sums[0], taken[0].weights)
            dtypes = tuple(dtype_of(law, taken[0].weights) for law in self.layout.laws)
            figures = [[*mine, *each.apart] for each, mine in zip(taken, own, strict=True)]
            return Told([Panel.of(self.layout, dtypes, each) for each in figures], squares)

    @cached_property
    def layout(self) -> Layout:
        """Where the numbers of each law stand in a panel."""
        units, singly = self._kinds
        laws = (*units.laws, *singly.laws)
        return Layout(laws, tuple(_numbers(law) for law in laws))

    @cached_property
    def _kinds(self) -> tuple[Units, Singly]:
        """The laws that are read together, and the others."""
        own, others = (tuple(law for law in self.laws if by_unit(law) is kind) for kind in (True, False))
        vectors = tuple(Member(name, (n,), (0,), torch.arange(n).reshape(n, 1, 1), 1.0) for name, n in self.beside)
        return Units(own, vectors), Singly(others)


class Taken(NamedTuple):
    """What was read of weights and gradients at one instant: the sums of `Units`, figures of `Singly`, if there are."""

    weights: Named
    sums: Sequence[Tensor]
    apart: Sequence[Figures]


class Told(NamedTuple):
    """What the laws say at some instants, and `Σ w²` at the first."""

    panels: Sequence[Panel]
    squares: dict[str, float]


@dataclass(frozen=True, eq=False)
class Dials:
    """The laws at one instant, read once for all observers; and just before the step that led there."""

    gauge: Gauge
    weights: Named
    gradients: Named | None = None
    earlier: Taken | None = None

    @property
    def panel(self) -> Panel:
        """What the laws say."""
        return self._told.panels[0]

    @property
    def before(self) -> Panel | None:
        """What they said before the step, with its gradients; None where that was not seen."""
        return None if self.earlier is None else self._told.panels[1]

    @property
    def squares(self) -> dict[str, float]:
        """`Σ w²` of the parameters of which the reading has seen all."""
        return self._told.squares

    @cached_property
    def taken(self) -> Taken:
        """What is read, before the weights move."""
        return self.gauge.take(self.weights, self.gradients)

    @cached_property
    def _told(self) -> Told:
        return self.gauge.tell(self.taken, *([] if self.earlier is None else [self.earlier]))


def _sketch(law: Law, directions: int, seed: int) -> Law:
    """The law seen through random directions, where that is less than its width."""
    blocks, width = law.interface.blocks, law.interface.width
    kinds = {"linear": Full, "blocks": Blocks, "antisymmetric": Antisymmetric}
    if law.kind not in kinds or width <= 2 * directions:
        return law
    generator = torch.Generator().manual_seed(seed)
    through = torch.randn(width, directions, generator=generator, dtype=torch.float64)
    members = tuple(replace(member, directions=through) for member in law.interface.members)
    commutant = Full(directions) if law.kind == "linear" else kinds[law.kind](blocks, directions)
    return Law(law.name, Interface(members, blocks, directions, breaks=law.interface.breaks), commutant)


def _numbers(law: Law) -> int:
    """How many its value has."""
    if law.kind == "shift":
        return law.count
    blocks, width = law.commutant.shape
    return law.commutant.folded(torch.empty(blocks, width, width, device="meta")).numel()
