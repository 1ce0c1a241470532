"""Directions that no reader sees: a softmax ignores a common shift of its scores, a LayerNorm the mean of its input.

The pass goes backwards. For every tensor it keeps *shift groups*: a label for each element, `SEEN` for elements that
may not be moved. Adding any constant to all elements of one group changes no output. A parameter that only writes into
such groups has a law that is linear in the weights: its sum over a group is constant (docs/theory.md, T1).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from equipoise.graph.interface import Member
from equipoise.graph.labels.shift_groups import SEEN, Groups, Rows, along, common
from equipoise.graph.labels.signal import Signal
from equipoise.graph.ops import operation_name, operator_of
from equipoise.graph.ops.operator import Movement, Sources, Trait
from equipoise.graph.ops.site import Site, Unreadable
from equipoise.graph.precision import narrow_nodes, narrowest
from equipoise.graph.propagate import SymmetryPropagation

_WRITING = Trait.PRODUCT | Trait.CONVOLUTION | Trait.TABLE


def find_shifts(propagation: SymmetryPropagation, *, softmax: bool = False) -> list[Member]:
    """Members of shift laws: `index` holds one row of positions for each group.

    `softmax` says that the loss takes the softmax of the output over its last axis.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False))
    >>> [(m.parameter, m.index.shape) for m in find_shifts(SymmetryPropagation(capture(model, torch.ones(2, 3))))]
    [('0.weight', torch.Size([1, 1, 4])), ('0.bias', torch.Size([1, 1, 4]))]
    """
    seen: dict[fx.Node, dict[fx.Node, Groups | Rows | None]] = {}
    outputs = propagation.captured.output
    if softmax:
        for node in outputs:
            seen.setdefault(node, {})[propagation.captured.graph.output_node()] = along(_shape(propagation, node), [-1])
    found: dict[str, list[Member]] = {}
    narrow = narrow_nodes(propagation.captured.graph, propagation.captured.parameters)
    below: dict[fx.Node, torch.dtype | None] = {}  # the narrowest dtype from a node down to what ignores its shift
    for node in reversed(propagation.captured.graph.nodes):
        name, shape = propagation.captured.parameters.get(node.name), _shape(propagation, node)
        uses = [seen.get(node, {}).get(reader) for reader in _readers(node, propagation)]
        below[node] = narrowest(narrow.get(node), *(below.get(reader) for reader in seen.get(node, ())))
        if name is not None and name not in propagation.frozen and uses:
            members = _members(name, shape, common(uses, shape))
            found[name] = [replace(member, precision=below[node]) for member in members]
        elif node.op == "call_function" and not operator_of(node).is_a(Trait.SPLITTING):
            _note(node, propagation, uses)
            for source, groups in _sources(
                Site(node, propagation.signals, propagation.through_detach), propagation, common(uses, shape)
            ):
                seen.setdefault(source, {})[node] = groups if _reads(node, source) <= 1 else None
    return [member for name in propagation.captured.parameters.values() for member in found.get(name, ())]


def _note(node: fx.Node, propagation: SymmetryPropagation, uses: Sequence[Groups | Rows | None]) -> None:
    """Shifts that most readers ignore and a linear map could take back; and those that stop at a linear operation."""
    readers, operator = list(_readers(node, propagation)), operator_of(node)
    ignored = [use is not None for use in uses]
    seeing = [reader for reader, own in zip(readers, ignored, strict=False) if not own]
    writes = operator.is_a(_WRITING)
    if writes and any(ignored) and seeing and all(_compensates(node, reader, propagation) for reader in seeing):
        propagation.unshifted.add(node.name)
    stops = operator.linear and operator.shift is None
    if stops and uses and all(ignored) and _touched(common(uses, _shape(propagation, node))):
        propagation.unshifted.add(node.name)


def _touched(groups: Groups | Rows | None) -> bool:
    labels = groups.labels if isinstance(groups, Rows) else groups
    return labels is not None and bool((labels >= 0).any())


def _compensates(node: fx.Node, reader: fx.Node, propagation: SymmetryPropagation) -> bool:
    """Whether a reader is a linear map by a trained weight, which could undo what is done to what it reads."""
    operator = operator_of(reader)
    if operator.movement in (Movement.ORDERED, Movement.TURNED) or operation_name(reader.target) in ("neg", "detach"):
        readers = list(_readers(reader, propagation))
        return bool(readers) and all(_compensates(reader, each, propagation) for each in readers)
    others = [propagation.signals[each] for each in reader.all_input_nodes if each is not node]
    trained = any(isinstance(each, Signal) and each.weights and each.roles for each in others)
    return trained and operator.is_a(Trait.PRODUCT | Trait.CONVOLUTION)


def _readers(node: fx.Node, propagation: SymmetryPropagation) -> Iterator[fx.Node]:
    """The nodes that read a value and pass a gradient on; of an operation with several results, each of these."""
    for user in node.users:
        operator = operator_of(user)
        if operator.is_a(Trait.SPLITTING):
            yield from user.users
        elif not operator.is_a(Trait.SHAPE_ONLY) and (
            propagation.through_detach or operation_name(user.target) != "detach"
        ):
            yield user


def _reads(node: fx.Node, source: fx.Node) -> int:
    """How many arguments of a node another one is."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), lambda argument: found.append(argument))  # pyright: ignore[reportArgumentType]
    return found.count(source)


def _shape(propagation: SymmetryPropagation, node: fx.Node) -> tuple[int, ...]:
    """The shape of a value, or of the first of several."""
    return Site(node, propagation.signals).shape


def _members(name: str, shape: tuple[int, ...], groups: Groups | Rows | None) -> Iterable[Member]:
    if isinstance(groups, Rows):
        rows = groups.on(shape) or groups
        yield from (Member(name, rows.view, rows.axes, index, 1.0) for index in _indices(rows.labels.reshape(-1)))
    elif groups is not None:
        axes = tuple(range(len(shape)))
        yield from (Member(name, shape, axes, index, 1.0) for index in _indices(groups.reshape(-1)))


def _indices(labels: Tensor) -> Iterable[Tensor]:
    """Groups of equal size together: `(groups, 1, size)` positions."""
    moving = torch.nonzero(labels >= 0)[:, 0]
    _, inverse, counts = torch.unique(labels[moving], return_inverse=True, return_counts=True)
    size_of = counts[inverse]
    for size in torch.unique(counts).tolist():
        mine = size_of == size
        order = torch.argsort(inverse[mine], stable=True)
        yield moving[mine][order].reshape(-1, 1, size)


def _sources(site: Site, propagation: SymmetryPropagation, groups: Groups | Rows | None) -> Sources:
    """Groups of the inputs of an operation: what it ignores by itself, or what the readers of its output ignore."""
    operator = operator_of(site.node)
    if site.node in propagation.unread:
        return
    if groups is None and (operator.movement is Movement.DROPPED or operator.is_a(Trait.PICKING)):
        groups = torch.full((), SEEN).expand(site.shape)  # what is read here is seen, what is left out is not
    ignored = [] if operator.ignores is None else list(operator.ignores(site))
    yield from ignored
    if groups is not None and operator.shift is not None and (operator.shifts_and_ignores or not ignored):
        with suppress(Unreadable):  # all is seen
            yield from list(operator.shift(site, groups))
