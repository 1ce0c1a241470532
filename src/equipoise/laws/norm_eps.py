"""The bias of a law that the `eps` of a normalisation breaks: the defect of T1, exactly.

A loss that does not change under `w → e^t w` for `eps = 0` does not change under `w → e^t w, eps → e^{2t} eps` for any
`eps`. Hence `⟨w, G_w⟩ = -2 eps ∂L/∂eps`; for BatchNorm this is `eps/(σ² + eps) · γ G_γ` for each channel (T2).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from equipoise.graph.capture import Captured
from equipoise.graph.ops import operator_of
from equipoise.laws.law import Law

Loss = Callable[[Any], Tensor]


def defects(
    laws: Sequence[Law], captured: Captured, parameters: Mapping[str, Tensor], inputs: Sequence[Tensor], loss: Loss
) -> dict[str, Float[Tensor, " units"]]:
    """The value that `law.identity` must have for each unit of each law that is not exact, by name; in one pass.

    Laws whose units are not those of the normalisations that they pass are left out: the shares cannot be told apart.
    So are all laws where the graph draws random numbers, which would not be those of the gradient.
    """
    if any(operator_of(node).draws(node) for node in captured.graph.nodes):
        return {}
    nodes = {node.name: node for node in captured.graph.nodes}
    known = [law for law in laws if not law.exact and _tellable(law, nodes)]
    if not known:
        return {}
    like = next(iter(parameters.values()))
    logarithms = {law.name: like.new_zeros(law.interface.blocks).requires_grad_() for law in known}
    passing: dict[str, list[Tensor]] = defaultdict(list)
    for law in known:
        for place, _ in law.interface.breaks:
            passing[place].append(logarithms[law.name])

    def softened(node: fx.Node, args: tuple[Any, ...]) -> Any:
        if node.name not in passing:
            return NotImplemented
        factor = torch.stack(torch.broadcast_tensors(*passing[node.name])).sum(0).exp()
        eps = operator_of(node).eps
        assert eps is not None
        assert eps.compute is not None
        return eps.compute(args, factor)

    constants = {name: weight.detach() for name, weight in parameters.items()}
    value = loss(captured.run(constants, *inputs, intercept=softened))
    slopes = torch.autograd.grad(value, list(logarithms.values()))
    return {name: -2 * slope for name, slope in zip(logarithms, slopes, strict=True)}


def _tellable(law: Law, nodes: Mapping[str, fx.Node]) -> bool:
    places, units = [nodes[place] for place, _ in law.interface.breaks], law.interface.blocks
    eps = [operator_of(node).eps for node in places]
    written = all(each is not None and each.compute is not None for each in eps)
    return written and (units == 1 or all(_units(node) == units for node in places))


def _units(node: fx.Node) -> int | None:
    """How many statistics a normalisation has for each example: channels or groups; None where it is not known."""
    eps = operator_of(node).eps
    return None if eps is None or eps.units is None else eps.units(node)
