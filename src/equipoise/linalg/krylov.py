"""The engine for leading singular triplets: block Krylov sweeps over many matrices, cold, warm and in shards.

One sweep reads every matrix twice and refines the triplets of the last sweep. Its directions are the last right vectors
`V`, their residuals `WᵀWV - VΛ` (the next Krylov directions), all but one of the vectors before those, and a random one
through which a lost direction can return: the locally optimal block Krylov iteration (LOBPCG, Knyazev 2001). It
converges like a Krylov method over the sweeps, although each pays for one product with `WᵀW` only; on flat spectra that
is faster than subspace iteration by orders of magnitude.

- Cold: `krylov_triplets(matrix, r)` takes some sweeps from random directions.
- Warm: `start(...)` once, then `sweep(...)` each time the matrices have moved a little.
- In shards: each process has a block of every matrix, and `reduce` sums the products over all of them.

`[W b]` goes along with `W`: of the space that it acts on, `W`'s directions and the one of the bias are a part in which
its own top vector is sought; and among those directions are its last one, its residual, and the one before.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.linalg.blocks import MatrixBlock
from equipoise.linalg.bounds import own_generator, scaled
from equipoise.linalg.norms import sum_of_squares
from equipoise.linalg.ritz import (
    BatchShape,
    BatchSlot,
    MatrixSize,
    SweptBatch,
    leading_of,
    next_directions,
    noise,
    rayleigh_ritz,
)
from equipoise.linalg.svd import LeadingTriplets, require_rank

Reduce: TypeAlias = Callable[[list[Tensor]], list[Tensor]]  # sums of each tensor over all processes
Found: TypeAlias = tuple[LeadingTriplets, LeadingTriplets | None]  # of `W`, and of `[W b]` where there is a bias

COLD_SWEEPS = 8  # from random directions
_DEFLATE_BELOW = 1e-2  # share of ‖W‖² under which a tail is summed from the deflated matrix: a difference loses digits


def krylov_triplets(
    matrix: Float[Tensor, "rows columns"],
    r: int = 1,
    *,
    sweeps: int = COLD_SWEEPS,
    generator: torch.Generator | None = None,
) -> LeadingTriplets:
    """The `r` leading triplets of one matrix, cold: from random directions, by a few sweeps.

    `W v = σ̂ u` holds to rounding, and `σ̂_i ≤ σ_i` for every `i`; their squares are eigenvalues in float64, so that
    values below 1e-8 `σ_1` are lost. With a gap in the spectrum eight sweeps are exact to rounding; on flat spectra a
    value may be too small by a few percent, and `residuals` and `upper` say so.

    Args:
        matrix: float32 or float64, finite.
        r: how many triplets; at most `min(rows, columns)` exist, and asking for more gives these.
        sweeps: `W` is read `2 sweeps + 1` times.
        generator: of the directions; by default `own_generator`.

    Returns:
        The triplets, with their residuals, an upper bound of `σ_1`, and the distance to rank one.

    Raises:
        InputError: as `require_matrix` does, for norms that overflow, and for `r < 1`.

    >>> W = torch.diag(torch.tensor([9.0, 3.0, 1.0, 0.1, 0.1, 0.0], dtype=torch.float64))
    >>> found = krylov_triplets(W, r=2)
    >>> [round(value, 12) for value in found.values], 0 <= found.error_bound < 1e-10
    ([9.0, 3.0], True)
    """
    require_rank(r)
    matrix, _, unit = scaled(matrix)
    r, rows = min(r, *matrix.shape), MatrixBlock.whole(matrix)
    groups = start([rows], r, own_generator(torch.device("cpu")) if generator is None else generator)
    squares = [(0.0, float(sum_of_squares(matrix)))]
    for _ in range(max(sweeps, 1) - 1):
        sweep([rows], squares, groups, r)
    ((found, _),) = sweep([rows], squares, groups, r)
    return found.times(float(unit))


@dataclass(frozen=True)
class TripletGroup:
    """Matrices of one dtype and device and of like size, by their numbers, and the state of their iteration.

    They share their small decompositions. Those whose directions do not span everything come first.
    """

    members: tuple[int, ...]
    swept: SweptBatch
    noise: Iterator[Tensor]  # random directions, one for each sweep

    @cached_property
    def slots(self) -> list[BatchSlot]:
        """The memory for the products of each member."""
        return [self.swept.slot(number) for number in range(len(self.members))]


def directions(r: int) -> int:
    """The number of directions that serve `r` triplets of `W`, and one of `[W b]`."""
    return 3 * (r + 1)


def start(matrices: Sequence[MatrixBlock], r: int, generator: torch.Generator) -> list[TripletGroup]:
    """The state of a cold iteration: random directions for each matrix, as many as serve, or as there can be."""
    groups = []
    matrices = [matrix.oriented(directions(r)) for matrix in matrices]
    for members in _alike(matrices):
        members.sort(key=lambda number: matrices[number].columns > directions(r), reverse=True)
        mine = [matrices[member] for member in members]
        sizes = [MatrixSize(m.length, min(directions(r), m.columns), m.columns, m.bias is not None) for m in mine]
        swept = SweptBatch.empty(BatchShape(tuple(sizes)), mine[0].weight)
        group = TripletGroup(tuple(members), swept, noise(swept, generator))
        for slot, size in zip(group.slots, sizes, strict=True):
            random = torch.randn(size.columns, size.block, generator=generator, dtype=torch.float64)
            slot.directions[1:] = torch.linalg.qr(random).Q.mT
        groups.append(group)
    return groups


def _alike(matrices: Sequence[MatrixBlock]) -> list[list[int]]:
    """Numbers of the matrices of one dtype and device, of sizes within a factor of four."""
    groups: dict[object, list[int]] = {}
    for number, matrix in enumerate(matrices):
        size = max(matrix.length, matrix.columns, 1)
        key = ((size - 1).bit_length() + 1) // 2, matrix.weight.dtype, matrix.weight.device
        groups.setdefault(key, []).append(number)
    return list(groups.values())


@np.errstate(invalid="ignore", over="ignore")
def sweep(
    matrices: Sequence[MatrixBlock],
    squares: Sequence[tuple[float, float]],
    groups: Sequence[TripletGroup],
    r: int,
    reduce: Reduce = list,
) -> list[Found]:
    """Take one sweep over all matrices, which leaves the groups ready for the next.

    Args:
        matrices: as they are now; in the order of `start`.
        squares: `‖b‖²` and `‖W‖²` of each.
        groups: the state, which is advanced.
        r: as in `start`.
        reduce: sums over the processes; called once, once more where a matrix is split across its columns, and once
            more where one is so near rank one that its tail has to be summed from the deflated matrix.

    Returns:
        `r` triplets of each matrix, and the top one with its bias. Figures of a matrix with NaN are NaN.

    >>> W = torch.diag(torch.tensor([9.0, 3.0, 1.0, 0.1, 0.1, 0.0], dtype=torch.float64))
    >>> rows = MatrixBlock.whole(W)
    >>> groups = start([rows], 1, torch.Generator().manual_seed(0))
    >>> for _ in range(COLD_SWEEPS):
    ...     ((found, _),) = sweep([rows], [(0.0, 91.02)], groups, 1)
    >>> abs(found.values[0] - 9) < 1e-12 <= found.error_bound + 1e-12 < 1e-5
    True
    """
    matrices = [matrix.oriented(directions(r)) for matrix in matrices]
    slots = [(matrices[n], slot) for group in groups for n, slot in zip(group.members, group.slots, strict=True)]
    images, pulled = [group.swept.images for group in groups], [group.swept.pulled for group in groups]
    for matrix, slot in slots:
        _push(matrix, slot)
    if across := any(matrix.across for matrix in matrices):
        _sum(images, reduce)
    for matrix, slot in slots:
        if slot.pulled is not None:
            matrix.pull(slot.images, slot.pulled)
    _sum(pulled if across else [*images, *pulled], reduce)
    found: dict[int, Found] = {}
    for group in groups:
        known = np.array([squares[member] for member in group.members])
        pairs = rayleigh_ritz(group.swept, known, r)
        found.update(zip(group.members, leading_of(pairs, r), strict=True))
        group.swept.turn(next_directions(pairs, r, group.noise))
    return _finished(matrices, [found[number] for number in range(len(matrices))], reduce)


def _push(matrix: MatrixBlock, slot: BatchSlot) -> None:
    """The share of this process in the images of one matrix."""
    if not matrix.complete:
        slot.images.zero_()  # others added to them in the last sweep
    matrix.push(slot.directions, slot.images)
    matrix.add_bias(slot.images[:, 0])


def _sum(parts: Sequence[Tensor], reduce: Reduce) -> None:
    """Sum over all processes, in place."""
    for part, total in zip(parts, reduce(list(parts)), strict=True):
        if total is not part:
            part.copy_(total)


def _finished(matrices: Sequence[MatrixBlock], found: Sequence[Found], reduce: Reduce) -> list[Found]:
    """Tails and turned matrices put right."""
    own = [first.transposed() if m.turned else first for m, (first, _) in zip(matrices, found, strict=True)]
    along = [number for number, (_, more) in enumerate(found) if more is not None]
    extended = [more for _, more in found if more is not None]
    exact = _with_tails([*matrices, *(matrices[number] for number in along)], [*own, *extended], reduce)
    more = dict(zip(along, exact[len(matrices) :], strict=True))
    return [(exact[number], more.get(number)) for number in range(len(matrices))]


def _with_tails(
    matrices: Sequence[MatrixBlock], found: Sequence[LeadingTriplets], reduce: Reduce
) -> list[LeadingTriplets]:
    """`‖W - σ̂_1 u_1 v_1ᵀ‖²`: by difference while it loses no more than two digits, else from the deflated matrix."""
    exact = list(found)
    near = [each.tail < _DEFLATE_BELOW * each.frobenius_norm**2 for each in found]
    close = [i for i, each in enumerate(found) if near[i] and 1 not in each.shape]
    if close:
        sums = [matrices[i].deflated(found[i].left(0), found[i].values[0], found[i].right(0)) for i in close]
        for i, total in zip(close, reduce(sums), strict=True):
            exact[i] = replace(found[i], tail=float(total))
    return exact
