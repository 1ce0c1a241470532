"""What the `eps` of a normalisation does to a law that it breaks: the defect of T1, exactly.

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
from equipoise.graph.propagate import RANDOM, operation_name
from equipoise.laws.law import Law

Loss = Callable[[Any], Tensor]


def defects(
    laws: Sequence[Law], captured: Captured, parameters: Mapping[str, Tensor], inputs: Sequence[Tensor], loss: Loss
) -> dict[str, Float[Tensor, " units"]]:
    """What `law.identity` must be for each unit of each law that is not exact, by the name of the law; in one pass.

    Laws whose units are not those of the normalisations that they pass are left out: the shares cannot be told apart.
    So are all laws where the graph draws random numbers, which would not be those of the gradient.
    """
    if any(_draws(node) for node in captured.graph.nodes):
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
        return _SOFTENED[operation_name(node.target)](args, factor)

    constants = {name: weight.detach() for name, weight in parameters.items()}
    value = loss(captured.run(constants, *inputs, intercept=softened))
    slopes = torch.autograd.grad(value, list(logarithms.values()))
    return {name: -2 * slope for name, slope in zip(logarithms, slopes, strict=True)}


def _draws(node: fx.Node) -> bool:
    name = operation_name(node.target)
    idle = "dropout" in name and False in node.args[2:]
    return node.op == "call_function" and name in RANDOM and not idle


def _tellable(law: Law, nodes: Mapping[str, fx.Node]) -> bool:
    places = [nodes[place] for place, _ in law.interface.breaks]
    units = law.interface.blocks
    written = all(operation_name(node.target) in _SOFTENED for node in places)
    return written and (units == 1 or all(_units(node) == units for node in places))


def _units(node: fx.Node) -> int | None:
    """How many statistics a normalisation has for each example: channels or groups; None where it is not known."""
    name = operation_name(node.target)
    if name in ("_native_batch_norm_legit_functional", "instance_norm"):
        return int(node.args[0].meta["val"].shape[1])  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return int(node.args[1]) if name == "group_norm" else None  # pyright: ignore[reportArgumentType]


def _filled(args: tuple[Any, ...], *defaults: Any) -> tuple[Any, ...]:
    """Two arguments, and as many more as there are defaults for."""
    given = args[2 : 2 + len(defaults)]
    return (*args[:2], *given, *defaults[len(given) :])


def _scaled(x: Tensor, axes: list[int] | tuple[int, ...], eps: Tensor, *, centred: bool = True) -> Tensor:
    """`(x - mean) / √(var + eps)` over some axes."""
    middle = x - x.mean(axes, keepdim=True) if centred else x
    return middle / (middle.square().mean(axes, keepdim=True) + eps).sqrt()


def _layer_norm(args: tuple[Any, ...], factor: Tensor) -> Tensor:
    x, shape, gain, bias, eps = _filled(args, None, None, 1e-5)
    return _affine(_scaled(x, tuple(range(-len(shape), 0)), eps * factor), gain, bias)


def _rms_norm(args: tuple[Any, ...], factor: Tensor) -> Tensor:
    x, shape, gain, eps = _filled(args, None, None)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(_scaled(x, tuple(range(-len(shape), 0)), eps * factor, centred=False), gain, None)


def _batch_norm(args: tuple[Any, ...], factor: Tensor) -> tuple[Tensor, ...]:
    x, gain, bias, *_, eps = args[:8]
    axes = [axis for axis in range(x.ndim) if axis != 1]
    out = _scaled(x, axes, eps * _along_channels(factor, x))
    return (_affine(out, *(_along_channels(p, x) if p is not None else None for p in (gain, bias))), *[x[:0]] * 4)


def _instance_norm(args: tuple[Any, ...], factor: Tensor) -> Tensor:
    x, gain, bias, *_, eps, _ = args[:9]
    out = _scaled(x, tuple(range(2, x.ndim)), eps * _along_channels(factor, x))
    return _affine(out, *(_along_channels(p, x) if p is not None else None for p in (gain, bias)))


def _group_norm(args: tuple[Any, ...], factor: Tensor) -> Tensor:
    x, groups, gain, bias, eps = _filled(args, None, None, 1e-5)
    parted = x.reshape(x.shape[0], groups, -1)
    out = _scaled(parted, [2], eps * factor[:, None]).reshape(x.shape)
    return _affine(out, *(_along_channels(p, x) if p is not None else None for p in (gain, bias)))


def _added(args: tuple[Any, ...], factor: Tensor) -> Tensor:
    """The `eps` of a normalisation that is written out."""
    return args[0] + args[1] * factor


def _along_channels(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(1, -1, *([1] * (like.ndim - 2)))


def _affine(x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = x if gain is None else x * gain
    return scaled if bias is None else scaled + bias


_SOFTENED: dict[str, Callable[[tuple[Any, ...], Tensor], Any]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "_native_batch_norm_legit_functional": _batch_norm,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    "add": _added,
}
