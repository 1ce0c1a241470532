"""Sets of elements that may be moved by a common constant, and how they combine."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

SEEN, UNREAD = -1, -2  # labels of elements that may not be moved, and of those that nothing reads
LARGEST = 2**23  # elements of which each has a label of its own
LETTERS = ascii_uppercase + ascii_lowercase  # the axes of tensors, as in an `einsum`
Groups = Tensor  # int64 labels in the shape of a tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Groups of the indices into some axes of `tensor.reshape(view)`; each index into the others moves by itself.

    `labels` has one axis for each of `axes`, in ascending order.
    """

    labels: Tensor
    axes: tuple[int, ...]
    view: tuple[int, ...]

    def on(self, shape: Sequence[int]) -> "Rows | None":
        """The same groups by the axes of another shape; None where these do not separate them."""
        shape = tuple(shape)
        if shape == self.view:
            return self
        axes, place = [], 0
        for labelled, size in self._runs():
            count = 1
            while count < size and place < len(shape):
                axes += [place] if labelled else []
                count *= shape[place]
                place += 1
            if count != size:
                return None
        return Rows(self.labels.reshape([shape[axis] for axis in axes]), tuple(axes), shape)

    def _runs(self) -> list[tuple[bool, int]]:
        """Neighbouring axes that all carry labels, or none of which does, and how many indices they have together."""
        runs: list[tuple[bool, int]] = []
        for axis, size in enumerate(self.view):
            labelled = axis in self.axes
            if runs and (runs[-1][0] == labelled or size == 1):
                runs[-1] = (runs[-1][0], runs[-1][1] * size)
            elif size > 1:
                runs.append((labelled, size))
        return runs

    def dense(self, shape: Sequence[int]) -> Groups | None:
        """One label for each element; None for tensors too large for that."""
        if math.prod(self.view) > LARGEST:
            return None
        sizes = [size if axis in self.axes else 1 for axis, size in enumerate(self.view)]
        others = [1 if axis in self.axes else size for axis, size in enumerate(self.view)]
        labels, count = self.labels.reshape(sizes), math.prod(others)
        apart = torch.where(labels >= 0, labels * count + torch.arange(count).reshape(others), labels)
        return apart.reshape(tuple(shape))


def dense(groups: Groups | Rows | None, shape: Sequence[int]) -> Groups | None:
    """Groups with one label for each element."""
    return groups.dense(shape) if isinstance(groups, Rows) else groups


def along(shape: Sequence[int], axes: Iterable[int]) -> Groups:
    """One group for each index into the other axes."""
    axes = [axis % len(shape) for axis in axes]
    sizes = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return torch.arange(math.prod(sizes)).reshape(sizes).expand(tuple(shape))


def common(uses: Sequence[Groups | Rows | None], shape: Sequence[int]) -> Groups | Rows | None:
    """Groups whose shift none of the uses sees; a use that is None sees everything."""
    known = [use for use in uses if use is not None]
    if not known or len(known) < len(uses):
        return None
    if len(known) == 1:
        return known[0]
    rows = [use for use in known if isinstance(use, Rows)]
    like = next((r for r in rows if r.view == tuple(shape)), rows[0] if rows else None)
    alike = [use.on(like.view) for use in rows] if like is not None else []
    if (
        like is not None
        and len(alike) == len(known)
        and all(use is not None and use.axes == like.axes for use in alike)
    ):
        labels = _intersected([use.labels for use in alike if use is not None])
        return None if labels is None else Rows(labels, like.axes, like.view)
    labelled = [dense(use, shape) for use in known]
    return None if any(use is None for use in labelled) else _intersected([use for use in labelled if use is not None])


def _intersected(uses: Sequence[Groups]) -> Groups | None:
    if all(torch.equal(use, uses[0]) for use in uses[1:]):
        uses = uses[:1]
    numbers = torch.arange(uses[0].numel())
    return partition(uses[0].shape, [(numbers, use.reshape(-1)) for use in uses])


