"""Normalisations: they absorb the scale of what they read (exactly only for `eps = 0`); their gain is a producer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from numpy import ndarray
from torch import Tensor, fx

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.shift_groups import Groups, Rows, along, dense, spread
from equipoise.graph.labels.signal import Signal
from equipoise.graph.ops import rules
from equipoise.graph.ops.arithmetic import add, multiply
from equipoise.graph.ops.operator import (
    Eps,
    IgnoringRule,
    Operator,
    Regularity,
    ShiftRule,
    Site,
    Sources,
    SymmetryRule,
    Trait,
    declare,
    element_numbers,
)

# Symmetries -----------------------------------------------------------------------------------------------------------


def _normalised(
    algebra: Algebra, x: Signal, axes: Sequence[int], gain: Signal | None, bias: Signal | None, eps: float | int
) -> Signal:
    if gain is None:
        algebra.turns(x, axes)
    for role in algebra.diagonal(x).roles:
        algebra.absorb(algebra.uniform(role, axes), eps)
    out = Signal(x.shape)
    out = out if gain is None else multiply(algebra, out, gain)
    return out if bias is None else add(algebra, out, bias)


def layer_norm(
    algebra: Algebra,
    x: Signal,
    shape: Sequence[int],
    gain: Signal | None = None,
    bias: Signal | None = None,
    eps: float | int = 1e-5,
    *args: object,
) -> Signal:
    """Over the last axes."""
    return _normalised(algebra, x, range(x.ndim - len(shape), x.ndim), gain, bias, eps)


def rms_norm(
    algebra: Algebra, x: Signal, shape: Sequence[int], gain: Signal | None = None, eps: float | int | None = None
) -> Signal:
    """Over the last axes, without centring."""
    return _normalised(algebra, x, range(x.ndim - len(shape), x.ndim), gain, None, 1e-7 if eps is None else eps)


def group_norm(
    algebra: Algebra,
    x: Signal,
    groups: int,
    gain: Signal | None = None,
    bias: Signal | None = None,
    eps: float | int = 1e-5,
    *args: object,
) -> Signal:
    """Over the channels and positions of each group."""
    batch, channels, *spatial = x.shape
    parted = (batch, groups, channels // groups, *spatial)
    grouped = Signal(parted, tuple(role.moved(lambda labels: labels.reshape(parted)) for role in x.roles))
    _normalised(algebra, grouped, range(2, len(parted)), None, None, eps)
    return _channelwise(algebra, x, gain, bias)


def batch_norm_fixed(algebra: Algebra, x: Signal, gain: Signal | None, bias: Signal | None, *args: object) -> Signal:
    """Running statistics are constants: shifting by them pins the input."""
    algebra.still(x)
    return _channelwise(algebra, x, gain, bias)


def _by_channel(axes: Callable[[int], Sequence[int]]) -> SymmetryRule:
    """Over these of a number of axes, with statistics of its own; with running ones a fixed affine map."""

    def rule(
        algebra: Algebra,
        x: Signal,
        gain: Signal | None,
        bias: Signal | None,
        mean: object,
        var: object,
        own: object,
        momentum: float | int,
        eps: float | int,
        *args: object,
    ) -> Signal:
        if not own:
            return batch_norm_fixed(algebra, x, gain, bias)
        _normalised(algebra, x, axes(x.ndim), None, None, eps)
        return _channelwise(algebra, x, gain, bias)

    return rule


def _channelwise(algebra: Algebra, x: Signal, gain: Signal | None, bias: Signal | None) -> Signal:
    """Gain and bias along axis 1."""
    out = Signal(x.shape)
    for parameter, apply in ((gain, multiply), (bias, add)):
        if parameter is not None:
            shape = (-1, *([1] * (x.ndim - 2)))
            roles = tuple(role.moved(lambda labels, shape=shape: labels.reshape(shape)) for role in parameter.roles)
            column = Signal((parameter.shape[0], *([1] * (x.ndim - 2))), roles, None, parameter.weights)
            out = apply(algebra, out, column)
    return out


def weight_norm(algebra: Algebra, direction: Signal, gain: Signal, dim: int = 0) -> Signal:
    """`g v / ‖v‖`, row by row: the direction's scale is absorbed exactly."""
    axes = [axis for axis in range(direction.ndim) if axis != dim]
    roles = algebra.diagonal(direction).roles
    rows = next((role for role in roles if role.varies(dim)), roles[0] if roles else None)
    for role in roles:
        if role is rows:
            algebra.absorb(algebra.uniform(role, axes), 0)
        else:  # rows already have every scale that is absorbed
            algebra.pin(role)
    return multiply(algebra, Signal(direction.shape, (), None, direction.weights), gain)


