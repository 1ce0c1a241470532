"""Elements picked from a tensor, or put into one: by places that are known, or that the data choose."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.shift_groups import LARGEST, LETTERS, Groups, Rows, chosen, dense, factor, pull
from equipoise.graph.labels.signal import Role, Signal, is_zero
from equipoise.graph.ops import rules
from equipoise.graph.ops.movement import Moved, paired, relabelled
from equipoise.graph.ops.operator import (
    Operator,
    Regularity,
    Site,
    Sources,
    Trait,
    Unreadable,
    declare,
    element_numbers,
    operation_name,
    rest,
)

aten = torch.ops.aten

# Picked ---------------------------------------------------------------------------------------------------------------


def index(algebra: Algebra, signal: Signal, indices: Sequence[Signal | None]) -> Moved:
    """Fancy indexing: exact for constant indices; for indices in the data, all that may be picked must move alike."""
    if all(position is None or position.value is not None for position in indices):
        exact = [None if position is None else position.value for position in indices]
        return relabelled(algebra, signal, lambda labels: aten.index(labels, exact), drops=True, copies=True)
    axes = [axis for axis, position in enumerate(indices) if position is not None]
    zeros = [None if p is None else torch.zeros(p.shape, dtype=torch.int64) for p in indices]
    return _picked(algebra, signal, axes, lambda labels: aten.index(labels, zeros))


def index_select(algebra: Algebra, signal: Signal, dim: int, positions: Signal) -> Moved:
    """Slices along one axis."""
    return index(algebra, signal, [None] * signal.axis(dim) + [positions])


def gather(algebra: Algebra, signal: Signal, dim: int, positions: Signal, **kwargs: object) -> Moved:
    """Elements along one axis."""
    _one_by_one(algebra, signal, signal.axis(dim), positions)
    zeros = torch.zeros(positions.shape, dtype=torch.int64)
    return _picked(algebra, signal, [signal.axis(dim)], lambda labels: aten.gather(labels, dim, zeros))


def _one_by_one(algebra: Algebra, signal: Signal, axis: int, positions: Signal) -> None:
    """No mixing between elements that come from, or go to, different places along an axis."""
    same_places = positions.constant_axes()
    along = [other == axis or other in same_places for other in range(signal.ndim)]
    sizes = [1 if same else size for same, size in zip(along, signal.shape, strict=True)]
    key = torch.arange(math.prod(sizes)).reshape(sizes).expand(signal.shape)
    for role in signal.roles:
        algebra.separate(role, key)


def _picked(algebra: Algebra, signal: Signal, axes: Sequence[int], pick: Callable[[Tensor], Tensor]) -> Moved:
    alike = [algebra.uniform(role, axes) for role in signal.roles]
    spread = [role.moved(lambda labels: labels.expand(signal.shape)) for role in alike]
    return relabelled(algebra, signal.with_roles(spread), pick, drops=True, copies=True)


def embedding(
    algebra: Algebra,
    table: Signal,
    positions: Signal,
    padding: int = -1,
    by_frequency: object = False,
    sparse: object = False,
) -> Signal:
    """Rows of a table, chosen by the data: no action on the rows, any on the columns.

    Autograd drops the gradient of the row `padding_idx` and divides others by their frequency if asked to: what it
    returns is then not the gradient of the function, and obeys none of its laws.

    Raises:
        Unreadable: for either.
    """
    if table.weights and (padding >= 0 or by_frequency):
        raise Unreadable(f"padding_idx={padding}" if padding >= 0 else "scale_grad_by_freq")
    for role in table.roles:
        if role.varies(0):
            algebra.pin(role)
    columns = table.with_roles([role for role in table.roles if not role.varies(0)])
    first = columns.with_roles([algebra.uniform(role, [0]) for role in columns.roles])
    shape = (*positions.shape, *table.shape[1:])
    roles = [algebra.expanded(Role(role.coordinates[0], role.fibres[0]), shape) for role in first.roles]
    return Signal(shape, tuple(roles))


def embedding_bag(
    algebra: Algebra,
    table: Signal,
    positions: Signal,
    offsets: Signal,
    by_frequency: object = False,
    mode: int = 0,
    sparse: object = False,
    weights: Signal | None = None,
    last_offset: object = False,
    padding: int | None = -1,
) -> tuple[Signal, ...]:
    """Sums, means or maxima of rows of a table, chosen by the data."""
    if weights is not None:
        algebra.still(weights)
    rows = embedding(algebra, table, positions, -1 if padding is None else padding, by_frequency)
    rows = algebra.diagonal(rows) if mode == 2 else rows
    bags = (offsets.shape[0] - bool(last_offset), table.shape[1])
    found = [algebra.expanded(algebra.uniform(role, [0]), bags) for role in rows.roles]
    return Signal(bags, tuple(found)), *(Signal(offsets.shape) for _ in range(3))


# Put in ---------------------------------------------------------------------------------------------------------------


def scatter_reduce(
    algebra: Algebra, target: Signal, dim: int, positions: Signal, source: Signal, reduce: str, **kwargs: object
) -> Signal:
    """Sums, means or maxima of what the data put into one place."""
    if reduce not in ("sum", "mean", "amax", "amin"):
        return rest(algebra, target.shape, target, source)
    source = algebra.diagonal(source) if reduce.startswith("a") else source
    return scatter_add(algebra, target, dim, positions, source)


def scatter_add(
    algebra: Algebra, target: Signal, dim: int, positions: Signal, source: Signal, *args: object, **kwargs: object
) -> Signal:
    """Sums into places chosen for each element by itself."""
    _one_by_one(algebra, source, source.axis(dim), positions)
    return index_add(algebra, target, dim, positions, source)


def index_add(
    algebra: Algebra, target: Signal, dim: int, positions: Signal, source: Signal, *args: object, **kwargs: object
) -> Signal:
    """Sums into places chosen by the data: everything along that axis must move alike."""
    axis = target.axis(dim)
    alike = [algebra.uniform(role, [axis]) for role in source.roles]
    narrow = [role.moved(lambda labels: _fitted(labels, axis, target.shape)) for role in alike]
    spread = [algebra.expanded(role, target.shape) for role in narrow]
    result = Signal(target.shape, tuple(algebra.renewed(role) for role in spread))
    if not is_zero(target):
        algebra.equal(result, target)
    return result


def _fitted(labels: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Labels with one index along `axis`, cut to the other axes of a shape."""
    for other, size in enumerate(shape):
        if other != axis and labels.shape[other] > size:
            labels = labels.narrow(other, 0, size)
    return labels