def partition(shape: Sequence[int], links: Sequence[tuple[Tensor, Tensor]]) -> Groups | None:
    """Groups of elements that must move together, given `(elements, labels)` that say who writes into which group.

    Whoever writes into one group must move with all who do; who writes outside of all groups (`SEEN`), or into one that
    someone else (element -1) writes into as well, may not move. None where nobody may.
    """
    if len(links) == 1 and (found := _laid(shape, *links[0])) is not None:
        return found if bool((found != SEEN).any()) else None
    count, offset, pairs = math.prod(shape), 0, []
    for sources, labels in links:
        kept = labels != UNREAD
        pairs.append((sources[kept], torch.where(labels[kept] >= 0, labels[kept] + offset, SEEN)))
        offset += max(int(labels.max()) + 1, 0) if labels.numel() else 0
    elements, nodes = (torch.cat(column) for column in zip(*pairs, strict=True))
    linked = (elements >= 0) & (nodes >= 0)
    edges = (elements[linked].numpy(), count + nodes[linked].numpy())
    network = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(count + offset, count + offset))
    component = torch.from_numpy(connected_components(network, directed=False)[1]).long()
    bad = torch.zeros(int(component.max()) + 1, dtype=torch.bool)
    bad[component[elements[(nodes < 0) & (elements >= 0)]]] = True
    bad[component[count + nodes[(elements < 0) & (nodes >= 0)]]] = True
    result = torch.where(bad[component[:count]], SEEN, component[:count])
    read = torch.zeros(count, dtype=torch.bool)
    read[elements[elements >= 0]] = True
    result = torch.where(read, result, UNREAD)
    return result.reshape(tuple(shape)) if bool((result != SEEN).any()) else None


def _laid(shape: Sequence[int], elements: Tensor, labels: Tensor) -> Groups | None:
    """The same where no element writes into two places, and groups remain as they are; None where one does."""
    kept = labels != UNREAD
    elements, labels = elements[kept], labels[kept]
    inside, count = elements >= 0, math.prod(shape)
    sources, groups = elements[inside], labels[inside]
    read = torch.zeros(count, dtype=torch.bool)
    read[sources] = True
    if int(read.sum()) < len(sources):
        return None
    number = torch.full((int(labels.max()) + 2 if len(labels) else 1,), count)  # of each group; the last is `SEEN`
    number.scatter_reduce_(0, groups % len(number), sources, "amin")  # its first element
    number[labels[~inside]] = SEEN
    number[SEEN] = SEEN
    result = torch.full((count,), UNREAD)
    result[sources] = number[groups]
    return result.reshape(tuple(shape))


def pull(groups: Groups, origin: Tensor, shape: Sequence[int]) -> Groups | None:
    """Groups of an input whose elements `origin` says where each element of the output comes from (-1: elsewhere)."""
    return partition(shape, [(origin.reshape(-1), groups.reshape(-1))])


def spread(groups: Groups | Rows, shape: tuple[int, ...], onto: tuple[int, ...]) -> Groups | Rows | None:
    """Groups of a tensor of some shape, from those of what it is broadcast to."""
    if shape == onto:
        return groups
    labels = dense(groups, onto)
    numbers = torch.arange(math.prod(shape)).reshape(shape).expand(onto)
    return None if labels is None else pull(labels, numbers, shape)


def broadcast_terms(shapes: Sequence[Sequence[int]], ndim: int) -> tuple[list[str], str]:
    """Letters for the axes of tensors that are broadcast against each other; an axis of size one has its own.

    >>> broadcast_terms([(2, 3), (3,), (2, 1)], 2)
    (['AB', 'B', 'AC'], 'AB')
    """
    output, spare = LETTERS[:ndim], iter(LETTERS[ndim:])
    wide = [
        max((shape[axis - ndim] for shape in shapes if len(shape) >= ndim - axis), default=1) for axis in range(ndim)
    ]
    terms = []
    for shape in shapes:
        axes = range(ndim - len(shape), ndim)
        terms.append("".join(output[a] if shape[a - ndim] == wide[a] else next(spare) for a in axes))
    return terms, output