# Shifts ---------------------------------------------------------------------------------------------------------------


def _ignored_over_last_axes(site: Site) -> Sources:
    source = site.source()
    yield source, along(site.shape_of(source), range(-len(site.integers(1)), 0))


def _ignored_in_groups(site: Site) -> Sources:
    source, count = site.source(), site.integer(1)
    shape = site.shape_of(source)
    parted = (shape[0], count, shape[1] // count, *shape[2:])
    yield source, along(parted, range(2, len(parted))).reshape(shape)


def _ignored_over(axes: Callable[[int], Sequence[int]]) -> IgnoringRule:
    """With statistics of its own; running ones are constants."""

    def rule(site: Site) -> Sources:
        source = site.source()
        if site.args[5]:
            shape = site.shape_of(source)
            yield source, along(shape, axes(len(shape)))

    return rule


def _shift_of_bias(place: int, *, by_channel: bool) -> ShiftRule:
    """The bias of a normalisation, of the shape of the last axes or of the channels."""

    def rule(site: Site, groups: Groups | Rows) -> Sources:
        bias, labels = site.tensor(place), dense(groups, site.shape)
        if bias is None or labels is None:
            return
        shape = site.shape_of(bias)
        column = (shape[0], *([1] * (len(site.shape) - 2))) if by_channel else shape
        found = dense(spread(labels, column, site.shape), column)
        yield bias, None if found is None else found.reshape(shape)

    return rule


# Balances -------------------------------------------------------------------------------------------------------------


def _centred_over_last_axes(site: Site) -> tuple[ndarray, float] | None:
    """Without gain and bias each slice sums to zero."""
    if site.tensor(2) is not None or site.tensor(3) is not None:
        return None
    width = math.prod(site.integers(1))
    return element_numbers(site.shape).reshape(-1, width).numpy(), 0.0


def _centred_in_groups(site: Site) -> tuple[ndarray, float] | None:
    if site.tensor(2) is not None or site.tensor(3) is not None:
        return None
    return element_numbers(site.shape).reshape(site.shape[0] * site.integer(1), -1).numpy(), 0.0


# The operations with another eps --------------------------------------------------------------------------------------


def _filled(args: Sequence[object], *defaults: object) -> list[object]:
    """Two arguments, and as many more as there are defaults for."""
    given = args[2 : 2 + len(defaults)]
    return [*args[:2], *given, *defaults[len(given) :]]


def _scaled(x: Tensor, axes: Sequence[int], eps: Tensor, *, centred: bool = True) -> Tensor:
    """`(x - mean) / √(var + eps)` over some axes."""
    middle = x - x.mean(tuple(axes), keepdim=True) if centred else x
    return middle / (middle.square().mean(tuple(axes), keepdim=True) + eps).sqrt()


def _layer_norm_with(args: Sequence[object], factor: Tensor) -> Tensor:
    x, shape, gain, bias, eps = _filled(args, None, None, 1e-5)
    return _affine(_scaled(x, range(-len(shape), 0), eps * factor), gain, bias)  # pyright: ignore[reportArgumentType, reportOperatorIssue]


def _rms_norm_with(args: Sequence[object], factor: Tensor) -> Tensor:
    x, shape, gain, eps = _filled(args, None, None)
    eps = torch.finfo(x.dtype).eps if eps is None else eps  # pyright: ignore[reportAttributeAccessIssue]
    return _affine(_scaled(x, range(-len(shape), 0), eps * factor, centred=False), gain, None)  # pyright: ignore[reportArgumentType, reportOperatorIssue]


def _batch_norm_with(args: Sequence[object], factor: Tensor) -> tuple[Tensor, ...]:
    x: Tensor = args[0]  # pyright: ignore[reportAssignmentType]
    out = _channel_norm(x, [axis for axis in range(x.ndim) if axis != 1], args, factor)
    return (out, *[x[:0]] * 4)


def _instance_norm_with(args: Sequence[object], factor: Tensor) -> Tensor:
    x: Tensor = args[0]  # pyright: ignore[reportAssignmentType]
    return _channel_norm(x, range(2, x.ndim), args, factor)


def _channel_norm(x: Tensor, axes: Sequence[int], args: Sequence[object], factor: Tensor) -> Tensor:
    gain, bias, eps = args[1], args[2], args[7]
    out = _scaled(x, axes, eps * _along_channels(factor, x))  # pyright: ignore[reportOperatorIssue]
    return _affine(out, *(_along_channels(p, x) if isinstance(p, Tensor) else None for p in (gain, bias)))


def _group_norm_with(args: Sequence[object], factor: Tensor) -> Tensor:
    x, groups, gain, bias, eps = _filled(args, None, None, 1e-5)
    assert isinstance(x, Tensor)
    out = _scaled(x.reshape(len(x), groups, -1), [2], eps * factor[:, None]).reshape(x.shape)  # pyright: ignore[reportCallIssue, reportArgumentType, reportOperatorIssue]
    return _affine(out, *(_along_channels(p, x) if isinstance(p, Tensor) else None for p in (gain, bias)))


def _along_channels(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(1, -1, *([1] * (like.ndim - 2)))


def _affine(x: Tensor, gain: object, bias: object) -> Tensor:
    scaled = x * gain if isinstance(gain, Tensor) else x
    return scaled + bias if isinstance(bias, Tensor) else scaled


def _channels(node: fx.Node) -> int:
    return int(node.all_input_nodes[0].meta["val"].shape[1])


def _groups(node: fx.Node) -> int:
    return int(node.args[1])  # pyright: ignore[reportArgumentType]


# Declarations ---------------------------------------------------------------------------------------------------------

_LAYER_NORM = Operator(
    symmetry=layer_norm,
    ignores=_ignored_over_last_axes,
    shift=_shift_of_bias(3, by_channel=False),
    shifts_and_ignores=True,
    exchange=rules.added_last(3),
    balance=_centred_over_last_axes,
    degree=rules.normalised(2, 3, 4),
    regularity=Regularity.SMOOTH,
    eps=Eps(4, (None, None), _layer_norm_with),
    traits=Trait.SLICEWISE,
)
declare("layer_norm", _LAYER_NORM)
declare("native_layer_norm", replace(_LAYER_NORM, eps=Eps(4, (None, None))))
_RMS_NORM = Operator(
    symmetry=rms_norm,
    degree=rules.normalised(2, None, 3),
    regularity=Regularity.SMOOTH,
    traits=Trait.SLICEWISE,
)
declare("rms_norm", replace(_RMS_NORM, eps=Eps(3, (None,), _rms_norm_with)))
declare("_fused_rms_norm", replace(_RMS_NORM, eps=Eps(3, (None,))))
declare(
    "group_norm",
    Operator(
        symmetry=group_norm,
        ignores=_ignored_in_groups,
        shift=_shift_of_bias(3, by_channel=True),
        shifts_and_ignores=True,
        exchange=rules.added_last(3),
        balance=_centred_in_groups,
        degree=rules.normalised(2, 3, 4),
        regularity=Regularity.SMOOTH,
        eps=Eps(4, (None, None), _group_norm_with, _groups),
    ),
)
declare("native_group_norm", Operator(regularity=Regularity.SMOOTH))
_OWN_STATISTICS = Operator(
    symmetry=_by_channel(lambda ndim: (0, *range(2, ndim))),
    ignores=_ignored_over(lambda ndim: (0, *range(2, ndim))),
    shift=_shift_of_bias(2, by_channel=True),
    shifts_and_ignores=True,
    exchange=rules.added_last(2),
    degree=rules.normalised(1, 2, 7),
    eps=Eps(7, (), _batch_norm_with, _channels),
)
declare("_native_batch_norm_legit_functional", _OWN_STATISTICS)
declare(
    "batch_norm _native_batch_norm_legit native_batch_norm",
    Operator(symmetry=_OWN_STATISTICS.symmetry, eps=Eps(7)),
)
declare(
    "instance_norm",
    replace(
        _OWN_STATISTICS,
        symmetry=_by_channel(lambda ndim: range(2, ndim)),
        ignores=_ignored_over(lambda ndim: range(2, ndim)),
        eps=Eps(7, (), _instance_norm_with, _channels),
    ),
)
declare(
    "_native_batch_norm_legit_no_training",
    Operator(
        symmetry=batch_norm_fixed,
        shift=_shift_of_bias(2, by_channel=True),
        exchange=rules.added_last(2),
        regularity=Regularity.SMOOTH,
    ),
)
declare("_weight_norm _weight_norm_interface", Operator(symmetry=weight_norm))
