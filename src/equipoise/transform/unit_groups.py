"""Units that may be exchanged or negated without changing the function, found in the graph (docs/theory.md, T9).

A permutation of neurons commutes with every map that acts on each of them alike, smooth ones included, and with a
normalisation over all of them. So the graph is read once more with all such maps in place of ReLU, for which the
propagation of symmetries finds the weights that each unit carries; units whose weights have the same structure form a
group. For signs only odd maps are so read. What is found is a candidate: `equipoise.transform.aligning` tries each on
the example.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Int64
from torch import Tensor

from equipoise.graph.capture import Captured
from equipoise.graph.interface import Member, find_interfaces
from equipoise.graph.propagate import SymmetryPropagation, operation_name
from equipoise.laws.custom_ops import declared
from equipoise.laws.derive import laws_of
from equipoise.laws.law import Law

Reference = Callable[..., object]
Places = Int64[Tensor, "units elements"]


@dataclass(frozen=True, eq=False)
class UnitSlices:
    """The elements of one tensor held by the units of a group: flat positions, one row a unit, in matching order."""

    name: str
    places: Places
    weighs: bool = True  # False for running statistics, which move along


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units of one structure, which a permutation exchanges."""

    name: str
    parts: tuple[UnitSlices, ...]

    @property
    def size(self) -> int:
        """How many units."""
        return len(self.parts[0].places)


def exchangeable(captured: Captured) -> list[UnitGroup]:
    """Groups of neurons and channels that a permutation may exchange; candidates.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    >>> [(group.name, group.size) for group in exchangeable(capture(model, torch.ones(2, 3)))]
    [('0.weight → 2.weight', 4)]
    """
    laws = [law for law in _laws(captured, _ALIKE) if law.interface.width == 1]
    return _grouped(laws, _running_statistics(captured))


def negatable(captured: Captured) -> list[UnitGroup]:
    """Groups of units each of which a sign may be taken from, and given to what reads it; candidates."""
    laws = _laws(captured, {**dict.fromkeys(_EVEN, _held), **dict.fromkeys(_ODD, _alike), **_NORMS})
    found = []
    for law in laws:
        odd = [member for member in law.interface.members if member.degree % 2 == 1]
        if law.interface.width == 1 and odd:
            parts = [UnitSlices(member.parameter, _places(member)) for member in odd]
            found.append(UnitGroup(law.name, tuple(parts)))
    return found


def rotatable(captured: Captured) -> list[Law]:
    """The laws under which matrices act: orthogonal ones leave the function and the norm alone."""
    return [law for law in _laws(captured, {}) if law.interface.width > 1]


def heads(laws: Sequence[Law]) -> list[tuple[Law, ...]]:
    """Laws whose blocks, such as heads, a permutation may exchange: neighbours in the graph jointly, or one alone."""
    several = [law for law in laws if law.interface.blocks > 1]
    return [
        *(pair for pair in pairwise(several) if pair[0].interface.blocks == pair[1].interface.blocks),
        *((law,) for law in several),
    ]


# Reading the graph ----------------------------------------------------------------------------------------------------

_ODD = ["tanh", "erf", "sin", "atan", "hardtanh", "softsign", "asinh"]
_EVEN = ["gelu", "silu", "sigmoid", "softplus", "elu", "selu", "celu", "mish", "hardswish", "hardsigmoid", "logsigmoid"]
_EVEN += ["log_sigmoid_forward", "relu6", "exp", "cos", "relu", "leaky_relu", "prelu", "clamp", "clamp_min"]


