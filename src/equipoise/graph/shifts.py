"""Directions that no reader sees: a softmax ignores a common shift of its scores, a LayerNorm the mean of its input.

The pass goes backwards. For every tensor it keeps *shift groups*: a label for each element, `SEEN` for elements that
may not be moved. Adding any constant to all elements of one group changes no output. A parameter that only writes into
such groups has a law that is linear in the weights: its sum over a group is constant (docs/theory.md, T1).

A weight that reads a vector which always sums to zero, as that of a LayerNorm without gain, sees as little of a common
shift of a row: for that the tensors it reads are written as combinations of what nothing is known of.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
import torch
from numpy import ndarray
from scipy.sparse import csr_array
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from equipoise.graph.interface import Member
from equipoise.graph.labels.relations import LARGEST, ONE, Combinations, Relation, balanced, relations
from equipoise.graph.labels.shift_groups import SEEN, Groups, Rows, along, common
from equipoise.graph.labels.signal import Signal
from equipoise.graph.ops import operation_name, operator_of
from equipoise.graph.ops.operator import Movement, Site, Sources, Trait, Unreadable, element_numbers
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
            whole = common(uses, shape)
            sources = list(_sources(Site(node, propagation.signals, propagation.through_detach), propagation, whole))
            for source, groups in sources:
                seen.setdefault(source, {})[node] = groups if _reads(node, source) <= 1 else None
            joins = any(isinstance(argument, (list, tuple)) for argument in node.args[:1])
            if joins and _touched(whole) and not any(_touched(groups) for _, groups in sources):
                propagation.unshifted.add(node.name)  # parts that may be shifted together, none by itself
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


# What a weight reads ------------------------------------------------------------------------------------------------

MOST = 64  # operations through which a tensor is followed
NUMBERED = 2**24  # elements of a weight, where it is moved before it multiplies


@dataclass(frozen=True)
class InputShift:
    """Shifts of a weight along which the vector that it reads is zero, or, given a bias to take it back, constant."""

    member: Member
    bias: str = ""


def find_input_shifts(propagation: SymmetryPropagation) -> list[InputShift]:
    """Weights that read vectors whose elements depend on each other linearly: each row may be shifted.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 3, bias=False))
    >>> [shift.member.index.shape for shift in find_input_shifts(SymmetryPropagation(capture(model, torch.ones(2, 4))))]
    [torch.Size([1, 1, 4])]
    """
    inputs = _Inputs(propagation)
    narrow = narrow_nodes(propagation.captured.graph, propagation.captured.parameters)
    found: list[InputShift] = []
    for node in propagation.captured.graph.find_nodes(op="placeholder"):
        name = propagation.captured.parameters.get(node.name)
        if name is None or name in propagation.frozen:
            continue
        for readings in _alike(_readings(node, inputs)):
            dtype = narrowest(*(narrow.get(each) for reading in readings for each in inputs.cone(reading)))
            found += [
                InputShift(_shifted(name, _shape(propagation, node), readings[0], group, dtype), bias)
                for group, bias in inputs.relations(readings)
            ]
    return found


@dataclass(frozen=True, eq=False)
class _Reading:
    """A product that reads a vector by a weight, both as the axes of an `einsum`."""

    node: fx.Node
    weight: fx.Node  # the parameter, or what it is moved to
    vector: fx.Node
    terms: tuple[str, str]  # of the weight and of the vector
    inner: tuple[str, ...]  # axes that are summed over
    numbers: Tensor | None = None  # of the parameter's elements, where the weight is not itself one

    @property
    def rows(self) -> ndarray:
        """The numbers of the parameter's elements: a row for each element of the result."""
        assert self.numbers is not None
        return _rows(self.numbers, self.terms[0], self.inner)

    def elements(self, shape: Sequence[int]) -> ndarray:
        """The numbers of the vector's elements: a row for each vector."""
        return _rows(element_numbers(shape), self.terms[1], self.inner)


def _rows(numbers: Tensor, term: str, inner: Sequence[str]) -> ndarray:
    """Numbers with the axes that are summed over together, last."""
    order = [*(axis for axis in term if axis not in inner), *inner]
    width = math.prod(numbers.shape[term.index(axis)] for axis in inner)
    return numbers.permute([term.index(axis) for axis in order]).reshape(-1, width).numpy()


