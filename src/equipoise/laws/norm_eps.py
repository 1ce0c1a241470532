"""The bias of a law that the `eps` of a normalisation breaks: the defect of T1, exactly.

A loss that does not change under `w → e^t w` for `eps = 0` does not change under `w → e^t w, eps → e^{2t} eps` for any
`eps`. Hence `⟨w, G_w⟩ = -2 eps ∂L/∂eps`; for BatchNorm this is `eps/(σ² + eps) · γ G_γ` for each channel (T2). Where
rows of a table are normalised each by itself, a row's share is that of the slices that are this row.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from equipoise.graph.capture import Captured
from equipoise.graph.ops import operation_name, operator_of
from equipoise.graph.ops.operator import Movement, Trait
from equipoise.laws.law import Law

Loss = Callable[[Any], Tensor]


def defects(
    laws: Sequence[Law], captured: Captured, parameters: Mapping[str, Tensor], inputs: Sequence[Tensor], loss: Loss
) -> dict[str, Float[Tensor, " units"]]:
    """The value that `law.identity` must have for each unit of each law that is not exact, by name; in one pass.

    Laws whose units are not those of the normalisations that they pass are left out: their shares cannot be separated.
    So are all laws where the graph draws random numbers, which would not be those of the gradient.
    """
    if any(operator_of(node).draws(node) for node in captured.graph.nodes):
        return {}
    nodes = {node.name: node for node in captured.graph.nodes}
    known = [law for law in laws if not law.exact and _separable(law, captured, nodes)]
    if not known:
        return {}
    tables = {law.name: _unit_of_row(law) for law in known if _by_row(law, captured, nodes)}
    like = next(iter(parameters.values()))
    logarithms = {law.name: like.new_zeros(law.interface.blocks).requires_grad_() for law in known}
    passing: dict[str, list[str]] = defaultdict(list)
    for law in known:
        for place, _ in law.interface.breaks:
            passing[place].append(law.name)
    rows = _Rows(captured)

    def softened(node: fx.Node, args: tuple[Any, ...]) -> Any:
        rows.follow(node, args)
        if node.name not in passing:
            return NotImplemented
        by_row = [name for name in passing[node.name] if name in tables]
        shares = [logarithms[name] for name in passing[node.name] if name not in tables]
        shares += [logarithms[name][tables[name][rows.read(node)]] for name in by_row]
        factor = torch.stack(torch.broadcast_tensors(*shares)).sum(0).exp()
        eps = operator_of(node).eps
        assert eps is not None
        assert eps.compute is not None
        return eps.compute(args, factor)

    constants = {name: weight.detach() for name, weight in parameters.items()}
    value = loss(captured.run(constants, *inputs, intercept=softened))
    slopes = torch.autograd.grad(value, list(logarithms.values()))
    return {name: -2 * slope for name, slope in zip(logarithms, slopes, strict=True)}


def _separable(law: Law, captured: Captured, nodes: Mapping[str, fx.Node]) -> bool:
    places, units = [nodes[place] for place, _ in law.interface.breaks], law.interface.blocks
    eps = [operator_of(node).eps for node in places]
    written = all(each is not None and each.compute is not None for each in eps)
    by_unit = units == 1 or all(_units(node) == units for node in places)
    return written and (by_unit or _by_row(law, captured, nodes))


def _units(node: fx.Node) -> int | None:
    """How many statistics a normalisation has for each example: channels or groups; None where it is not known."""
    eps = operator_of(node).eps
    return None if eps is None or eps.units is None else eps.units(node)


# Rows of a table ------------------------------------------------------------------------------------------------------


def _by_row(law: Law, captured: Captured, nodes: Mapping[str, fx.Node]) -> bool:
    """Whether its units are rows of one parameter, and each normalisation that it passes reads rows of this one."""
    member, *others = law.interface.members
    units = law.interface.blocks
    rows = not others and len(member.view) == 2 and member.axes == (0,) and member.index.numel() == units > 1
    tables = {_table_read(nodes[place]) for place, _ in law.interface.breaks}
    return rows and {None if each is None else captured.parameters.get(each.name) for each in tables} == {
        member.parameter
    }


def _unit_of_row(law: Law) -> Tensor:
    """The number of the unit that each row of a table is."""
    (member,) = law.interface.members
    places = member.index.reshape(-1)
    units = torch.zeros(member.view[0], dtype=torch.long)
    units[places.cpu()] = torch.arange(len(places))
    return units


def _table_read(norm: fx.Node) -> fx.Node | None:
    """The table of which a node normalises rows, if each of these is one."""
    node = norm.args[0]
    while isinstance(node, fx.Node) and _keeps_rows(node):
        node = node.args[0]
    table = node.args[0] if isinstance(node, fx.Node) and operation_name(node.target) == "embedding" else None
    sliced = operator_of(norm).is_a(Trait.SLICEWISE) and len(norm.args[1]) == 1  # pyright: ignore[reportArgumentType]
    return table if sliced and isinstance(table, fx.Node) else None


def _keeps_rows(node: fx.Node) -> bool:
    """Whether a node moves elements, or converts them."""
    operator = operator_of(node)
    return operator.movement in (Movement.ORDERED, Movement.DROPPED) or operator.is_a(Trait.CASTING)


class _Rows:
    """The number of the row that each element is of, followed through a graph as it runs."""

    def __init__(self, captured: Captured):
        self.numbers: dict[fx.Node, Any] = {}
        norms = [node for node in captured.graph.nodes if operator_of(node).is_a(Trait.SLICEWISE)]
        self.followed = {node for norm in norms if _table_read(norm) is not None for node in _path(norm)}

    def follow(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Take the numbers through a node that is about to run."""
        if node not in self.followed:
            return
        if operation_name(node.target) == "embedding":
            table, places = args[:2]
            self.numbers[node] = places.unsqueeze(-1).expand(*places.shape, table.shape[-1])
        elif operator_of(node).movement in (Movement.ORDERED, Movement.DROPPED):
            moved: Any = node.target
            self.numbers[node] = moved(self.numbers[node.args[0]], *args[1:], **node.kwargs)  # pyright: ignore[reportArgumentType]
        else:
            self.numbers[node] = self.numbers[node.args[0]]  # pyright: ignore[reportArgumentType]

    def read(self, norm: fx.Node) -> Tensor:
        """The number of the row that each slice is of."""
        return self.numbers[norm.args[0]][..., :1]  # pyright: ignore[reportArgumentType]


def _path(norm: fx.Node) -> list[fx.Node]:
    """The nodes between a table and what normalises its rows."""
    path: list[Any] = [norm.args[0]]
    while _keeps_rows(path[-1]):
        path.append(path[-1].args[0])
    return path