def _alike(x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """A map that acts on each element alike, as one whose symmetry is known."""
    return x.abs()


def _held(x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """A map that keeps no sign."""
    return x.log2()


def _layer_norm(x: Tensor, shape: Sequence[int], gain: Tensor | None = None, bias: Tensor | None = None, *_: object):
    return _affine(x.abs(), gain, bias)


def _rms_norm(x: Tensor, shape: Sequence[int], gain: Tensor | None = None, *_: object):
    return _affine(x.abs(), gain, None)


def _batch_norm(x: Tensor, gain: Tensor | None, bias: Tensor | None, *_: object):
    along = [1, -1, *[1] * (x.ndim - 2)]
    out = _affine(x.abs(), *(each if each is None else each.reshape(along) for each in (gain, bias)))
    return out, *[torch.zeros(1)] * 4


def _affine(x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if gain is None else x * gain
    return x if bias is None else x + bias


_NORMS: dict[str, Reference] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "_native_batch_norm_legit_functional": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
}
_ALIKE: dict[str, Reference] = {**dict.fromkeys(_ODD + _EVEN, _alike), **_NORMS}
_ROOTS = ("sqrt", "rsqrt")  # of a statistic over the units, where a normalisation is written out


def _laws(captured: Captured, references: Mapping[str, Reference]) -> list[Law]:
    read = _without_roots(captured) if references else captured
    return laws_of(find_interfaces(SymmetryPropagation(read, (), {}, {**declared(), **references})))


def _without_roots(captured: Captured) -> Captured:
    """The graph with ones in place of roots of means: scales that a permutation of the units leaves alone."""
    graph = torch.fx.Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    graph.output(graph.graph_copy(captured.graph, copied))
    for node in list(graph.nodes):
        if operation_name(node.target) in _ROOTS and _takes_a_mean(node):
            with graph.inserting_before(node):
                one = graph.call_function(torch.ops.aten.ones.default, ([],))
                one.meta["val"] = torch.ones(())
            node.replace_all_uses_with(one)
    graph.eliminate_dead_code()
    return replace(captured, module=torch.fx.GraphModule(captured.module, graph))


def _takes_a_mean(node: torch.fx.Node) -> bool:
    queue = list(node.all_input_nodes)
    for _ in range(4):  # rsqrt ← add eps ← mean ← pow
        names = [operation_name(each.target) for each in queue]
        if "mean" in names or "var" in names:
            return True
        queue = [source for each in queue for source in each.all_input_nodes]
    return False


def _running_statistics(captured: Captured) -> dict[str, list[str]]:
    """The running means and variances that belong to each gain, by parameter."""
    found: dict[str, list[str]] = {}
    for node in captured.graph.nodes:
        if "batch_norm" in operation_name(node.target) and len(node.args) > 4:
            _, gain, _, *statistics = node.args[:5]
            if isinstance(gain, torch.fx.Node) and gain.name in captured.parameters:
                names = [captured.buffers.get(each.name) for each in statistics if isinstance(each, torch.fx.Node)]
                found[captured.parameters[gain.name]] = [name for name in names if name]
    return found


# Units ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Piece:
    """The elements of one parameter that a block of a law holds: flat positions, and its place among the laws."""

    slot: tuple[int, int, int, tuple[int, ...]]  # law, member, count, and which of the stacked matrices
    name: str
    places: Int64[Tensor, " elements"]

    @property
    def key(self) -> tuple[str, bytes]:
        """The parameter and the set of positions: equal for two laws that mean the same weights."""
        return self.name, self.places.sort().values.numpy().tobytes()


def _places(member: Member) -> Places:
    """The flat positions in a parameter of the slices of each block, in the order of copies and components."""
    shape = torch.Size(member.view)
    numbers = torch.arange(shape.numel(), dtype=torch.float64).reshape(shape)
    return member.slices(numbers).flatten(1).long()


def _grouped(laws: Sequence[Law], statistics: Mapping[str, list[str]]) -> list[UnitGroup]:
    """Blocks that hold the same positions are one unit; units of the same structure form a group."""
    blocks = [list(_pieces(number, law)) for number, law in enumerate(laws)]
    held = [pieces for each in blocks for pieces in each]
    parent, owner = list(range(len(held))), dict[tuple[str, bytes], int]()
    for number, pieces in enumerate(held):
        for piece in pieces:
            _join(parent, number, owner.setdefault(piece.key, number))
    units: dict[int, dict[tuple[str, bytes], Piece]] = defaultdict(dict)
    for number, pieces in enumerate(held):
        for piece in pieces:
            units[_root(parent, number)].setdefault(piece.key, piece)
    groups: dict[tuple[object, ...], list[list[Piece]]] = defaultdict(list)
    for unit in units.values():
        groups[tuple(piece.slot for piece in unit.values())].append(list(unit.values()))
    return [_group(laws, members, statistics) for members in groups.values() if len(members) > 1]


def _pieces(number: int, law: Law) -> Iterator[list[Piece]]:
    members = [(place, member, _places(member)) for place, member in enumerate(law.interface.members)]
    for block in range(law.interface.blocks):
        yield [
            Piece((number, place, places.shape[1], _context(member, block)), member.parameter, places[block])
            for place, member, places in members
        ]


def _group(laws: Sequence[Law], units: list[list[Piece]], statistics: Mapping[str, list[str]]) -> UnitGroup:
    parts = []
    for slot, first in enumerate(units[0]):
        places = torch.stack([unit[slot].places for unit in units])
        parts.append(UnitSlices(first.name, places))
        parts += [UnitSlices(buffer, places, weighs=False) for buffer in statistics.get(first.name, [])]
    return UnitGroup(laws[units[0][0].slot[0]].name, tuple(parts))


def _context(member: Member, block: int) -> tuple[int, ...]:
    """Which of the stacked matrices of a parameter (groups of a convolution, heads) the slices of a block lie in.

    Units of different ones cannot be exchanged, unless each matrix belongs to one unit as in a depthwise convolution.
    """
    width = member.view[member.axes[-1]]
    if len(member.axes) == 1 or width == 1:
        return ()
    return tuple((member.index[block] // width).flatten().tolist())


def _join(parent: list[int], left: int, right: int) -> None:
    parent[_root(parent, left)] = _root(parent, right)


def _root(parent: list[int], unit: int) -> int:
    while parent[unit] != unit:
        parent[unit] = parent[parent[unit]]
        unit = parent[unit]
    return unit