def _shifted(
    name: str, shape: tuple[int, ...], reading: _Reading, group: Sequence[Relation], precision: torch.dtype | None
) -> Member:
    """The rows of a weight, by relations of one kind between what they read."""
    weights = torch.from_numpy(group[0].weights)[:, None]
    directions = None if bool((weights == 1).all()) else weights
    if reading.numbers is None:  # along axes of the parameter
        index = torch.from_numpy(np.stack([relation.entries for relation in group]))[:, None]
        axes = tuple(reading.terms[0].index(axis) for axis in reading.inner)
        return Member(name, shape, axes, index, 1.0, directions, precision)
    rows = reading.rows
    index = torch.from_numpy(np.concatenate([rows[:, relation.entries] for relation in group]))[:, None]
    return Member(name, shape, tuple(range(len(shape))), index, 1.0, directions, precision)


def _readings(parameter: fx.Node, inputs: "_Inputs") -> list[_Reading]:
    """Every use of a parameter, followed through operations that only move it; none if one is of another kind."""
    propagation, found, queue = inputs.propagation, [], [parameter]
    while queue:
        node = queue.pop()
        for user in _readers_of(node, propagation):
            reading = _reading(Site(user, propagation.signals), node)
            if operator_of(user).moves and user.args[0] is node:
                queue.append(user)
            elif reading is None:
                return []
            else:
                found.append(reading)
    if not any(map(inputs.promising, found)):
        return []
    if [reading.weight for reading in found] == [parameter]:
        return found
    if math.prod(_shape(propagation, parameter)) > NUMBERED:
        propagation.unshifted.update(reading.node.name for reading in found)
        return []
    numbers = _numbered(parameter, propagation)
    numbered = [replace(reading, numbers=numbers.get(reading.weight)) for reading in found]
    return numbered if all(reading.numbers is not None for reading in numbered) else []


def _numbered(parameter: fx.Node, propagation: SymmetryPropagation) -> dict[fx.Node, Tensor]:
    """The numbers of a parameter's elements in every tensor that it is moved to; without those that data choose."""
    moved: dict[fx.Node, Tensor | Sequence[Tensor]] = {parameter: element_numbers(_shape(propagation, parameter))}
    queue = [parameter]
    while queue:
        node = queue.pop()
        for user in _readers_of(node, propagation):
            if operator_of(user).moves and user.args[0] is node:
                with suppress(Unreadable):
                    moved[user] = _moved(Site(user, propagation.signals), moved[node])
                    queue.append(user)
    return {node: numbers for node, numbers in moved.items() if isinstance(numbers, Tensor)}


