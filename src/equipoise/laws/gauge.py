"""Laws read over and over: planned once, large matrix laws through a small seeded sketch, one reduction for all.

A matrix law has `d²` entries and costs as much as a layer's forward pass. `Sᵀ C S` with `k` fixed Gaussian columns `S`
costs one read of each weight, is linear in `C`, and vanishes for every `S` only if `C` does; so the gradient identity
(T1) and the predicted change of a step (T2.2) hold for it exactly as for `C`. For symmetric `C` its entries off the
diagonal have mean zero and variance `‖C‖_F²`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from equipoise.graph.interface import Interface, Member
from equipoise.laws.commutant import Antisymmetric, Blocks, Full
from equipoise.laws.law import Law, fitting
from equipoise.laws.predict import plain_change
from equipoise.laws.scratch import Scratch

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
            return float(difference.norm())
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
        if not self.laws:
            return []
        weights, gradients = self.share(weights), self.share(gradients) if gradients else None
        sums = _unit_sums([law for law in self.laws if _by_unit(law)], weights, gradients)
        parts = [next(sums) if _by_unit(law) else _parts(law, weights, gradients) for law in self.laws]
        whole = iter(self.reduce([tensor for tensors in parts for tensor in tensors]))
        shifts = gradients and any(law.kind == "shift" for law in self.laws)
        norm = _norm(gradients.values(), self.reduce) if gradients and shifts else 0.0
        summed = [[next(whole) for _ in tensors] for tensors in parts]
        return [_dial(law, _numbers(law, found), norm) for law, found in zip(self.laws, summed, strict=True)]

    def at(self, weights: Named, gradients: Named | None = None) -> "Dials":
        """What is read at one instant, when it is asked for."""
        return Dials(self, weights, gradients)


@dataclass(frozen=True, eq=False)
class Dials:
    """The laws at one instant, read once for all observers."""

    gauge: Gauge
    weights: Named
    gradients: Named | None = None

    @cached_property
    def read(self) -> list[Dial]:
        """One dial for each law."""
        return self.gauge.read(self.weights, self.gradients)


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


def _by_unit(law: Law) -> bool:
    """Whether each component has a rate of its own, so that products by element are enough."""
    return law.kind != "shift" and law.interface.width == 1


def _unit_sums(laws: Sequence[Law], weights: Named, gradients: Named | None) -> Iterator[list[Tensor]]:
    """For each law `Σ x y` by member and unit: of weights and, if there are any, gradients with weights and gradients.

    A parameter is multiplied once for all of its laws.
    """
    pairs = [(weights, weights)]
    pairs += [(gradients, weights), (gradients, gradients)] if gradients is not None else []
    uses: dict[str, list[tuple[int, int, Member]]] = defaultdict(list)
    for number, law in enumerate(laws):
        for place, member in enumerate(law.interface.members):
            uses[member.parameter].append((number, place, member))
    scratch, sums = Scratch(), {}
    for mine in uses.values():
        for which, (x, y) in enumerate(pairs):
            products = scratch.product(fitting(mine[0][2], x), fitting(mine[0][2], y))
            for number, place, member in mine:
                sums[number, which, place] = member.slices(products).flatten(1).sum(1)
    for number, law in enumerate(laws):
        places = range(len(law.interface.members))
        yield [torch.stack([sums[number, which, place] for place in places]) for which in range(len(pairs))]


@dataclass(frozen=True, eq=False)
class _Numbers:
    """Moments of weights, of gradients with weights, of gradients; squares of each member's weights and gradients."""

    own: Tensor
    squares: Tensor
    mixed: Tensor | None = None
    of_gradients: Tensor | None = None
    gradient_squares: Tensor | None = None


def _numbers(law: Law, whole: list[Tensor]) -> _Numbers:
    """From the parts, summed over shards."""
    if law.kind == "shift":
        sizes = [part.square().sum()[None] for part in whole]
        return _Numbers(whole[0], sizes[0]) if len(whole) == 1 else _Numbers(whole[0], sizes[0], whole[1], whole[1])
    moments = law.commutant.moments
    if law.interface.width > 1:
        count = len(law.interface.members)
        w, g = whole[:count], whole[count:]
        own = moments(w, w, law.degrees)
        if not g:
            return _Numbers(own, _squares(w))
        return _Numbers(own, _squares(w), moments(g, w, law.degrees), moments(g, g, law.degrees), _squares(g))
    degrees = torch.tensor(law.degrees).to(whole[0])
    sums = [(degrees @ part)[:, None, None] for part in whole]
    if len(sums) == 1:
        return _Numbers(sums[0], whole[0].sum(1))
    return _Numbers(sums[0], whole[0].sum(1), sums[1], sums[2], whole[2].sum(1))


def _squares(slices: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(part) for part in slices]).square()


def _dial(law: Law, found: _Numbers, norm: float) -> Dial:
    fold = lambda moments: law.commutant.folded(law.commutant.project(moments))  # noqa: E731
    degrees = torch.tensor(law.degrees).abs().to(found.squares)
    shift = law.kind == "shift"
    size = float(found.squares.sum()) if shift else float(degrees @ found.squares)
    if found.mixed is None or found.of_gradients is None:
        return Dial(law, fold(found.own), size)
    squares = found.gradient_squares
    scale = norm if squares is None else float(degrees @ (found.squares * squares).sqrt())
    return Dial(
        law, fold(found.own), size, float(law.commutant.project(found.mixed).norm()), scale, fold(found.of_gradients)
    )


def _norm(tensors: Iterable[Tensor], reduce: Reduce) -> float:
    squares = torch.stack([torch.linalg.vector_norm(tensor).square() for tensor in tensors])
    return float(reduce([squares.sum()])[0].sqrt())
