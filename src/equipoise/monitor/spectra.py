"""The spectra of a training loop: followed from look to look, exact where a look is thorough."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from equipoise.linalg import LeadingTriplets, wide
from equipoise.linalg.krylov import COLD_SWEEPS, Found, TripletGroup, directions, start, sweep
from equipoise.measure.spectrum import SingularSpectrum, spectra
from equipoise.measure.unfolding import Unfolding
from equipoise.monitor.crew import Crew, whole


@dataclass
class Follower:
    """All matrices that the observers ask for, planned once; `look` is one sweep over all of them.

    Of a matrix `[W b]` beside `W` the top triplet is followed.
    """

    unfoldings: tuple[Unfolding, ...]
    r: int
    crew: Crew
    groups: list[TripletGroup] = field(default_factory=list)
    _plan: list[tuple[Unfolding, str | None]] = field(default_factory=list)

    def look(self, weights: Mapping[str, Tensor], squares: Mapping[str, float]) -> "Followed":
        """The leading triplets at these weights, whose `Σ w²` are known, when they are asked for."""
        return Followed(self, weights, squares)

    @torch.inference_mode()
    def sweep(self, weights: Mapping[str, Tensor], squares: Mapping[str, float]) -> dict[Unfolding, LeadingTriplets]:
        """One sweep; several before the first look."""
        with self.crew.together():
            return self._sweep(weights, squares)

    def _sweep(self, weights: Mapping[str, Tensor], squares: Mapping[str, float]) -> dict[Unfolding, LeadingTriplets]:
        plan = self._plan = self._plan or list(self._together(weights))
        pieces = [self.crew.piece(unfolding, along, weights) for unfolding, along in plan]
        known = [_squares(unfolding, along, squares) for unfolding, along in plan]
        count = 1 if self.groups else COLD_SWEEPS
        if not self.groups:
            self.groups = start(pieces, self.r, torch.Generator().manual_seed(0))
        seen: list[Found] = []
        for _ in range(count):
            seen = sweep(pieces, known, self.groups, self.r, self.crew.reduce)
        found = {unfolding: own for (unfolding, _), (own, _) in zip(plan, seen, strict=True)}
        for (unfolding, along), (_, more) in zip(plan, seen, strict=True):
            if more is not None:
                found[replace(unfolding, bias=along)] = more
        return found

    def _together(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[Unfolding, str | None]]:
        """Each matrix once, and the bias that goes along with it; where there are few rows, `[W b]` is by itself."""
        tall = [each for each in self.unfoldings if each.bias and weights[each.weight].shape[0] > directions(self.r)]
        along = {replace(each, bias=None): each.bias for each in tall}
        apart = [each for each in self.unfoldings if along.get(replace(each, bias=None)) != each.bias or not each.bias]
        for unfolding in dict.fromkeys([*apart, *along]):
            yield unfolding, along.get(unfolding)


def _squares(unfolding: Unfolding, along: str | None, squares: Mapping[str, float]) -> tuple[float, float]:
    inside = squares[unfolding.bias] if unfolding.bias else 0.0
    return squares[along] if along else 0.0, squares[unfolding.weight] + inside


@dataclass
class Followed:
    """The spectra at one look."""

    follower: Follower
    weights: Mapping[str, Tensor]
    squares: Mapping[str, float]
    _seen: dict[Unfolding, LeadingTriplets] = field(default_factory=dict)

    def leading(self, unfoldings: Sequence[Unfolding], r: int = 1) -> list[LeadingTriplets]:
        """From the sweep of this look, taken at the first call."""
        if not self._seen:
            self._seen = self.follower.sweep(self.weights, self.squares)
        return [self._seen[unfolding.canonical(self.weights)].top(r) for unfolding in unfoldings]

    def full(self, unfoldings: Sequence[Unfolding]) -> list[SingularSpectrum]:
        """All singular values, by one decomposition for each shape."""
        gathered = whole(self.weights)
        matrices = {str(i): wide(unfolding.matrix(gathered)) for i, unfolding in enumerate(unfoldings)}
        return list(spectra(matrices).values())
