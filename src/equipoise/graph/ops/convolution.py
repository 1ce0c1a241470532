"""Convolutions: linear maps on channels, the same at every position."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.shift_groups import LETTERS, Groups, Rows, dense, factor, spread
from equipoise.graph.labels.signal import Signal, reshaped
from equipoise.graph.ops import rules
from equipoise.graph.ops.arithmetic import add
from equipoise.graph.ops.contraction import contract, swapped
from equipoise.graph.ops.operator import Operator, Regularity, ShiftRule, Site, Sources, Trait, declare

Sizes: TypeAlias = int | str | Sequence[int]

# Symmetries -----------------------------------------------------------------------------------------------------------


def convolution(
    algebra: Algebra,
    x: Signal,
    weight: Signal,
    bias: Signal | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Signal:
    """A linear map on channels, the same at every position; zero padding moves with anything."""
    settings = stride, padding, dilation, groups
    return _convolution("conv", algebra, x, weight, bias, settings, groups)


def transposed_convolution(
    algebra: Algebra,
    x: Signal,
    weight: Signal,
    bias: Signal | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Signal:
    """The transposed map on channels."""
    settings = stride, padding, output_padding, groups, dilation
    return _convolution("conv_transpose", algebra, x, weight, bias, settings, groups)


def _convolution(
    family: str,
    algebra: Algebra,
    x: Signal,
    weight: Signal,
    bias: Signal | None,
    settings: Sequence[Sizes],
    groups: int,
) -> Signal:
    """A convolution of as many axes as the weight has; one example may come without a batch axis."""
    if x.ndim < weight.ndim:
        one = Signal((1, *x.shape), tuple(role.moved(lambda labels: labels[None]) for role in x.roles))
        out = _convolution(family, algebra, one, weight, bias, settings, groups)
        return Signal(out.shape[1:], tuple(role.moved(lambda labels: labels[0]) for role in out.roles))
    function = getattr(torch.nn.functional, f"{family}{weight.ndim - 2}d")
    shape = function(*(torch.empty(signal.shape, device="meta") for signal in (x, weight)), None, *settings).shape
    return _convolved(algebra, x, weight, bias, shape, groups, transposed=family == "conv_transpose")


def _convolved(
    algebra: Algebra,
    x: Signal,
    weight: Signal,
    bias: Signal | None,
    shape: Sequence[int],
    groups: int,
    *,
    transposed: bool,
) -> Signal:
    batch, channels, *_ = x.shape
    for role in x.roles:
        algebra.merges(role, range(2, x.ndim))
    at_one_place = [algebra.uniform(role, range(2, x.ndim)) for role in x.roles]
    grouped = lambda labels: reshaped(labels, (batch, groups, channels // groups)).transpose(0, 1)  # noqa: E731
    data = Signal((groups, batch, channels // groups), tuple(role.moved(grouped) for role in at_one_place))
    out = contract(algebra, data, _kernel(algebra, weight, groups, transposed=transposed))
    ungrouped = lambda labels: reshaped(labels.transpose(0, 1), (batch, shape[1], *([1] * (x.ndim - 2))))  # noqa: E731
    roles = [algebra.expanded(role.moved(ungrouped), tuple(shape)) for role in out.roles]
    result = Signal(tuple(shape), tuple(roles))
    if bias is None:
        return result
    spread = lambda labels: labels.reshape(-1, *([1] * (x.ndim - 2)))  # noqa: E731
    column = Signal((bias.shape[0], *([1] * (x.ndim - 2))), tuple(role.moved(spread) for role in bias.roles))
    return add(algebra, result, column)


def _kernel(algebra: Algebra, weight: Signal, groups: int, *, transposed: bool) -> Signal:
    """A convolution's weight at one tap, as `(groups, out, in)`."""
    at_one_tap = [algebra.uniform(role, range(2, weight.ndim)) for role in weight.roles]
    outer, inner = weight.shape[:2]
    swap = lambda labels: reshaped(labels, (groups, outer // groups, inner))  # noqa: E731
    shape = (groups, outer // groups, inner)
    signal = Signal(shape, tuple(role.moved(swap) for role in at_one_tap), None, weight.weights)
    if transposed:
        turned = tuple(swapped(role) for role in signal.roles)
        return Signal((groups, inner, outer // groups), turned, None, weight.weights)
    return signal


# Shifts ---------------------------------------------------------------------------------------------------------------


def _shift_of_convolution(*, transposed: bool) -> ShiftRule:
    """Channels of one group at a time; the weight at each tap by itself."""

    def rule(site: Site, groups: Groups | Rows) -> Sources:
        x, weight, *bias = site.tensors(3)
        after, shape, count = site.shape, site.shape_of(weight), site.integer(6, 1)
        labels = dense(groups, after)
        if labels is None:
            return
        if len(after) < len(shape):  # one example, without a batch axis
            labels, after = labels[None], (1, *after)
        parted = (after[0], count, after[1] // count, *after[2:])
        view = (count, shape[0] // count, *shape[1:])
        places, taps = LETTERS[: len(after) - 2], LETTERS[len(after) : 2 * len(after) - 2]
        terms = ["ngi", ("gio" if transposed else "goi") + taps]  # where the input is read does not matter
        yield weight, factor(labels.reshape(parted), 1, terms, "ngo" + places, view)
        read = site.shape_of(x)
        everywhere = labels.flatten(2)[..., :1]
        padded = any(site.integers(4)) or (len(site.args) > 4 and isinstance(site.args[4], str))
        if len(read) == len(shape) and not transposed and not padded and bool((labels.flatten(2) == everywhere).all()):
            by_channel = everywhere[..., 0].reshape(parted[:3])  # a shift of all places is one of all that are written
            found = factor(by_channel, 0, ["ngi", "goi"], "ngo", (read[0], view[0], view[2]))
            channels = dense(found, (*read[:2], *([1] * len(places))))
            yield x, None if channels is None else channels.expand(read)
        for column in bias:
            along_channels = (after[1], *([1] * (len(after) - 2)))
            found = dense(spread(labels, along_channels, after), along_channels)
            yield column, None if found is None else found.reshape(-1)

    return rule


# Declarations ---------------------------------------------------------------------------------------------------------

_CONVOLUTION = Operator(
    exchange=rules.added_last(2), degree=rules.multiplied, regularity=Regularity.LINEAR, traits=Trait.CONVOLUTION
)
declare(
    "conv1d conv2d conv3d",
    replace(
        _CONVOLUTION,
        symmetry=convolution,
        shift=_shift_of_convolution(transposed=False),
        lift=rules.lifted_map,
    ),
)
declare(
    "conv_transpose1d conv_transpose2d conv_transpose3d",
    replace(_CONVOLUTION, symmetry=transposed_convolution, shift=_shift_of_convolution(transposed=True)),
)
declare("convolution", _CONVOLUTION)
