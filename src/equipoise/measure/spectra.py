"""The exact spectra of a set of weights, each matrix decomposed once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from equipoise import linalg
from equipoise.measure.spectrum import SingularSpectrum
from equipoise.measure.unfolding import Unfolding


@dataclass(frozen=True)
class ExactSpectra:
    """The spectra of one set of weights, each matrix decomposed once, when it is first asked for.

    >>> import torch
    >>> spectra = ExactSpectra({"a": torch.eye(2), "b": torch.ones(2, 2)})
    >>> [round(seen.stable_rank, 6) for seen in spectra.leading([Unfolding("a"), Unfolding("b")])]
    [2.0, 1.0]
    """

    parameters: Mapping[str, Tensor]
    _decomposed: dict[Unfolding, linalg.Triplets] = field(default_factory=dict, repr=False)

    def leading(self, unfoldings: Sequence[Unfolding], r: int = 1) -> list[linalg.LeadingTriplets]:
        """The leading triplets of each."""
        return [linalg.exact_leading(self._all(unfolding), r) for unfolding in unfoldings]

    def full(self, unfoldings: Sequence[Unfolding]) -> list[SingularSpectrum]:
        """All singular values of each."""
        found = [self._all(unfolding) for unfolding in unfoldings]
        return [SingularSpectrum(seen.values, len(seen.left), len(seen.right)) for seen in found]

    def _all(self, unfolding: Unfolding) -> linalg.Triplets:
        unfolding = unfolding.canonical(self.parameters)
        if unfolding not in self._decomposed:
            self._decomposed[unfolding] = linalg.leading_triplets(unfolding.matrix(self.parameters))
        return self._decomposed[unfolding]
