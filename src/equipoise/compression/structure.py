"""Hidden layers of a model: the modules that write a vector of channels, and all modules that read it.

Only what is certain is listed: `nn.Linear` and ungrouped convolutions that are called once, with operations between
them that leave every channel to itself. A residual stream, a concatenation or an attention head is none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx, nn

from equipoise.graph.capture import Captured

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_aten = torch.ops.aten
_MAPS = frozenset({_aten.linear.default, _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default})
_RECTIFIERS = frozenset({"relu", "leaky_relu"})
_LINEAR = frozenset({"clone", "alias", "contiguous", "dropout", "avg_pool1d", "avg_pool2d", "avg_pool3d"}) | {
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
}
_OTHER = frozenset(
    {"elu", "gelu", "silu", "tanh", "sigmoid", "softplus", "hardtanh", "hardswish", "hardsigmoid", "mish", "selu"}
    | {"celu", "relu6", "abs", "clamp", "clamp_min", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d"}
)
_SHAPING = frozenset({"view", "reshape", "flatten", "_unsafe_view"})

Kind = Literal["linear", "rectified", "other"]


@dataclass(frozen=True)
class Hidden:
    """Channels that one module writes and `readers` read, and nothing else.

    `kind` says what acts between: nothing but linear maps of each channel, a (leaky) ReLU and such maps, or other
    functions of each channel. `direct` is True if the readers read the very vector that is written, so that two
    linear layers are their product.
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
    return tuple(hidden for node in modules if (hidden := _hidden(node, modules, captured)) is not None)


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
    if node.target not in _MAPS:
        return None
    sources = [argument for argument in node.args[1:3] if isinstance(argument, fx.Node)]
    owners = {_owner(source, captured) if len(source.users) == 1 else None for source in sources}
    if len(owners) != 1 or (name := owners.pop()) is None:
        return None
    module = model.get_submodule(name)
    held = {f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)}
    own = type(module) in LAYERS and getattr(module, "groups", 1) == 1
    return name if own and held == {captured.parameters[source.name] for source in sources} else None


def _hidden(node: fx.Node, modules: dict[fx.Node, str], captured: Captured) -> Hidden | None:
    readers: list[str] = []
    between: list[str] = []
    if not _follow(node, _channel_axis(node), modules, captured, readers, between):
        return None
    rectifiers = [name for name in between if name in _RECTIFIERS]
    linear = all(name in _LINEAR or name in _RECTIFIERS or name in _SHAPING for name in between)
    kind: Kind = "other" if not linear or len(rectifiers) > 1 else "rectified" if rectifiers else "linear"
    direct = all(name in ("clone", "alias", "contiguous", "dropout") for name in between)
    return Hidden(modules[node], tuple(dict.fromkeys(readers)), kind, direct)


def _follow(
    node: fx.Node,
    axis: int,
    modules: dict[fx.Node, str],
    captured: Captured,
    readers: list[str],
    between: list[str],
) -> bool:
    """Collect all that reads the channels of a node; False if anything else than a layer does."""
    if node in captured.output or not _users(node):
        return False
    for user in _users(node):
        name = _operation(user)
        if user in modules and user.args[0] is node and _channel_axis(user, reading=True) == axis % _rank(node):
            readers.append(modules[user])
            continue
        if name in _SHAPING:
            flattened = _after_shaping(node, user, axis)
            if flattened is None:
                return False
            axis = flattened
        elif name not in _RECTIFIERS | _LINEAR | _OTHER or user.args[0] is not node:
            return False
        between.append(name)
        if not _follow(user, axis, modules, captured, readers, between):
            return False
    return True


def _after_shaping(node: fx.Node, user: fx.Node, axis: int) -> int | None:
    """The axis of the channels after positions were flattened into it, channel by channel; None for other shapes."""
    before, after = node.meta["val"].shape, user.meta["val"].shape
    axis %= len(before)
    if tuple(before) == tuple(after):
        return axis
    flattened = axis == 1 and len(after) == 2 and after[1] == before[1:].numel()
    return 1 if flattened else None


def _channel_axis(node: fx.Node, *, reading: bool = False) -> int:
    """The axis that a layer writes, or reads."""
    of = node.args[0] if reading else node
    assert isinstance(of, fx.Node)
    return _rank(of) - 1 if node.target is _aten.linear.default else 1


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].ndim)


def _users(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if _operation(user) not in ("sym_size",) and not _is_guard(user)]


def _is_guard(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__module__", "") == "math"


def _operation(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]
