"""Laws read over and over: planned once, large matrix laws through a small seeded sketch, one reduction for all.

A matrix law has `d²` entries and costs as much as a layer's forward pass. `Sᵀ C S` with `k` fixed Gaussian columns `S`
costs one read of each weight, is linear in `C`, and vanishes for every `S` only if `C` does; so the gradient identity
(T1) and the predicted change of a step (T2.2) hold for it exactly as for `C`. For symmetric `C` its entries off the
diagonal have mean zero and variance `‖C‖_F²`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.graph.interface import Interface
from equipoise.laws.commutant import Antisymmetric, Blocks, Full
from equipoise.laws.law import Law
from equipoise.laws.predict import plain_change
from equipoise.laws.units import Numbers, Units, by_unit

Named = Mapping[str, Tensor]
Reduce = Callable[[list[Tensor]], list[Tensor]]  # sums of each tensor over all processes

DIRECTIONS = 8


@dataclass(frozen=True, eq=False)
class Dial:
    """What one law says at one instant, in the shape of its sketch.

    - `value`: the conserved quantity `C`; `size = Σ |degree| ‖W‖²` over what was seen of it, the scale of its rounding;
    - with gradients also `defect`, the norm of the T1 identity, `scale = Σ |degree| ‖W‖ ‖G‖`, and `of_gradients`, the
      law's value at the gradients.
    """

    law: Law
    value: Tensor
    size: float
    defect: float = 0.0
    scale: float = 0.0
    of_gradients: Tensor | None = None

    @property
    def residual(self) -> float:
        """The relative T1 residual, `0/0 = 0`."""
        return self.defect / self.scale if self.defect else 0.0

    def predicted(self, rate: float, decay: float) -> Tensor:
        """The change under a plain gradient step (T2.2)."""
        assert self.of_gradients is not None
        return plain_change(self.law, self.value, self.of_gradients, rate, decay)

    def norm(self, difference: Tensor) -> float:
        """`‖ΔC‖_F` of a change of the value: exact, or estimated from the sketch's entries off the diagonal."""
        if not sketched(self.law):
            return float(torch.linalg.vector_norm(difference))
        k = difference.shape[-1]
        off = ~torch.eye(k, dtype=torch.bool, device=difference.device)
        return float((difference[..., off].square().sum() / (k * (k - 1))).sqrt())


def sketched(law: Law) -> bool:
    """Whether a law is seen through directions.

    >>> from torch import nn
    >>> from equipoise.laws import invariances
    >>> laws = invariances(nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 1)), torch.ones(2, 3))
    >>> gauge = Gauge.sketch(laws)
    >>> [(law.kind, sketched(law), tuple(dial.value.shape)) for law, dial in
    ...  zip(gauge.laws, gauge.read({"0.weight": torch.ones(40, 3), "0.bias": torch.ones(40),
    ...                              "1.weight": torch.ones(1, 40)}), strict=True)]
    [('linear', True, (8, 8))]
    """
    return law.interface.members[0].directions is not None


@dataclass(frozen=True, eq=False)
class Gauge:
    """Laws to be read together.

    Where the weights are in shards, `share` gives one process's part of each as a tensor of the full shape, and
    `reduce` sums over the processes.
    """

    laws: tuple[Law, ...]
    reduce: Reduce = list
    share: Callable[[Named], Named] = dict

    @classmethod
    def sketch(cls, laws: Sequence[Law], directions: int = DIRECTIONS, seed: int = 0) -> "Gauge":
        """Laws wider than twice `directions` through that many random directions, the same for equal seeds."""
        return cls(tuple(_sketch(law, directions, seed) for law in laws))

    def read(self, weights: Named, gradients: Named | None = None) -> list[Dial]:
        """One dial for each law."""
        return self.readout(weights, gradients).dials

    @torch.inference_mode()
    def readout(self, weights: Named, gradients: Named | None = None) -> "Readout":
        """One dial for each law, and what else the same pass has seen."""
        if not self.laws:
            return Readout([], {})
        weights, gradients = self.share(weights), self.share(gradients) if gradients else None
        units, others = self._kinds
        parts = [_parts(law, weights, gradients) for law in others]
        sums = [units.sums(weights, gradients)] if units.laws else []
        whole = iter(self.reduce([*sums, *(tensor for tensors in parts for tensor in tensors)]))
        found, squares = units.numbers(next(whole), weights) if sums else ([], {})
        numbers = iter(found)
        rest = iter(
            [
                _numbers(law, [next(whole) for _ in mine], bool(gradients))
                for law, mine in zip(others, parts, strict=True)
            ]
        )
        shifts = gradients and any(law.kind == "shift" for law in others)
        norm = _norm(gradients.values(), self.reduce) if gradients and shifts else 0.0
        dials = [_dial(law, next(numbers if by_unit(law) else rest), norm) for law in self.laws]
        return Readout(dials, squares)

    @cached_property
    def _kinds(self) -> tuple[Units, list[Law]]:
        """The laws that are read together, and the others."""
        return Units(tuple(law for law in self.laws if by_unit(law))), [law for law in self.laws if not by_unit(law)]

    def at(self, weights: Named, gradients: Named | None = None) -> "Dials":
        """What is read at one instant, when it is asked for."""
        return Dials(self, weights, gradients)


