"""Measures of singular values: ranks, hard and soft, and the distance to low rank; of one matrix or of all weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise import linalg
from equipoise.errors import InputError
from equipoise.measure.unfolding import Unfolding


@dataclass(frozen=True)
class SingularSpectrum:
    """The measures of docs/theory.md §6 on all singular values `σ_1 ≥ σ_2 ≥ …` of one matrix.

    Every ratio is scale-free and computed in float64 from `σ_i / σ_1`; residuals are sums over the tail, never
    differences. A zero matrix has every rank 0 and every residual 0, by convention: it is its own best approximation.
    """

    values: Float[Tensor, " k"]
    rows: int
    columns: int
    r: int = 1

    @property
    def singular_values(self) -> Float[Tensor, " top"]:
        """The top `r` singular values, descending, in the units of the weights."""
        return self.values[: self.r]

    @cached_property
    def _relative(self) -> Float[Tensor, " k"]:
        """`σ_i / σ_1` in float64; zeros for a zero matrix."""
        values = self.values.double()
        return values / values[0] if values[0] > 0 else values

    @property
    def frobenius_norm(self) -> float:
        """`‖W‖_F = √Σσ_i²`."""
        return float(self.values[0]) * float(torch.linalg.vector_norm(self._relative))

    def rank_residual(self, r: int) -> float:
        """`Σ_{i>r} σ_i² / Σ σ_i²`, the energy beyond `r`: the squared relative distance to rank `r`, in [0, 1]."""
        squares = self._relative.square()
        return _ratio(squares[r:].sum(), squares.sum())

    def beyond(self, r: int) -> float:
        """`Σ_{i>r} σ_i²`: the squared distance to the nearest matrix of rank `r`, in the units of `‖W‖²`."""
        return float(self._relative[r:].square().sum()) * float(self.values[0]) ** 2

    @property
    def rank_one_residual(self) -> float:
        """`rank_residual(1)`, which is `1 - σ_1²/‖W‖_F²` without the subtraction."""
        return self.rank_residual(1)

    @property
    def stable_rank(self) -> float:
        """`‖W‖_F² / σ_1²`, between 1 and the rank."""
        return float(self._relative.square().sum())

    @property
    def effective_rank(self) -> float:
        """`exp(H(σ/Σσ))` with `H` the Shannon entropy in nats (Roy & Vetterli 2007), between 1 and the rank."""
        if self.stable_rank == 0:
            return 0.0
        return float(torch.special.entr(self._relative / self._relative.sum()).sum().exp())

    @property
    def normalised_effective_rank(self) -> float:
        """`exp(H(σ/Σσ)) / min(rows, columns)`, in [0, 1] for any shape (Yunis et al. 2024): of `σ`, not of `σ²`."""
        return self.effective_rank / min(self.rows, self.columns)

    @property
    def nuclear_ratio(self) -> float:
        """`(Σσ_i)² / Σσ_i²`, the squared ratio of nuclear to Frobenius norm, between 1 and the rank."""
        return _ratio(self._relative.sum().square(), self._relative.square().sum())

    @property
    def participation_ratio(self) -> float:
        """`(Σσ_i²)² / Σσ_i⁴`, between 1 and the rank."""
        squares = self._relative.square()
        return _ratio(squares.sum().square(), squares.square().sum())

    def numerical_rank(self, tolerance: float | None = None) -> int:
        """How many `σ_i > tolerance · σ_1`; the tolerance is by default `max(rows, columns) · eps` of the dtype."""
        if tolerance is None:
            tolerance = max(self.rows, self.columns) * torch.finfo(self.values.dtype).eps
        return int((self._relative > tolerance).sum())


def spectrum(matrix: Float[Tensor, "out in *taps"], r: int = 1) -> SingularSpectrum:
    """The exact spectrum of a weight matrix, or of a convolution kernel as its `out × (in·taps)` matrix.

    All singular values come from one full SVD, each right to a few `eps · σ_1` of its dtype (float32 or float64), so
    residuals are right to about `eps² · min(rows, columns)`. `r` says how many `singular_values` shows. Raises
    `InputError` for other dtypes, empty tensors, NaN or infinite entries, and `r < 1`.

    >>> s = spectrum(torch.diag(torch.tensor([4.0, 2.0, 2.0], dtype=torch.float64)), r=2)
    >>> s.singular_values
    tensor([4., 2.], dtype=torch.float64)
    >>> s.rank_one_residual, s.stable_rank, s.participation_ratio, s.numerical_rank()
    (0.3333333333333333, 1.5, 2.0, 3)
    >>> round(s.effective_rank, 6)
    2.828427
    """
    return spectra({"matrix": matrix}, r)["matrix"]


def spectra(matrices: Mapping[str, Float[Tensor, "_ _ *_"]], r: int = 1) -> dict[str, SingularSpectrum]:
    """`spectrum` of every named matrix; matrices of one shape are decomposed as one batch.

    >>> {name: s.stable_rank for name, s in spectra({"a": torch.eye(2), "b": torch.eye(3)}).items()}
    {'a': 2.0, 'b': 3.0}

    Raises:
        InputError: for `r` below 1, and for what is no matrix.
    """
    if r < 1:
        raise InputError(expected="at least one singular value", found=f"r={r}", remedy="pass r=1 or more")
    unfolded = {name: linalg.require_matrix(matrix, name).flatten(1) for name, matrix in matrices.items()}
    values = linalg.singular_values(unfolded.values())
    return {name: SingularSpectrum(v, *unfolded[name].shape, r=r) for name, v in zip(unfolded, values, strict=True)}


def circular_spectrum(
    kernel: Float[Tensor, "out in height width"], size: tuple[int, int], r: int = 1
) -> SingularSpectrum:
    """The exact spectrum of the *operator* of a convolution: stride 1, circular padding, images of `size`.

    In the Fourier basis the operator is one `out × in` complex matrix a frequency (Sedghi, Gupta & Long 2019); these
    are its `height · width` blocks' singular values together. With zero padding it is only an approximation.

    Raises:
        InputError: when the image is smaller than the kernel.

    >>> average = torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)
    >>> circular_spectrum(average, size=(4, 4)).singular_values
    tensor([1.], dtype=torch.float64)
    """
    out_channels, in_channels, *taps = linalg.require_matrix(kernel, "kernel").shape
    if size[0] < taps[0] or size[1] < taps[1]:
        raise InputError(
            expected=f"images of at least {taps[0]} × {taps[1]}, the kernel's size",
            found=f"size={size}",
            remedy="pass the height and width of the images that the layer sees",
        )
    transfer = torch.fft.fft2(kernel, s=list(size)).permute(2, 3, 0, 1)
    values = torch.linalg.svdvals(transfer).flatten().sort(descending=True).values
    positions = size[0] * size[1]
    return SingularSpectrum(values, out_channels * positions, in_channels * positions, r=r)


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


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0