def _written(algebra: Algebra, target: Signal, source: Signal, write: Callable[[Tensor, Tensor], Tensor]) -> Signal:
    """A part of the target replaced by the source: labels are replaced by the operation itself."""
    roles = [
        algebra.close(algebra.distinct(Role(write(a.coordinates, b.coordinates), write(a.fibres, b.fibres))))
        for a, b in paired(target, source)
    ]
    return Signal(target.shape, tuple(roles))


def slice_scatter(algebra: Algebra, target: Signal, source: Signal, *args: object) -> Signal:
    """A slice of the target replaced."""
    return _written(algebra, target, source, lambda a, b: aten.slice_scatter(a, b, *args))


def select_scatter(algebra: Algebra, target: Signal, source: Signal, *args: object) -> Signal:
    """One index along an axis of the target replaced."""
    return _written(algebra, target, source, lambda a, b: aten.select_scatter(a, b, *args))


def index_put(
    algebra: Algebra, target: Signal, indices: Sequence[Signal | None], source: Signal, accumulate: object = False
) -> Signal:
    """Entries at known places replaced."""
    if accumulate or any(place is not None and place.value is None for place in indices):
        raise Unreadable("at places in the data")
    places = [None if place is None else place.value for place in indices]
    return _written(algebra, target, source, lambda a, b: aten.index_put(a, places, b))


def copy(algebra: Algebra, target: Signal, source: Signal, *args: object, **kwargs: object) -> Signal:
    """The whole target replaced."""
    return Signal(target.shape, tuple(algebra.expanded(role, target.shape) for role in source.roles))


# Shifts ---------------------------------------------------------------------------------------------------------------


def _shift_of_table(site: Site, groups: Groups | Rows) -> Sources:
    """Rows of a table chosen by the data: each by itself, or all of them alike."""
    table, positions = site.tensors()
    shape, padding = site.shape_of(table), site.integer(2, -1)
    labels, places = dense(groups, site.shape), site.value(positions)
    if labels is None:
        return
    found = chosen(labels, lambda numbers: numbers[:1].expand(labels.shape), shape, [0])
    if found is None and padding == -1 and math.prod(shape) <= LARGEST:  # autograd leaves out the row of the padding
        found = _alike(labels, shape) if places is None else pull(labels, element_numbers(shape)[places], shape)
    yield table, found


def _alike(labels: Groups, shape: tuple[int, ...]) -> Groups | None:
    """Groups of all rows of a table together."""
    alike = pull(labels, element_numbers(shape[1:]).expand(labels.shape), shape[1:])
    return None if alike is None else alike.expand(shape)


def _shift_of_bag(site: Site, groups: Groups | Rows) -> Sources:
    """Sums or means of rows of a table."""
    table, labels = site.source(), dense(groups, site.shape)
    if labels is not None and site.integer(4) in (0, 1):
        yield table, chosen(labels, lambda numbers: numbers[:1].expand(labels.shape), site.shape_of(table), [0])