class Readout(NamedTuple):
    """One dial for each law, and `Σ w²` of the parameters of which the pass has seen all."""

    dials: list[Dial]
    squares: dict[str, float]


@dataclass(frozen=True, eq=False)
class Dials:
    """The laws at one instant, read once for all observers."""

    gauge: Gauge
    weights: Named
    gradients: Named | None = None

    @property
    def read(self) -> list[Dial]:
        """One dial for each law."""
        return self._readout.dials

    @property
    def squares(self) -> dict[str, float]:
        """`Σ w²` of the parameters of which the reading has seen all."""
        return self._readout.squares

    @cached_property
    def _readout(self) -> Readout:
        return self.gauge.readout(self.weights, self.gradients)


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


def _parts(law: Law, weights: Named, gradients: Named | None) -> list[Tensor]:
    """What has to be summed over shards before anything else is done with it."""
    w, g = law.slices(weights), law.slices(gradients) if gradients else None
    if law.kind == "shift":
        return [law.commutant.moments(x, x, law.degrees) for x in (w, g) if x is not None]
    return w if g is None else [*w, *g]


def _numbers(law: Law, whole: list[Tensor], gradients: bool) -> Numbers:
    """From the parts of a matrix law or a shift, summed over shards."""
    if law.kind == "shift":
        sizes = [float(part.square().sum()) for part in whole]
        return Numbers(whole[0], sizes[:1], sizes[1] ** 0.5, whole[1]) if gradients else Numbers(whole[0], sizes)
    moments, count = law.commutant.moments, len(law.interface.members)
    w, g = whole[:count], whole[count:]
    squares = torch.stack([torch.linalg.vector_norm(part) for part in whole]).double().square().tolist()
    own = moments(w, w, law.degrees)
    if not gradients:
        return Numbers(own, squares)
    defect = float(law.commutant.project(moments(g, w, law.degrees)).norm())
    return Numbers(own, squares[:count], defect, moments(g, g, law.degrees), squares[count:])


def _dial(law: Law, found: Numbers, norm: float) -> Dial:
    """`norm` is that of all gradients, the scale of a shift."""
    fold = lambda moments: law.commutant.folded(law.commutant.project(moments))  # noqa: E731
    weighted = [1.0] * len(found.squares) if law.kind == "shift" else [abs(degree) for degree in law.degrees]
    size = sum(degree * square for degree, square in zip(weighted, found.squares, strict=True))
    if found.of_gradients is None:
        return Dial(law, fold(found.own), size)
    sides = zip(weighted, found.squares, found.gradient_squares, strict=True)
    scale = norm if law.kind == "shift" else sum(degree * (w * g) ** 0.5 for degree, w, g in sides)
    return Dial(law, fold(found.own), size, found.defect, scale, fold(found.of_gradients))


def _norm(tensors: Iterable[Tensor], reduce: Reduce) -> float:
    squares = torch.stack([torch.linalg.vector_norm(tensor).square() for tensor in tensors])
    return float(reduce([squares.sum()])[0].sqrt())