def in_rows(groups: Groups, batch: int, own: int) -> Groups | None:
    """Groups of the last of `(rows, batch, own)` indices that are whole groups in every row by itself."""
    rows = groups.reshape(-1, batch, own) if groups.numel() else torch.full((1, batch, own), UNREAD)
    count = rows.shape[0] * batch
    place = torch.arange(count).reshape(-1, batch, 1).expand_as(rows)
    first = torch.full((max(int(rows.max()), -1) + 1,), count).scatter_reduce(
        0, rows[rows >= 0], place[rows >= 0], "amin"
    )
    last = torch.full_like(first, -1).scatter_reduce(0, rows[rows >= 0], place[rows >= 0], "amax")
    crossing = torch.cat([first != last, torch.zeros(2, dtype=torch.bool)])  # labels -2 and -1 come from the end
    apart = torch.where(crossing[rows], SEEN, rows)
    if not bool((apart != SEEN).any()):
        return None
    if bool((apart == apart[..., :1]).all()):
        lowest, highest = torch.where(apart == UNREAD, own * count, apart)[..., 0], apart[..., 0]
        free = torch.where(lowest.min(0).values < 0, SEEN, torch.arange(batch))
        free = torch.where(highest.max(0).values == UNREAD, UNREAD, free)
        return free[:, None].expand(batch, own) if bool((free != SEEN).any()) else None
    return pull(apart, torch.arange(batch * own).reshape(batch, own).expand_as(rows), (batch, own))


def contracted(groups: Groups, terms: Sequence[str], output: str, shapes: Sequence[Sequence[int]]) -> list[Rows | None]:
    """Groups of each factor of an `einsum`, from those of its result.

    An index that no other factor has may move in common where every row of the result allows it; everything else the
    factor has moves index by index.
    """
    return [factor(groups, place, terms, output, shapes[place]) for place in range(len(terms))]


def factor(groups: Groups, place: int, terms: Sequence[str], output: str, shape: Sequence[int]) -> Rows | None:
    """Groups of one factor of a product."""
    term, others = terms[place], "".join(other for number, other in enumerate(terms) if number != place)
    if len(set(term)) < len(term):
        return None
    shared = [axis for axis in output if axis in term and axis in others]
    own = [axis for axis in output if axis in term and axis not in others]
    rest = [axis for axis in output if axis not in term]
    size = lambda axes: math.prod(shape[term.index(axis)] for axis in axes)  # noqa: E731
    moved = groups.permute([output.index(axis) for axis in (*rest, *shared, *own)])
    labels = in_rows(moved, size(shared), size(own))
    if labels is None:
        return None
    held = [term.index(axis) for axis in (*shared, *own)]
    order = sorted(range(len(held)), key=held.__getitem__)
    laid = labels.reshape([shape[axis] for axis in held]).permute(order)
    return Rows(laid, tuple(sorted(held)), tuple(shape))


def chosen(groups: Groups, place: Callable[[Tensor], Tensor], shape: Sequence[int], axes: Sequence[int]) -> Rows | None:
    """Groups of a tensor whose entries along `axes` the data choose, by the operation `place` that picks them.

    Whatever entry is picked, its other elements must form whole groups.
    """
    others = [axis for axis in range(len(shape)) if axis not in axes]
    sizes = [1 if axis in axes else size for axis, size in enumerate(shape)]
    count = math.prod(sizes)
    numbers = place(torch.arange(count).reshape(sizes).expand(tuple(shape)))
    order = torch.argsort(numbers.reshape(-1), stable=True)
    labels = in_rows(groups.reshape(-1)[order].reshape(count, -1).T, 1, count)
    return (
        None if labels is None else Rows(labels.reshape([shape[axis] for axis in others]), tuple(others), tuple(shape))
    )
