"""The leading singular triplets of a matrix, with what is certain about them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise import linalg
from equipoise.measure.spectrum import Spectrum
from equipoise.measure.unfolding import Unfolding

Vectors = Callable[[int | slice], Float[Tensor, "*rows _"]]


@dataclass(frozen=True)
class Leading:
    """The top triplets of `W`, its norm and its distance to rank one; exact or from an iteration, which it says.

    - `values` are `σ̂_1 ≥ σ̂_2 ≥ …`, each at most `σ_i`, but for rounding; *a* singular value of `W` lies within
      `residuals[i]` of it;
    - `upper ≥ σ_1`, rounding included;
    - `tail = ‖W - σ̂_1 u_1 v_1ᵀ‖_F²`, from the deflated matrix wherever a difference would lose digits: at least
      `Σ_{i>1} σ_i²`, with equality at the true triplet (docs/theory.md §6).

    Vectors are formed when they are asked for: `left(rows)` and `right(rows)` are those of some rows, each a row.
    """

    shape: tuple[int, int]
    values: list[float]
    residuals: tuple[float, ...]
    upper: float
    frobenius_norm: float
    tail: float
    left: Vectors = field(repr=False)
    right: Vectors = field(repr=False)

    @cached_property
    def triplets(self) -> linalg.Triplets:
        """As many as there are values."""
        rows = slice(0, len(self.values))
        left, right = self.left(rows), self.right(rows)
        return linalg.Triplets(left.mT, left.new_tensor(self.values), right.mT)

    def top(self, r: int) -> "Leading":
        """The same with fewer triplets."""
        if r >= len(self.values):
            return self
        rest = self.upper, self.frobenius_norm, self.tail, self.left, self.right
        return Leading(self.shape, self.values[:r], self.residuals[:r], *rest)

    @property
    def error_bound(self) -> float:
        """`upper - σ̂_1`, at least the error of `σ̂_1`."""
        return self.upper - self.values[0]

    @property
    def rank_one_residual(self) -> float:
        """`tail / ‖W‖_F²`; 0 for a zero matrix."""
        if self.frobenius_norm == 0:
            return 0.0
        share = self.tail / self.frobenius_norm**2
        return 1.0 if share > 1 else share

    @property
    def stable_rank(self) -> float:
        """`‖W‖_F² / σ̂_1²`; 0 for a zero matrix."""
        first = self.values[0]
        return 0.0 if first == 0 else (self.frobenius_norm / first) ** 2


def leading(matrix: Float[Tensor, "rows columns"], r: int = 1) -> Leading:
    """By one full SVD: every figure right to rounding, the tail from its singular values.

    >>> seen = leading(torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)))
    >>> seen.values, seen.tail, round(seen.stable_rank, 12)
    ([2.0], 2.0, 1.5)
    """
    return of_all(linalg.leading_triplets(matrix), r)


def of_all(triplets: linalg.Triplets, r: int) -> Leading:
    """`leading` from a whole SVD at hand."""
    values, top = triplets.values.double(), triplets.top(r)
    shape = triplets.left.shape[0], triplets.right.shape[0]
    rounding = max(shape) ** 0.5 * torch.finfo(triplets.values.dtype).eps * float(values[0])
    scale = float(values[0]) or 1.0
    squares = (values / scale).square()
    return Leading(
        shape=shape,
        values=top.values.tolist(),
        residuals=(rounding,) * len(top.values),
        upper=float(values[0]) + rounding,
        frobenius_norm=scale * float(squares.sum().sqrt()),
        tail=scale**2 * float(squares[1:].sum()),
        left=top.left.mT.__getitem__,
        right=top.right.mT.__getitem__,
    )


@dataclass(frozen=True)
class ExactSpectra:
    """The spectra of one set of weights, each matrix decomposed once, when it is first asked for.

    >>> spectra = ExactSpectra({"a": torch.eye(2), "b": torch.ones(2, 2)})
    >>> [round(seen.stable_rank, 6) for seen in spectra.leading([Unfolding("a"), Unfolding("b")])]
    [2.0, 1.0]
    """

    parameters: Mapping[str, Tensor]
    _decomposed: dict[Unfolding, linalg.Triplets] = field(default_factory=dict, repr=False)

    def leading(self, unfoldings: Sequence[Unfolding], r: int = 1) -> list[Leading]:
        """The leading triplets of each."""
        return [of_all(self._all(unfolding), r) for unfolding in unfoldings]

    def full(self, unfoldings: Sequence[Unfolding]) -> list[Spectrum]:
        """All singular values of each."""
        found = [self._all(unfolding) for unfolding in unfoldings]
        return [Spectrum(seen.values, len(seen.left), len(seen.right)) for seen in found]

    def _all(self, unfolding: Unfolding) -> linalg.Triplets:
        if self.parameters[unfolding.weight].ndim == 2 and unfolding.bias is None:
            unfolding = Unfolding(unfolding.weight)  # read or written, it is the same matrix
        if unfolding not in self._decomposed:
            self._decomposed[unfolding] = linalg.leading_triplets(unfolding.matrix(self.parameters))
        return self._decomposed[unfolding]
