"""Normalisations: they absorb the scale of what they read (exactly only for `eps = 0`); their gain is a producer."""

from collections.abc import Callable, Sequence
from typing import Any

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.signal import Signal
from equipoise.graph.ops.operator import matches
from equipoise.graph.ops.pointwise import add, multiply


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


@matches("layer_norm", "native_layer_norm")
def layer_norm(
    algebra: Algebra,
    x: Signal,
    shape: Sequence[int],
    gain: Signal | None = None,
    bias: Signal | None = None,
    eps: float | int = 1e-5,
    *args: Any,
) -> Signal:
    """Over the last axes."""
    return _normalised(algebra, x, range(x.ndim - len(shape), x.ndim), gain, bias, eps)


@matches("rms_norm", "_fused_rms_norm")
def rms_norm(
    algebra: Algebra, x: Signal, shape: Sequence[int], gain: Signal | None = None, eps: float | int | None = None
) -> Signal:
    """Over the last axes, without centring."""
    return _normalised(algebra, x, range(x.ndim - len(shape), x.ndim), gain, None, 1e-7 if eps is None else eps)


@matches("group_norm")
def group_norm(
    algebra: Algebra,
    x: Signal,
    groups: int,
    gain: Signal | None = None,
    bias: Signal | None = None,
    eps: float | int = 1e-5,
    *args: Any,
) -> Signal:
    """Over the channels and positions of each group."""
    batch, channels, *spatial = x.shape
    parted = (batch, groups, channels // groups, *spatial)
    grouped = Signal(parted, tuple(role.moved(lambda labels: labels.reshape(parted)) for role in x.roles))
    _normalised(algebra, grouped, range(2, len(parted)), None, None, eps)
    return _channelwise(algebra, x, gain, bias)


@matches("_native_batch_norm_legit_no_training")
def batch_norm_fixed(algebra: Algebra, x: Signal, gain: Signal | None, bias: Signal | None, *args: Any) -> Signal:
    """Running statistics are constants: shifting by them pins the input."""
    algebra.still(x)
    return _channelwise(algebra, x, gain, bias)


def _by_channel(axes: Callable[[int], Sequence[int]]) -> Callable[..., Signal]:
    """Over these of a number of axes, with statistics of its own; with running ones a fixed affine map."""

    def rule(
        algebra: Algebra,
        x: Signal,
        gain: Signal | None,
        bias: Signal | None,
        mean: Any,
        var: Any,
        own: Any,
        momentum: float | int,
        eps: float | int,
        *args: Any,
    ) -> Signal:
        if not own:
            return batch_norm_fixed(algebra, x, gain, bias)
        _normalised(algebra, x, axes(x.ndim), None, None, eps)
        return _channelwise(algebra, x, gain, bias)

    return rule


matches("_native_batch_norm_legit_functional", "batch_norm", "_native_batch_norm_legit", "native_batch_norm")(
    _by_channel(lambda ndim: (0, *range(2, ndim)))
)
matches("instance_norm")(_by_channel(lambda ndim: range(2, ndim)))


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


@matches("_weight_norm", "_weight_norm_interface")
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
