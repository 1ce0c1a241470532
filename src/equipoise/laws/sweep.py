"""Every residual in one sweep: a strip of weights and gradients enters the cache once, and each law takes its share.

The residual of a law (T1) needs moments `Σ_p G_p W_pᵀ - Σ_c V_cᵀ G_c` and norms, which are sums over strips of rows.
Law by law, every parameter would come from memory two or three times.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.errors import InputError
from equipoise.graph.interface import Member
from equipoise.laws.commutant import Blocks, Full, Slices
from equipoise.laws.law import Law, fitting
from equipoise.laws.scratch import Scratch

STRIP = 1 << 18  # elements: weights and gradients of a strip then fit into a second-level cache

Slot = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Share:
    """A member of a law on the rows of a strip, and where in the law's moments its own are added.

    Moments with one `slot` add up, block by block; those of a shift are kept apart by member. A `partial` member does
    not take the whole parameter, and has norms of its own. One `by_element` takes nothing but the products of a weight
    and its own gradient.
    """

    law: int
    member: Member
    slot: Slot = ()
    blocks: slice = field(default_factory=lambda: slice(None))
    partial: bool = False
    by_element: bool = False


@dataclass(frozen=True, eq=False)
class Strip:
    """Rows of a parameter and the shares in them; `measured` if they count towards the norms of the parameter."""

    parameter: str
    rows: slice
    shares: tuple[Share, ...]
    measured: bool = True

    @cached_property
    def multiplied(self) -> bool:
        """Whether some share is by element."""
        return any(share.by_element for share in self.shares)

    def of(self, tensor: Tensor) -> Tensor:
        """The rows of a tensor shaped like the parameter, in float32 at least."""
        rows = tensor if self.rows == slice(None) else tensor[self.rows]
        return rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows


# The plan -----------------------------------------------------------------------------------------------------------


def plan(laws: Sequence[Law]) -> tuple[Strip, ...]:
    """The strips of every parameter that takes part in a law, in the order of the laws."""
    shares: dict[str, list[Share]] = defaultdict(list)
    for number, law in enumerate(laws):
        for place, member in enumerate(law.interface.members):
            shift, partial = law.kind == "shift", not member.covers
            share = Share(number, member, slot=(place,) if shift else (), partial=partial)
            by_element = law.interface.width == 1 and not shift and not partial
            shares[member.parameter].append(replace(share, by_element=by_element))
    return tuple(strip for name, mine in shares.items() for strip in _strips(name, laws, mine))


def _strips(name: str, laws: Sequence[Law], shares: Sequence[Share]) -> Iterator[Strip]:
    shape = shares[0].member.view
    alike = len(shape) == 2 and all(share.member.view == shape for share in shares)
    cut = [s for s in shares if alike and math.prod(shape) > STRIP and _cuttable(s, laws[s.law])]
    if len(cut) < len(shares):
        yield Strip(name, slice(None), tuple(share for share in shares if share not in cut), measured=not cut)
    unit = math.lcm(*(_unit(share.member, laws[share.law]) for share in cut))
    height = max(1, STRIP // (unit * shape[-1])) * unit
    for start in range(0, shape[0], height) if cut else ():
        rows = slice(start, min(start + height, shape[0]))
        yield Strip(name, rows, tuple(_on(rows, share, laws[share.law]) for share in cut))


def _cuttable(share: Share, law: Law) -> bool:
    """Whether rows of the parameter are whole blocks of the member, or something that it sums over."""
    member = share.member
    if share.partial or member.axes not in ((0,), (1,)):
        return False
    whole_blocks = member.ordered and law.interface.width * member.view[-1] <= STRIP
    return member.axes == (1,) or whole_blocks or _sums_rows(member, law)


def _unit(member: Member, law: Law) -> int:
    """How many rows have to stay together."""
    return 1 if member.axes == (1,) or _sums_rows(member, law) else law.interface.width


def _sums_rows(member: Member, law: Law) -> bool:
    """Whether all rows go into one sum: a shift, or a rate that they have in common."""
    return member.axes == (0,) and law.interface.blocks == 1 and (law.kind == "shift" or law.interface.width == 1)


def _on(rows: slice, share: Share, law: Law) -> Share:
    """A share restricted to rows of its parameter."""
    count, member, width = rows.stop - rows.start, share.member, law.interface.width
    part = replace(member, view=(count, member.view[1]))
    if member.axes == (1,):
        return replace(share, member=part, slot=(*share.slot, rows.start) if share.slot else ())
    if _sums_rows(member, law):
        shape = (1, 1, count) if law.kind == "shift" else (1, count, 1)
        return replace(share, member=replace(part, index=torch.arange(count).reshape(shape)))
    index = torch.arange(count).reshape(-1, 1, width)
    return replace(share, member=replace(part, index=index), blocks=slice(rows.start // width, rows.stop // width))


# The sweep ----------------------------------------------------------------------------------------------------------


def residuals(
    laws: Sequence[Law],
    strips: Sequence[Strip],
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    defects: Mapping[int, Float[Tensor, " units"]] | None = None,
    *,
    sketch: int | None = None,
    seed: int = 0,
) -> list[Float[Tensor, ""]]:
    """What `Law.residual` gives one by one, for all laws; known `defects`, by the number of a law, are taken off.

    With `sketch=k` the moments `M` of blocks wider than `k` are not formed: `‖M‖²` is estimated, without bias, by
    `‖M X‖² / k` for a Gaussian matrix `X` of `k` columns drawn from `seed`.
    """
    if sketch is not None and sketch < 1:
        raise InputError(expected="sketch=k, k probes, at least one", found=f"sketch={sketch}", remedy="pass sketch=8")
    if not laws:
        return []
    whole = {member.parameter: member for law in laws for member in law.interface.members}
    parameters = {name: fitting(member, parameters) for name, member in whole.items()}
    gradients = {**gradients, **{name: fitting(member, gradients) for name, member in whole.items()}}
    gathered = _Gathered(laws, {} if sketch is None else _probes(laws, sketch, seed))
    for strip in strips:
        gathered.add(strip, strip.of(parameters[strip.parameter]), strip.of(gradients[strip.parameter]))
    for number, known in (defects or {}).items():
        gathered.take_off(number, known)
    return gathered.residuals(gradients)


def _probes(laws: Sequence[Law], count: int, seed: int) -> dict[int, Float[Tensor, "blocks k width"]]:
    generator = torch.Generator().manual_seed(seed)
    wide = [n for n, law in enumerate(laws) if isinstance(law.commutant, Full | Blocks) and law.interface.width > count]
    return {
        n: torch.randn(laws[n].interface.blocks, count, laws[n].interface.width, generator=generator) / count**0.5
        for n in wide
    }


class _Gathered:
    """Moments and norms, summed over the strips so far."""

    def __init__(self, laws: Sequence[Law], probes: Mapping[int, Tensor]):
        self.laws, self.probes = laws, probes
        self.scratch = Scratch()
        self.moments: list[dict[Slot, Tensor]] = [{} for _ in laws]
        self.norms: list[tuple[object, Tensor, Tensor]] = []

    def add(self, strip: Strip, weights: Tensor, gradients: Tensor) -> None:
        """One strip, read for everything that it takes part in."""
        if strip.measured:
            self._measure(strip.parameter, weights, gradients)
        products = self.scratch.product(weights, gradients) if strip.multiplied else weights
        for share in strip.shares:
            if share.by_element:
                self._add(share, share.member.degree * share.member.slices(products).sum((1, 2, 3))[:, None, None])
                continue
            w, g = share.member.slices(weights), share.member.slices(gradients)
            self._add(share, self._moments(share, w, g))
            if share.partial:
                self._measure(share.member, w, g)

    def _measure(self, key: object, weights: Tensor, gradients: Tensor) -> None:
        self.norms.append((key, torch.linalg.vector_norm(weights), torch.linalg.vector_norm(gradients)))

    def _moments(self, share: Share, w: Slices, g: Slices) -> Tensor:
        probe = self.probes.get(share.law)
        if probe is None:
            return self.laws[share.law].commutant.moments([g], [w], [share.member.degree])
        return _sketched(w, g, share.member.degree, probe[share.blocks].to(w))

    def _add(self, share: Share, moments: Tensor) -> None:
        slots = self.moments[share.law]
        if share.slot not in slots:
            blocks = moments.shape[0] if share.slot else self.laws[share.law].interface.blocks
            slots[share.slot] = moments.new_zeros(blocks, *moments.shape[1:])
        slots[share.slot][share.blocks] += moments

    def take_off(self, number: int, defect: Float[Tensor, " units"]) -> None:
        """What the law is known to be broken by; its units are of one component."""
        moments = self.moments[number][()]
        moments -= defect.to(moments)[:, None, None]

    def residuals(self, gradients: Mapping[str, Tensor]) -> list[Float[Tensor, ""]]:
        """`‖P M‖` of each law over its scale, `0/0 = 0`."""
        defects = torch.stack([self._defect(number) for number in range(len(self.laws))])
        scales = torch.tensor(self._scales(gradients), dtype=defects.dtype, device=defects.device)
        return list(torch.where(defects == 0, defects, defects / scales).unbind())

    def _defect(self, number: int) -> Float[Tensor, ""]:
        project = self.laws[number].commutant.project
        parts = self.moments[number].values()
        projected = [moments if number in self.probes else project(moments) for moments in parts]
        return torch.cat([moments.reshape(-1) for moments in projected]).norm()

    def _scales(self, gradients: Mapping[str, Tensor]) -> list[float]:
        """`Σ |degree| ‖W‖ ‖G‖` over the members of a law; for a shift, the norm of all gradients given."""
        pairs = [torch.stack(pair) for _, *pair in self.norms]
        squares: dict[object, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        for (key, *_), (w, g) in zip(self.norms, torch.stack(pairs).double().square().tolist(), strict=True):
            squares[key] = (squares[key][0] + w, squares[key][1] + g)
        size = lambda member: math.prod(squares[member.parameter if member.covers else member]) ** 0.5  # noqa: E731
        known = sum(square for name in gradients if (square := squares.get(name, (0.0, 0.0))[1]))
        rest = [gradient.norm() for name, gradient in gradients.items() if name not in squares]
        everything = math.sqrt(known + sum(float(norm) ** 2 for norm in rest))
        return [
            everything
            if law.kind == "shift"
            else sum(abs(member.degree) * size(member) for member in law.interface.members)
            for law in self.laws
        ]


def _sketched(
    w: Slices, g: Slices, degree: float, probe: Float[Tensor, "blocks k width"]
) -> Float[Tensor, "blocks k width"]:
    """`degree · X B Aᵀ`, transposed moments of a member seen by the probe, without the moments."""
    a, b = ((x[:, 0] if x.shape[1] == 1 else x.transpose(1, 2).flatten(2)) for x in ((g, w) if degree > 0 else (w, g)))
    return degree * ((probe @ b) @ a.mT)
