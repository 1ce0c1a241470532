"""The spectra of a training loop: tracked from snapshot to snapshot, exact where a snapshot is a full one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from equipoise.linalg import LeadingTriplets, wide
from equipoise.linalg.krylov import COLD_SWEEPS, Found, TripletGroup, directions, start, sweep
from equipoise.measure.spectrum import SingularSpectrum, spectra
from equipoise.measure.unfolding import Unfolding
from equipoise.monitor.distributed import ProcessGroup

Weights = Mapping[str, Tensor]
Squares = Mapping[str, float]  # `Σ w²` of each weight


@dataclass
class SpectrumTracker:
    """The leading triplets of all matrices that observers ask for, planned once and iterated together.

    Of a matrix `[W b]` beside `W` the top triplet is iterated.
    """

    unfoldings: tuple[Unfolding, ...]
    r: int
    group: ProcessGroup
    _groups: list[TripletGroup] = field(default_factory=list)
    _plan: list[tuple[Unfolding, str | None]] = field(default_factory=list)

    def at(self, weights: Weights, squares: Squares) -> "TrackedSpectra":
        """The spectra at these weights, whose `Σ w²` are known, computed when they are asked for."""
        return TrackedSpectra(self, weights, squares)

    @torch.inference_mode()
    def sweep(self, weights: Weights, squares: Squares) -> dict[Unfolding, LeadingTriplets]:
        """Leading triplets by one sweep over all matrices; by several the first time."""
        with self.group.together():
            return self._sweep(weights, squares)

    def _sweep(self, weights: Weights, squares: Squares) -> dict[Unfolding, LeadingTriplets]:
        plan = self._plan = self._plan or list(self._together(weights))
        blocks = [self.group.block(unfolding, along, weights) for unfolding, along in plan]
        known = [_squares(unfolding, along, squares) for unfolding, along in plan]
        count = 1 if self._groups else COLD_SWEEPS
        if not self._groups:
            self._groups = start(blocks, self.r, torch.Generator().manual_seed(0))
        found: list[Found] = []
        for _ in range(count):
            found = sweep(blocks, known, self._groups, self.r, self.group.reduce)
        triplets = {unfolding: own for (unfolding, _), (own, _) in zip(plan, found, strict=True)}
        for (unfolding, along), (_, more) in zip(plan, found, strict=True):
            if more is not None:
                triplets[replace(unfolding, bias=along)] = more
        return triplets

    def _together(self, weights: Weights) -> Iterator[tuple[Unfolding, str | None]]:
        """Each matrix once, and the bias that goes along with it; where there are few rows, `[W b]` is by itself."""
        tall = [each for each in self.unfoldings if each.bias and weights[each.weight].shape[0] > directions(self.r)]
        along = {replace(each, bias=None): each.bias for each in tall}
        apart = [each for each in self.unfoldings if along.get(replace(each, bias=None)) != each.bias or not each.bias]
        for unfolding in dict.fromkeys([*apart, *along]):
            yield unfolding, along.get(unfolding)


def _squares(unfolding: Unfolding, along: str | None, squares: Squares) -> tuple[float, float]:
    inside = squares[unfolding.bias] if unfolding.bias else 0.0
    return squares[along] if along else 0.0, squares[unfolding.weight] + inside


@dataclass
class TrackedSpectra:
    """The spectra at one snapshot."""

    tracker: SpectrumTracker
    weights: Weights
    squares: Squares

    def leading(self, unfoldings: Sequence[Unfolding], r: int = 1) -> list[LeadingTriplets]:
        """The `r` leading triplets of each, from the sweep of this snapshot, taken at the first call."""
        return [self._swept[unfolding.canonical(self.weights)].top(r) for unfolding in unfoldings]

    def full(self, unfoldings: Sequence[Unfolding]) -> list[SingularSpectrum]:
        """All singular values of each, by one decomposition for each shape."""
        weights = self.tracker.group.gathered(self.weights)
        matrices = {str(i): wide(unfolding.matrix(weights)) for i, unfolding in enumerate(unfoldings)}
        return list(spectra(matrices).values())

    @cached_property
    def _swept(self) -> dict[Unfolding, LeadingTriplets]:
        return self.tracker.sweep(self.weights, self.squares)
