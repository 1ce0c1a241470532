"""What many laws say at one instant: all their numbers in a row, on the host, in float64."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from equipoise.graph.precision import narrowest
from equipoise.laws.law import Law
from equipoise.laws.predict import plain_factors

_UNKNOWN = (math.nan, math.nan)
Rates = Sequence[tuple[float, float] | None]  # by law: learning rate and decay, where both are known


def starts(counts: Sequence[int]) -> Int64[np.ndarray, " _"]:
    """Where each begins, of so many numbers each, one after another."""
    return np.cumsum([0, *counts])[:-1]


def on_host(parts: Sequence[Tensor]) -> Float[np.ndarray, " numbers"]:
    """All in a row."""
    return in_a_row([part.reshape(-1) for part in parts]).double().cpu().numpy()


def in_a_row(parts: Sequence[Float[Tensor, " _"]]) -> Float[Tensor, " numbers"]:
    """On the device of the first."""
    device = parts[0].device
    return torch.cat([part if part.device == device else part.to(device) for part in parts])


def sketched(law: Law) -> bool:
    """Whether a law is seen through directions."""
    return law.interface.members[0].directions is not None


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the numbers of each law stand: law by law, `counts` of each."""

    laws: tuple[Law, ...]
    counts: tuple[int, ...]

    @cached_property
    def starts(self) -> Int64[np.ndarray, " laws"]:
        """The first number of each law."""
        return starts(self.counts)

    @cached_property
    def places(self) -> list[slice]:
        """All numbers of each law."""
        return [slice(start, start + count) for start, count in zip(self.starts.tolist(), self.counts, strict=True)]

    def norms(self, differences: Float[np.ndarray, " numbers"]) -> list[float]:
        """`‖ΔC‖_F` of a change of each value: exact, or estimated from a sketch's entries off the diagonal."""
        return self._lengths(differences**2 * self._shares)

    def lengths(self, differences: Float[np.ndarray, " numbers"]) -> list[float]:
        """`‖ΔC‖_F` of what is seen of it."""
        return self._lengths(differences**2)

    def _lengths(self, squares: Float[np.ndarray, " numbers"]) -> list[float]:
        return np.sqrt(np.add.reduceat(squares, self.starts)).tolist() if self.laws else []

    @cached_property
    def _shares(self) -> Float[np.ndarray, " numbers"]:
        each = [_shares(law, count) for law, count in zip(self.laws, self.counts, strict=True)]
        return np.concatenate([np.zeros(0), *each])


def _shares(law: Law, count: int) -> Float[np.ndarray, " count"]:
    if not sketched(law):
        return np.ones(count)
    k = law.interface.width
    return np.tile((1 - np.eye(k)).reshape(-1) / (k * (k - 1)), count // k**2)


class Figures(NamedTuple):
    """Of some laws: their values (a row at the weights, with gradients one at those), and three figures of each."""

    values: Float[np.ndarray, "rows numbers"]
    sizes: Float[np.ndarray, " laws"]
    defects: Float[np.ndarray, " laws"] | None
    scales: Float[np.ndarray, " laws"] | None


@dataclass(frozen=True)
class Sides:
    """The members of several laws, one after another: how much each counts, and where those of each law begin."""

    counts: Float[np.ndarray, " members"]
    starts: Int64[np.ndarray, " laws"]

    @classmethod
    def of(cls, degrees: Sequence[Sequence[float]]) -> "Sides":
        """Of the degrees of each law's members."""
        return cls(np.abs(np.concatenate(degrees)), starts([len(mine) for mine in degrees]))

    def totals(self, figures: Float[np.ndarray, " members"]) -> Float[np.ndarray, " laws"]:
        """`Σ |degree|` times a figure of each member.

        >>> Sides.of([(1.0, -2.0), (1.0,)]).totals(np.array([1.0, 10.0, 100.0]))
        array([ 21., 100.])
        """
        return np.add.reduceat(self.counts * figures, self.starts)


@dataclass(frozen=True, eq=False)
class Panel:
    """What laws say at one instant, each in the shape of its sketch, flat; `dtypes` are those of their weights.

    - `values`: the conserved quantities `C`; `sizes`, by law, `Σ |degree| ‖W‖²` over what was seen of it, the scale of
      its rounding;
    - with gradients also `defects`, the norm of the T1 identity, and `scales = Σ |degree| ‖W‖ ‖G‖`, by law;
      `of_gradients`, the values at the gradients in place of the weights.
    """

    layout: Layout
    dtypes: tuple[torch.dtype, ...]
    values: Float[np.ndarray, " numbers"]
    sizes: Float[np.ndarray, " laws"]
    defects: Float[np.ndarray, " laws"] | None = None
    scales: Float[np.ndarray, " laws"] | None = None
    of_gradients: Float[np.ndarray, " numbers"] | None = None

    @property
    def laws(self) -> tuple[Law, ...]:
        """In the order of the figures."""
        return self.layout.laws

    @classmethod
    def of(cls, layout: Layout, dtypes: tuple[torch.dtype, ...], figures: Sequence[Figures]) -> "Panel":
        """From the figures of one law after another."""
        if not figures:
            return cls(layout, dtypes, *[np.zeros(0)] * 5)
        values, sizes, defects, scales = figures[0] if len(figures) == 1 else _joined(figures)
        of_gradients = None if defects is None else values[1]
        return cls(layout, dtypes, values[0], sizes, defects, scales, of_gradients)

    @cached_property
    def residuals(self) -> list[float]:
        """The relative T1 residual of each law, `0/0 = 0`."""
        assert self.defects is not None
        assert self.scales is not None
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.defects == 0, 0.0, self.defects / self.scales).tolist()

    def predicted(self, rates: Rates) -> Float[np.ndarray, " numbers"]:
        """The change under a plain gradient step (T2.2); NaN for a law without rates."""
        assert self.of_gradients is not None
        known = zip(self.laws, rates, strict=True)
        each = [_UNKNOWN if rate is None else plain_factors(law, *rate) for law, rate in known]
        of_values, of_squares = np.array(each).reshape(-1, 2).repeat(self.layout.counts, axis=0).T
        return of_values * self.values + of_squares * self.of_gradients


def _joined(figures: Sequence[Figures]) -> Figures:
    values, sizes, defects, scales = zip(*figures, strict=True)
    along = [None if kind[0] is None else np.concatenate(kind) for kind in (defects, scales)]
    return Figures(np.concatenate(values, axis=1), np.concatenate(sizes), *along)


def dtype_of(law: Law, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The narrowest of its weights."""
    dtype = narrowest(*(tensors[name].dtype for name in law.parameters))
    assert dtype is not None
    return dtype
