"""Leading singular triplets of many matrices that move a little from one look to the next.

One sweep reads every matrix twice and refines what the last sweep knew. Its directions are the last right vectors `V`,
their residuals `WᵀWV - VΛ` (the next Krylov directions), all but one of the vectors before those, and a random one
through which a lost direction can return: the locally optimal block Krylov iteration (LOBPCG, Knyazev 2001), which
converges like a Krylov method over the looks although each look pays for one product with `WᵀW` only. On flat spectra
that is faster than subspace iteration by orders of magnitude.

`[W b]` goes along with `W`: of the space that it acts on, `W`'s directions and the one of the bias are a part in which
its own top vector is looked for; and among those directions are its last one, its residual, and the one before.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from equipoise.measure.leading import Leading
from equipoise.measure.pieces import Piece
from equipoise.measure.ritz import Frame, Size, Slot, Swept, fresh, leadings, noise, ritz

Reduce = Callable[[list[Tensor]], list[Tensor]]  # sums of each tensor over all processes
Seen = tuple[Leading, Leading | None]  # of `W`, and of `[W b]` where there is a bias

COLD = 8  # sweeps before the first look
_DEFLATE_BELOW = 1e-2  # share of ‖W‖² under which a tail is summed from the deflated matrix: a difference loses digits


@dataclass(frozen=True)
class Group:
    """Matrices of one dtype and device and of like size, by their numbers, and the state of their iteration.

    They share their small decompositions. Those whose directions do not span everything come first.
    """

    members: tuple[int, ...]
    swept: Swept
    noise: Iterator[Tensor]  # random directions, one for each sweep

    @cached_property
    def slots(self) -> list[Slot]:
        """Where the products of each member go, in the memory of the batch."""
        return [self.swept.slot(number) for number in range(len(self.members))]


def directions(r: int) -> int:
    """How many directions serve `r` triplets of `W`, and one of `[W b]`."""
    return 3 * (r + 1)


def cold(pieces: Sequence[Piece], r: int, generator: torch.Generator) -> list[Group]:
    """Random directions for each matrix, as many as serve, or as there can be."""
    groups = []
    pieces = [_oriented(piece, r) for piece in pieces]
    for members in _alike(pieces):
        members.sort(key=lambda number: pieces[number].columns > directions(r), reverse=True)
        mine = [pieces[member] for member in members]
        sizes = [Size(p.length, min(directions(r), p.columns), p.columns, p.bias is not None) for p in mine]
        swept = Swept.empty(Frame(tuple(sizes)), mine[0].weight)
        group = Group(tuple(members), swept, noise(swept, generator))
        for slot, size in zip(group.slots, sizes, strict=True):
            start = torch.randn(size.columns, size.block, generator=generator, dtype=torch.float64)
            slot.directions[1:] = torch.linalg.qr(start).Q.mT
        groups.append(group)
    return groups


def _oriented(piece: Piece, r: int) -> Piece:
    """A matrix of few rows turned, so that its directions span all of its short side and the sweep is exact."""
    turned = piece.bias is None and piece.rows <= directions(r) < piece.columns
    return replace(piece, turned=True) if turned else piece


def _alike(pieces: Sequence[Piece]) -> list[list[int]]:
    """Numbers of the matrices of one dtype and device, of sizes within a factor of four."""
    groups: dict[object, list[int]] = {}
    for number, piece in enumerate(pieces):
        size = max(piece.length, piece.columns, 1)
        key = ((size - 1).bit_length() + 1) // 2, piece.weight.dtype, piece.weight.device
        groups.setdefault(key, []).append(number)
    return list(groups.values())


@np.errstate(invalid="ignore", over="ignore")
def follow(
    pieces: Sequence[Piece],
    squares: Sequence[tuple[float, float]],
    groups: Sequence[Group],
    r: int,
    reduce: Reduce = list,
) -> list[Seen]:
    """One sweep over all matrices: `r` triplets of each, the top one with its bias. The groups are ready for the next.

    `squares` are `‖b‖²` and `‖W‖²` of each matrix. `reduce` is called once, and once more where a matrix is so near
    rank one that its tail has to be summed from the deflated matrix. Figures of a matrix with NaN are NaN.

    >>> W = torch.diag(torch.tensor([9.0, 3.0, 1.0, 0.1, 0.1, 0.0], dtype=torch.float64))
    >>> generator, piece = torch.Generator().manual_seed(0), Piece.whole(W)
    >>> groups = cold([piece], 1, generator)
    >>> for _ in range(COLD):
    ...     ((seen, _),) = follow([piece], [(0.0, 91.02)], groups, 1)
    >>> abs(seen.values[0] - 9) < 1e-12 <= seen.error_bound + 1e-12 < 1e-5
    True
    """
    pieces = [_oriented(piece, r) for piece in pieces]
    for group in groups:
        for member, slot in zip(group.members, group.slots, strict=True):
            _multiply(pieces[member], slot)
    parts = [part for group in groups for part in (group.swept.images, group.swept.pulled)]
    for part, total in zip(parts, reduce(parts), strict=True):
        if total is not part:
            part.copy_(total)
    seen: dict[int, Seen] = {}
    for group in groups:
        known = np.array([squares[member] for member in group.members])
        found = ritz(group.swept, known, r)
        seen.update(zip(group.members, leadings(found, r), strict=True))
        group.swept.turn(fresh(found, r, group.noise))
    return _finished(pieces, [seen[number] for number in range(len(pieces))], reduce)


def _multiply(piece: Piece, slot: Slot) -> None:
    """What this process knows of the products of one matrix."""
    if not piece.complete:
        slot.images.zero_()  # what others added to the last sweep
    piece.push(slot.directions, slot.images)
    if piece.bias is not None:
        slot.images[piece.mine, 0] = piece.bias
    if slot.pulled is not None:
        piece.pull(slot.images, slot.pulled)


def _finished(pieces: Sequence[Piece], seen: Sequence[Seen], reduce: Reduce) -> list[Seen]:
    """Tails and turned matrices put right."""
    own = [_transposed(first) if piece.turned else first for piece, (first, _) in zip(pieces, seen, strict=True)]
    along = [number for number, (_, more) in enumerate(seen) if more is not None]
    extended = [more for _, more in seen if more is not None]
    exact = _with_tails([*pieces, *(pieces[number] for number in along)], [*own, *extended], reduce)
    more = dict(zip(along, exact[len(pieces) :], strict=True))
    return [(exact[number], more.get(number)) for number in range(len(pieces))]


def _transposed(seen: Leading) -> Leading:
    return replace(seen, shape=seen.shape[::-1], left=seen.right, right=seen.left)


def _with_tails(pieces: Sequence[Piece], seen: Sequence[Leading], reduce: Reduce) -> list[Leading]:
    """`‖W - σ̂_1 u_1 v_1ᵀ‖²`: by difference while it loses no more than two digits, else from the deflated matrix."""
    exact = list(seen)
    near = [each.tail < _DEFLATE_BELOW * each.frobenius_norm**2 for each in seen]
    close = [i for i, each in enumerate(seen) if near[i] and 1 not in each.shape]
    if close:
        sums = [pieces[i].deflated(seen[i].left(0), seen[i].values[0], seen[i].right(0)) for i in close]
        for i, total in zip(close, reduce(sums), strict=True):
            exact[i] = replace(seen[i], tail=float(total))
    return exact