def _shift_of_picked(
    at_places: Callable[[Site, Groups], Rows | None],
) -> Callable[[Site, Groups | Rows], Sources]:
    """Entries at places that are known, or that the data choose along some axes."""

    def rule(site: Site, groups: Groups | Rows) -> Sources:
        source, labels = site.source(), dense(groups, site.shape)
        if labels is None:
            return
        known = all(site.value(each) is not None for each in site.node.all_input_nodes if each is not source)
        found = None if known and not site.signal(source).weights else at_places(site, labels)
        if known and found is None:
            shape = site.shape_of(source)
            numbers = site.node.target(element_numbers(shape), *site.plain(site.args[1:]))  # pyright: ignore[reportCallIssue]
            yield source, pull(labels, numbers, shape)
        else:
            yield source, found

    return rule


def _at_indices(site: Site, labels: Groups) -> Rows | None:
    """Groups of the entries that an index may pick along its axes, each by itself."""
    places: Sequence[Argument] = site.args[1]  # pyright: ignore[reportAssignmentType]
    first = [torch.zeros(site.shape_of(p), dtype=torch.int64) if isinstance(p, fx.Node) else None for p in places]
    axes = [axis for axis, place in enumerate(first) if place is not None]
    return chosen(labels, lambda numbers: aten.index(numbers, first), site.shape_of(site.source()), axes)


def _along_an_axis(site: Site, labels: Groups) -> Rows | None:
    """Groups of the slices that may be picked along one axis."""
    shape, places = site.shape_of(site.source()), site.tensor(2)
    axis = site.integer(1) % len(shape)
    first = None if places is None else torch.zeros(site.shape_of(places), dtype=torch.int64)
    return chosen(labels, lambda numbers: aten.index(numbers, [*[None] * axis, first]), shape, [axis])


def _anywhere(site: Site, labels: Groups) -> None:
    """Places chosen for each element by itself."""


def _shift_of_added(site: Site, groups: Groups | Rows) -> Sources:
    """Sums into places along one axis that the data choose: `index_add`, or `scatter_add` of whole slices."""
    target, places, source = (site.tensor(place) for place in (0, 2, 3))
    labels = dense(groups, site.shape)
    if labels is None or target is None or source is None or places is None:
        return
    shape, read = site.shape_of(target), site.shape_of(source)
    axis = site.integer(1) % len(shape)
    if not _whole_slices(places, axis, site):
        return
    yield target, groups
    if all(a == b for other, (a, b) in enumerate(zip(shape, read, strict=True)) if other != axis):
        yield source, dense(_reaching(labels, axis, read), read)


def _reaching(labels: Groups, axis: int, shape: tuple[int, ...]) -> Rows | None:
    """Groups of slices along an axis, each of which may land at any index of it."""
    term = LETTERS[: labels.ndim]
    return factor(labels, 0, [term.replace(term[axis], "z"), "z" + term[axis]], term, shape)


def _whole_slices(places: fx.Node, axis: int, site: Site) -> bool:
    """Whether all elements of a slice go to one index."""
    shape = site.shape_of(places)
    if len(shape) == 1:
        return True
    origin = places.all_input_nodes[0] if operation_name(places.target) in ("expand", "expand_as") else None
    narrow = site.shape_of(origin) if origin is not None else shape
    return all(size == 1 for other, size in enumerate(narrow) if other != axis + len(narrow) - len(shape))


# Declarations ---------------------------------------------------------------------------------------------------------

_PICKED = Operator(exchange=rules.passed, degree=rules.kept, regularity=Regularity.MOVES, traits=Trait.PICKING)
declare("index", replace(_PICKED, symmetry=index, shift=_shift_of_picked(_at_indices)))
declare("index_select", replace(_PICKED, symmetry=index_select, shift=_shift_of_picked(_along_an_axis)))
declare("gather", replace(_PICKED, symmetry=gather, shift=_shift_of_picked(_anywhere)))
declare("embedding", replace(_PICKED, symmetry=embedding, shift=_shift_of_table, traits=Trait.TABLE))
declare(
    "embedding_bag _embedding_bag _embedding_bag_forward_only",
    Operator(symmetry=embedding_bag, shift=_shift_of_bag, traits=Trait.TABLE),
)
declare("index_add", Operator(symmetry=index_add, shift=_shift_of_added))
declare("scatter_add", Operator(symmetry=scatter_add, shift=_shift_of_added))
declare("scatter_reduce", Operator(symmetry=scatter_reduce))
declare("slice_scatter", Operator(symmetry=slice_scatter))
declare("select_scatter", Operator(symmetry=select_scatter))
declare("index_put", Operator(symmetry=index_put))
declare("copy", Operator(symmetry=copy))
