"""Hidden layers of a model: the modules that write a vector of channels, and all modules that read it.

Only what is certain is listed: `nn.Linear` and ungrouped convolutions that are called once, with operations between
them that leave every channel to itself. A residual stream, a concatenation or an attention head is none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn

from equipoise.graph.capture import Captured
from equipoise.graph.chain import LINEAR_MAPS, channel_axis, own_layer
from equipoise.graph.ops.operator import Movement, Trait, operation_name, operator_of
from equipoise.graph.piecewise import Rectifier

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Kind = Literal["linear", "rectified", "other"]


@dataclass(frozen=True)
class Hidden:
    """Channels that one module writes and `readers` read, and nothing else.

    `kind` says what acts between: nothing but linear maps of each channel, one (leaky) ReLU or absolute value and such
    maps, or other functions of each channel. `direct` is True if the readers read the very vector that is written, so
    that two linear layers are their product.
    """

    writer: str
    readers: tuple[str, ...]
    kind: Kind
    direct: bool

    @property
    def name(self) -> str:
        """Writer and readers."""
        return f"{self.writer} → {', '.join(self.readers)}"


def hidden_layers(model: nn.Module, captured: Captured) -> tuple[Hidden, ...]:
    """Every hidden layer whose writer and readers are modules of their own, in execution order.

    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Linear(2, 1))
    >>> [(hidden.name, hidden.kind) for hidden in hidden_layers(model, capture(model, torch.ones(5, 3)))]
    [('0 → 2', 'rectified'), ('2 → 3', 'linear')]
    """
    modules = {node: name for node in captured.graph.nodes if (name := _module(node, model, captured)) is not None}
    found = (_hidden(node, modules, captured) for node in modules)
    return tuple(each for each in found if each is not None and all(map(Tensor.numel, _own(model, each.writer))))


def _own(model: nn.Module, name: str) -> Iterator[Tensor]:
    return model.get_submodule(name).parameters(recurse=False)


def normalisations(model: nn.Module, captured: Captured) -> tuple[tuple[str, str], ...]:
    """Pairs of a layer and the batch normalisation that alone reads it.

    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    >>> normalisations(model, capture(model, torch.ones(5, 3)))
    (('0', '1'),)
    """
    return tuple(_normalisations(model, captured))


def _normalisations(model: nn.Module, captured: Captured) -> Iterator[tuple[str, str]]:
    for node in captured.graph.nodes:
        layer, users = _module(node, model, captured), _users(node)
        if layer is not None and len(users) == 1 and "batch_norm" in str(users[0].target):
            owners = {_owner(source, captured) for source in users[0].all_input_nodes[1:]} - {None}
            if len(owners) == 1 and (norm := owners.pop()) and _is_plain_norm(model, norm):
                yield layer, norm


def _is_plain_norm(model: nn.Module, name: str) -> bool:
    norm = model.get_submodule(name)
    known = isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    return known and norm.track_running_stats and not norm.training


def _owner(node: fx.Node, captured: Captured) -> str | None:
    """The module that holds a parameter or a buffer."""
    name = captured.parameters.get(node.name) or captured.buffers.get(node.name)
    return name.rpartition(".")[0] if name else None


def _module(node: fx.Node, model: nn.Module, captured: Captured) -> str | None:
    """The module that a node computes, if it is a layer that is called once with parameters of its own."""
    if operation_name(node.target) not in LINEAR_MAPS or (own := own_layer(captured, node)) is None:
        return None
    name = own.weight.rpartition(".")[0]
    module = model.get_submodule(name)
    held = {f"{name}.{each}" if name else each for each, _ in module.named_parameters(recurse=False)}
    plain = type(module) in LAYERS and getattr(module, "groups", 1) == 1
    return name if plain and held == {own.weight, own.bias} - {None} else None


def _hidden(node: fx.Node, modules: dict[fx.Node, str], captured: Captured) -> Hidden | None:
    readers: list[str] = []
    between: list[fx.Node] = []
    if not _follow(node, channel_axis(node) % _rank(node), modules, captured, readers, between):
        return None
    rectifiers = [each for each in between if _is_rectifier(each)]
    linear = all(operator_of(each).linear or each in rectifiers for each in between)
    kind: Kind = "other" if not linear or len(rectifiers) > 1 else "rectified" if rectifiers else "linear"
    direct = all(operator_of(each).passes and _shape(each) == _shape(each.args[0]) for each in between)
    return Hidden(modules[node], tuple(dict.fromkeys(readers)), kind, direct)


def _is_rectifier(node: fx.Node) -> bool:
    piecewise = operator_of(node).piecewise
    return piecewise is not None and isinstance(piecewise(node), Rectifier)


def _follow(
    node: fx.Node,
    axis: int,
    modules: dict[fx.Node, str],
    captured: Captured,
    readers: list[str],
    between: list[fx.Node],
) -> bool:
    """Collect all that reads the channels of a node, along an axis; False if anything else than a layer does."""
    if node in captured.output or not _users(node):
        return False
    for user in _users(node):
        if user in modules and user.args[0] is node and channel_axis(user) % _rank(node) == axis:
            readers.append(modules[user])
            continue
        further = _passed_on(node, user, axis)
        if further is None:
            return False
        between.append(user)
        if not _follow(user, further, modules, captured, readers, between):
            return False
    return True


def _passed_on(node: fx.Node, user: fx.Node, axis: int) -> int | None:
    """The axis of the channels behind an operation that leaves each to itself; None if it does not.

    Positions may be flattened into it, channel by channel.
    """
    operator = operator_of(user)
    if user.args[0] is not node:
        return None
    if operator.movement is Movement.ORDERED and not operator.is_a(Trait.CASTING):
        before, after = _shape(node), _shape(user)
        if before == after:
            return axis
        flattened = axis == 1 and len(after) == 2 and after[1] == before[1:].numel()
        return 1 if flattened else None
    if operator.is_a(Trait.POOLING):  # of the last axes, which are the positions behind a convolution
        pooled = operation_name(user.target)[-2:]
        return axis if axis == 1 and pooled == f"{_rank(node) - 2}d" else None
    return axis if operator.is_a(Trait.CHANNELWISE | Trait.ELEMENTWISE) else None


def _shape(node: object) -> torch.Size:
    assert isinstance(node, fx.Node)
    return node.meta["val"].shape


def _rank(node: fx.Node) -> int:
    return len(_shape(node))


def _users(node: fx.Node) -> list[fx.Node]:
    """The operations that read values of a node, rather than its size."""
    return [user for user in node.users if not operator_of(user).is_a(Trait.SHAPE_ONLY)]
