"""From a captured model to its laws: walk, interfaces, commutants, names."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.graph.capture import Captured
from equipoise.graph.coverage import Coverage, coverage
from equipoise.graph.interface import Interface, Member, find_interfaces
from equipoise.graph.propagate import SymmetryPropagation
from equipoise.graph.shifts import InputShift, find_input_shifts, find_shifts
from equipoise.laws.commutant import Antisymmetric, Blocks, Commutant, ComplexPlanes, Diagonal, Full, Scalar, Shift
from equipoise.laws.law import Law, Parameters


@dataclass(frozen=True, eq=False)
class DerivationOptions:
    """Options of a derivation, besides the graph."""

    frozen: tuple[str, ...] = ()
    softmax: bool = False  # whether the loss takes the softmax of the output
    patterns: Mapping[str, Tensor] = field(default_factory=dict)
    references: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    through_detach: bool = False


def derive(captured: Captured, options: DerivationOptions) -> tuple[list[Law], Coverage]:
    """Every law of a captured model, and the coverage that proves none was guessed."""
    walk = SymmetryPropagation(captured, options.frozen, options.patterns, options.references, options.through_detach)
    shifts = find_input_shifts(walk)
    laws = [
        *laws_of(find_interfaces(walk)),
        *_shift_laws(find_shifts(walk, softmax=options.softmax)),
        *_input_shift_laws(shifts),
    ]
    exchanged = [(shift.member.parameter, shift.bias) for shift in shifts if shift.bias]
    return laws, coverage(walk).beside({name for law in laws for name in law.parameters}).exchanging(exchanged)


def laws_of(interfaces: Iterable[Interface]) -> list[Law]:
    """A law for each interface, under a name of its own."""
    interfaces = list(interfaces)
    names = _apart([_name(interface) for interface in interfaces])
    return [Law(name, each, commutant_of(each)) for name, each in zip(names, interfaces, strict=True)]


def _apart(names: Sequence[str]) -> list[str]:
    """Names, numbered where they repeat."""
    repeated, seen, found = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        found.append(name if repeated[name] == 1 else f"{name} #{seen[name]}")
    return found


def commutant_of(interface: Interface) -> Commutant:
    """The commutant of an interface of this structure."""
    blocks, width = interface.blocks, interface.width
    if interface.symmetry == "antisymmetric":
        return Antisymmetric(blocks, width)
    if interface.symmetry == "complex":
        return ComplexPlanes(blocks)
    if width > 1:
        return Full(width) if blocks == 1 else Blocks(blocks, width)
    together = blocks == 1 and any(member.index.shape[1] > 1 for member in interface.members)
    return Scalar() if together else Diagonal(blocks)


def _name(interface: Interface) -> str:
    turn = interface.symmetry == "antisymmetric"
    members = sorted(interface.members, key=lambda member: turn and len(member.view) < 2)  # vectors last, in any graph
    sides = ([member.label for member in members if member.degree * sign > 0] for sign in (1, -1))
    left, right = (_side(list(dict.fromkeys(labels))) for labels in sides)
    return f"{left} → {right}" if right else f"{'turn' if turn else 'scale'} of {left}"


def _side(names: Sequence[str]) -> str:
    """Weights before biases; long lists by their ends."""
    main = [name for name in names if not name.split("[")[0].endswith("bias")] or list(names)
    return " + ".join(main) if len(main) <= 3 else f"{main[0]} + … + {main[-1]} ({len(main)})"


def _shift_laws(members: Iterable[Member]) -> list[Law]:
    """One law for each module (its weight and bias share their groups), whichever of them is used first."""
    groups: dict[tuple, list[Member]] = defaultdict(list)
    for member in members:
        module = member.parameter.rpartition(".")[0] or member.parameter
        groups[module, tuple(member.index.shape), tuple(member.index.reshape(-1).tolist())].append(member)
    laws = []
    for unordered in groups.values():
        group = sorted(unordered, key=lambda member: member.parameter.endswith("bias"))
        blocks, _, width = group[0].index.shape
        columns = sum(_columns(member) for member in group)
        name = f"shift of {' + '.join(member.label for member in group)}"
        laws.append(Law(name, Interface(tuple(group), blocks, width), Shift(blocks, width, columns)))
    return laws


def _input_shift_laws(shifts: Iterable[InputShift]) -> list[Law]:
    """A law for each weight and kind of relation between what it reads."""
    members = [shift.member for shift in shifts if not shift.bias]
    names = _apart([f"shift of {member.label} along its input" for member in members])
    laws = []
    for name, member in zip(names, members, strict=True):
        blocks, _, width = member.index.shape
        laws.append(Law(name, Interface((member,), blocks, width), Shift(blocks, width, _columns(member))))
    return laws


def _columns(member: Member) -> int:
    """Sums that a member has for each group."""
    rest = [size for axis, size in enumerate(member.view) if axis not in member.axes]
    return int(torch.Size(rest).numel())


Side = str | tuple[str, int]
"""A parameter by name, and which of its axes carries the components if not the usual one."""


@dataclass(frozen=True)
class Between:
    """An interface stated by hand: rows of the producers and columns of the consumers carry the components in order.

    Another axis is given beside the name: keys read queries by their rows, `consumers=(("k.weight", 0),)`.

    >>> Between(producers=("0.weight", "0.bias"), consumers=("2.weight",), commutant=Diagonal(4)).commutant.count
    4
    """

    producers: tuple[Side, ...]
    consumers: tuple[Side, ...]
    commutant: Commutant

    def law(self, model: Parameters) -> Law:
        """The law it states, for the parameters of a model, or for parameters by name; only their shapes matter."""
        parameters = dict(model.named_parameters()) if isinstance(model, nn.Module) else model
        sides = [_placed(side, axis=0) for side in self.producers], [_placed(side, axis=1) for side in self.consumers]
        members = tuple(
            self._member(parameters, *place, degree)
            for places, degree in zip(sides, (1.0, -1.0), strict=True)
            for place in places
        )
        blocks, width = self.commutant.shape
        name = " → ".join(_side([parameter for parameter, _ in places]) for places in sides if places)
        return Law(name, Interface(members, blocks, width), self.commutant)

    def _member(self, parameters: Mapping[str, Tensor], name: str, axis: int, degree: float) -> Member:
        blocks, width = self.commutant.shape
        shape = tuple(parameters[name].shape) if name in parameters else ()
        if len(shape) <= axis or shape[axis] % (blocks * width):
            raise InputError(
                expected=f"a parameter whose axis {axis} carries {blocks * width} components",
                found=f"{name} of shape {shape}" if name in parameters else f"no parameter {name}",
                remedy="name parameters as model.named_parameters() does",
            )
        index = torch.arange(shape[axis]).reshape(blocks, width, -1).transpose(1, 2)
        return Member(name, shape, (axis,), index, degree)


def _placed(side: Side, axis: int) -> tuple[str, int]:
    return (side, axis) if isinstance(side, str) else side