def _moved(site: Site, numbers: Tensor | Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """Element numbers after an operation that only moves elements."""
    if operator_of(site.node).is_a(Trait.CASTING):
        return numbers
    if operation_name(site.node.target) == "getitem":
        return numbers[site.integer(1)]
    return site.node.target(numbers, *site.plain(site.args[1:]))  # pyright: ignore[reportCallIssue]


def _readers_of(node: fx.Node, propagation: SymmetryPropagation) -> Iterator[fx.Node]:
    """The nodes that read a value and pass a gradient on."""
    for user in node.users:
        stops = operation_name(user.target) == "detach" and not propagation.through_detach
        if not stops and not operator_of(user).is_a(Trait.SHAPE_ONLY):
            yield user


def _reading(site: Site, weight: fx.Node) -> _Reading | None:
    """A product of a weight and one other tensor, if all that is summed over has both."""
    contraction = operator_of(site.node).contraction
    factors = [] if contraction is None else pytree.tree_leaves(site.args[contraction.factors])
    if contraction is None or len(factors) != 2 or factors.count(weight) != 1:
        return None
    terms, output = contraction.terms(site, [site.shape_of(factor) for factor in factors])
    own = factors.index(weight)
    mine, other = terms[own], terms[1 - own]
    inner = tuple(axis for axis in mine if axis not in output)
    repeated = any(len(set(term)) < len(term) for term in terms)
    apart = {axis for axis in mine + other if (axis in mine) == (axis in other)} != set(inner)
    return (
        None if repeated or apart or not inner else _Reading(site.node, weight, factors[1 - own], (mine, other), inner)
    )


def _alike(readings: Sequence[_Reading]) -> Iterator[list[_Reading]]:
    """Readings by the same rows of a parameter; nothing where rows overlap in part."""
    if any(reading.numbers is None for reading in readings):
        yield list(readings)
        return
    groups: defaultdict[bytes, list[_Reading]] = defaultdict(list)
    for reading in readings:
        rows = reading.rows
        groups[np.asarray(rows.shape).tobytes() + rows.tobytes()].append(reading)
    entries = [np.unique(group[0].rows) for group in groups.values()]
    if sum(map(len, entries)) == len(np.unique(np.concatenate([*entries, np.zeros(0, np.int64)]))):
        yield from groups.values()


@dataclass
class _Inputs:
    """Tensors as combinations of atoms, each computed once."""

    propagation: SymmetryPropagation
    known: dict[fx.Node, Combinations] = field(default_factory=dict)
    atoms: Iterator[int] = field(default_factory=lambda: count(ONE + 1))

    def cone(self, reading: _Reading) -> list[fx.Node]:
        """The product, and the nodes whose combination its vector is, each as often as it is read."""
        found, queue = [reading.node], [reading.vector]
        while queue and len(found) <= MOST:
            node, operator = (each := queue.pop()), operator_of(each)
            known = node in found or self._value(node) is not None
            found.append(node)
            queue += node.all_input_nodes if operator.combination and not operator.balance and not known else []
        return found

    def _value(self, node: fx.Node) -> Tensor | None:
        return Site(node, self.propagation.signals).value(node)

    def promising(self, reading: _Reading) -> bool:
        """Whether elements of a vector may depend on each other: not if it is of different tensors, moved and added."""
        cone = self.cone(reading)[1:]
        tied = len(set(cone)) < len(cone) or any(
            operator_of(node).balance or operator_of(node).movement is Movement.COPIED or self._value(node) is not None
            for node in cone
        )
        return tied and len(cone) < MOST and math.prod(_shape(self.propagation, reading.vector)) <= LARGEST

    def relations(self, readings: Sequence[_Reading]) -> Iterator[tuple[list[Relation], str]]:
        """Relations in what all of these read, by kind; those whose constant a bias can take back with its name."""
        if not all(map(self.promising, readings)):
            return
        rows = [
            (self.of(reading.vector), reading.elements(_shape(self.propagation, reading.vector)))
            for reading in readings
        ]
        plain = relations(rows) if rows else []
        kinds: defaultdict[bytes, list[Relation]] = defaultdict(list)
        for relation in plain:
            kinds[relation.weights.tobytes()].append(relation)
        yield from ((group, "") for group in kinds.values())
        bias = self._bias(readings)
        if bias is not None and len(constant := relations(rows, constant=True)) > len(plain):
            yield constant[:1], bias

    def _bias(self, readings: Sequence[_Reading]) -> str | None:
        """The trained bias that is added to a product, where it is used nowhere else."""
        contraction = operator_of(readings[0].node).contraction if len(readings) == 1 else None
        if contraction is None or contraction.bias is None:
            return None
        bias = Site(readings[0].node, self.propagation.signals).tensor(contraction.bias)
        name = None if bias is None or len(bias.users) > 1 else self.propagation.captured.parameters.get(bias.name)
        return None if name in self.propagation.frozen else name

    def of(self, node: fx.Node) -> Combinations:
        """The elements of a tensor."""
        if node not in self.known:
            with suppress(Unreadable):
                self.known[node] = self._combined(Site(node, self.propagation.signals))
        if node not in self.known:
            self.known[node] = self._free(math.prod(_shape(self.propagation, node)))
        return self.known[node]

    def _combined(self, site: Site) -> Combinations:
        operator, size = operator_of(site.node), math.prod(site.shape)
        value = site.value(site.node)
        if value is not None and not value.is_complex():
            return _one().through(csr_array(value.detach().double().reshape(-1, 1).numpy()))
        if operator.balance is not None and (slices := operator.balance(site)) is not None:
            return self._free(size, one=True).through(balanced(*slices))
        if operator.combination is None or site.node.op != "call_function" or size > LARGEST:
            raise Unreadable("nothing is known of it")
        summands = [
            (_one() if source is None else self.of(source)).through(matrix)
            for source, matrix in operator.combination(site)
        ]
        if not summands:
            raise Unreadable("nothing is known of it")
        total, *others = summands
        for other in others:
            total = total.plus(other)
        return total

    def _free(self, size: int, *, one: bool = False) -> Combinations:
        own = np.array([next(self.atoms) for _ in range(size)], np.int64)
        return Combinations.free(np.append(own, ONE) if one else own)


def _one() -> Combinations:
    """The number one."""
    return Combinations.free(np.array([ONE]))
