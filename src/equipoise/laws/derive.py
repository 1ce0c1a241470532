"""From a model to its laws: capture, walk, interfaces, commutants."""

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from equipoise.errors import InputError
from equipoise.graph.capture import Inputs, capture
from equipoise.graph.coverage import coverage
from equipoise.graph.interface import Interface, find_interfaces
from equipoise.graph.walk import Walk
from equipoise.laws.commutant import Antisymmetric, Blocks, Commutant, Diagonal, Full, Scalar
from equipoise.laws.law import Law, Laws


def invariances(model: nn.Module, example_inputs: Inputs) -> Laws:
    """Every law that gradient flow on `model` obeys, for every data set and every loss of the outputs (THEORY T1, T2).

    `example_inputs` is a tensor, a sequence of arguments or a mapping of keywords; only its shapes matter. Raises
    `CaptureError` if the model cannot be read, `InputError` for complex parameters.

    >>> import torch
    >>> from equipoise.networks import mlp
    >>> print(invariances(mlp([4, 3, 2, 1], linear_tail=2), torch.ones(5, 4).double()))
    layer1.weight → layer2.weight: vertex, 3 conserved
    layer2.weight → layer3.weight: linear, 3 conserved
    """
    _refuse_complex(model)
    captured = capture(model, example_inputs)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    walk = Walk(captured, frozen)
    return Laws(tuple(laws_of(find_interfaces(walk))), coverage(walk, frozen), captured)


def laws_of(interfaces: Iterable[Interface]) -> list[Law]:
    """A law for each interface, under a name of its own."""
    interfaces = list(interfaces)
    names = [_name(interface) for interface in interfaces]
    repeated, seen = Counter(names), Counter[str]()
    laws = []
    for name, interface in zip(names, interfaces, strict=True):
        seen[name] += 1
        unique = name if repeated[name] == 1 else f"{name} #{seen[name]}"
        laws.append(Law(unique, interface, commutant_of(interface)))
    return laws


def commutant_of(interface: Interface) -> Commutant:
    """The commutant that the structure of an interface stands for."""
    blocks, width = interface.blocks, interface.width
    if interface.skew:
        return Antisymmetric(blocks, width)
    if width > 1:
        return Full(width) if blocks == 1 else Blocks(blocks, width)
    together = blocks == 1 and any(member.index.shape[1] > 1 for member in interface.members)
    return Scalar() if together else Diagonal(blocks)


def _name(interface: Interface) -> str:
    sides = ([member.label for member in interface.members if member.degree * sign > 0] for sign in (1, -1))
    left, right = (_side(list(dict.fromkeys(labels))) for labels in sides)
    return f"{left} → {right}" if right else f"scale of {left}"


def _side(names: Sequence[str]) -> str:
    """Weights before biases; long lists by their ends."""
    main = [name for name in names if not name.split("[")[0].endswith("bias")] or list(names)
    return " + ".join(main) if len(main) <= 3 else f"{main[0]} + … + {main[-1]} ({len(main)})"


def _refuse_complex(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise InputError(
                expected="real parameters",
                found=f"{name} of dtype {parameter.dtype}",
                remedy="write it as its real and imaginary parts",
            )
