"""Functions of each element by itself: activations, clamps, dropout, comparisons, choices, and tensors of constants."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.shift_groups import Groups, Rows, spread
from equipoise.graph.labels.signal import Signal
from equipoise.graph.ops import rules
from equipoise.graph.ops.arithmetic import Number, Term, add, as_signal, broadcast_elements
from equipoise.graph.ops.operator import (
    OPERATORS,
    Eps,
    Operator,
    Regularity,
    Site,
    Sources,
    Summands,
    Trait,
    declare,
    rest,
)
from equipoise.graph.piecewise import ParametricRectifier, Piecewise, Rectifier

FLOOR = 1e-6  # a clamp below this guards a division
_HIDDEN = -1e4  # exp of it is zero

# Symmetries -----------------------------------------------------------------------------------------------------------


def lawless(algebra: Algebra, signal: Signal, *args: object, **kwargs: object) -> Signal:
    """A map that commutes with no linear flow."""
    return rest(algebra, signal.shape, signal)


def rectified(algebra: Algebra, signal: Signal, *args: object, **kwargs: object) -> Signal:
    """`φ(a z) = a φ(z)` for `a > 0`, unit by unit."""
    same = algebra.diagonal(signal)
    return same.with_roles([algebra.renewed(role) for role in same.roles])


def prelu(algebra: Algebra, signal: Signal, slope: Signal) -> Signal:
    """As leaky ReLU; the slope itself belongs to neither side."""
    algebra.still(slope)
    return rectified(algebra, signal)


def clamp(algebra: Algebra, signal: Signal, low: Term | None = None, high: Term | None = None) -> Signal:
    """A clamp at zero is a ReLU; one at a tiny positive floor is one up to an `eps`."""
    if high is None and isinstance(low, (int, float)) and 0 <= low <= FLOOR:
        for role in signal.roles if low else ():
            algebra.absorb(role, low)
        return rectified(algebra, signal)
    return rest(algebra, signal.shape, signal, *(bound for bound in (low, high) if isinstance(bound, Signal)))


def dropout(algebra: Algebra, signal: Signal, probability: Number | None = 0.5, training: object = True) -> Signal:
    """In training a mask on each element, exact for the mask drawn; the identity otherwise."""
    return rectified(algebra, signal) if training and probability else signal


def comparison(algebra: Algebra, signal: Signal, other: Term = 0) -> Signal:
    """The side of zero does not change under positive scaling; any other comparison pins what it compares."""
    if not isinstance(other, Signal):
        if other != 0:
            return rest(algebra, signal.shape, signal)
        algebra.diagonal(signal)
        return Signal(signal.shape)
    return rest(algebra, tuple(torch.broadcast_shapes(signal.shape, other.shape)), signal, other)


def gated(algebra: Algebra, signal: Signal, dim: int = -1) -> Signal:
    """`a · sigmoid(b)` for the two halves `a, b` of an axis."""
    chunk = OPERATORS["chunk"].symmetry
    assert chunk is not None
    value, gate = chunk(algebra, signal, 2, dim)  # pyright: ignore[reportGeneralTypeIssues]
    algebra.still(gate)
    return algebra.product(value, Signal(gate.shape))


def where(algebra: Algebra, condition: Signal, left: Term, right: Term) -> Signal:
    """Either of two tensors, element by element."""
    algebra.still(condition)
    *sides, chosen = algebra.broadcast(as_signal(left), as_signal(right), condition)
    for side in sides:
        for role in side.roles:
            algebra.separate(role, condition.identity().expand(chosen.shape))
    return add(algebra, *sides)


def masked_fill(algebra: Algebra, signal: Signal, mask: Signal, value: Term) -> Signal:
    """A constant where the mask says so."""
    return where(algebra, mask, value, signal)


def filled(
    algebra: Algebra, signal: Signal, size: Sequence[int] | object = None, *args: object, **kwargs: object
) -> Signal:
    """Only the shape is read."""
    return Signal(tuple(size) if isinstance(size, (list, tuple)) else signal.shape)


def zeros(
    algebra: Algebra, signal: Signal, size: Sequence[int] | object = None, *args: object, **kwargs: object
) -> Signal:
    """Zeros, which move with anything that is added to them."""
    shape = filled(algebra, signal, size).shape
    return Signal(shape, value=torch.zeros(()).expand(shape))


# Shifts and combinations ----------------------------------------------------------------------------------------------


def _shown(shown: int, hidden: int) -> Callable[[Site, Groups | Rows], Sources]:
    """Minus infinity, and any number that a softmax takes for it, stays what it is under any shift."""

    def rule(site: Site, groups: Groups | Rows) -> Sources:
        for place, filling in ((shown, hidden), (hidden, shown)):
            source = site.tensor(place)
            if source is not None and _hides(site.args[filling], site):
                yield source, spread(groups, site.shape_of(source), site.shape)

    return rule


def _hides(filling: Argument, site: Site) -> bool:
    value = site.value(filling) if isinstance(filling, fx.Node) else torch.tensor(filling)  # pyright: ignore[reportArgumentType]
    return value is not None and value.numel() > 0 and bool((value <= _HIDDEN).all())


def _idle(site: Site, groups: Groups | Rows) -> Sources:
    """Dropout that is off."""
    if not site.args[2] or site.args[1] == 0:
        yield site.source(), groups


def _idle_elements(site: Site) -> Summands:
    """Dropout that is off."""
    if not site.args[2] or site.args[1] == 0:
        yield site.source(), broadcast_elements(site, site.source())


# Degrees --------------------------------------------------------------------------------------------------------------


def _with_slope(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    """A trained slope enters below zero only."""
    return of.agreed([of(node.args[0]), of(node.args[0]) + of(node.args[1])])


def _of_comparison(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    """A comparison with zero is one of signs; others need equal degrees."""
    of.agreed([of(side) for side in node.args[:2] if isinstance(side, fx.Node) or side])
    return 0


# Kinks ----------------------------------------------------------------------------------------------------------------


def _leaky(node: fx.Node) -> Piecewise:
    slope = node.args[1] if len(node.args) > 1 else 0.01
    assert isinstance(slope, int | float)
    return Rectifier(float(slope))


def _clamped(node: fx.Node) -> Piecewise | None:
    """`clamp(z, min=0)`; with other bounds it is no homogeneous map."""
    bounds = [*node.args[1:], *node.kwargs.values()]
    return Rectifier(0.0) if bounds in ([0], [0, None]) and node.kwargs.get("max") is None else None


_GUARD = 1e6
_SELU = 1.6732632423543772, 1.0507009873554805  # α, and the scale


def larger_of(z: Tensor, low: Tensor | Number) -> Tensor:
    """`max(z, low)` by a ReLU; a number far away is a guard, and costs `z` no digits."""
    if isinstance(low, int | float) and (low == 0 or abs(low) > _GUARD):
        return torch.relu(z) if low == 0 else z + torch.relu(low - z)
    return low + torch.relu(z - low)


def smaller_of(z: Tensor, high: Tensor | Number) -> Tensor:
    """`min(z, high)` by a ReLU."""
    return -larger_of(-z, -high)


def _clamp(z: Tensor, low: Tensor | Number | None = None, high: Tensor | Number | None = None) -> Tensor:
    """At least `low`, then at most `high`, exactly where it saturates."""
    z = z if low is None else larger_of(z, low)
    return z if high is None else smaller_of(z, high)


def _hardtanh(z: Tensor, low: Number = -1.0, high: Number = 1.0) -> Tensor:
    return _clamp(z, low, high)


def _relu6(z: Tensor) -> Tensor:
    return _clamp(z, 0.0, 6.0)


def _hardsigmoid(z: Tensor) -> Tensor:
    return _clamp(z + 3, 0.0, 6.0) / 6


def _hardswish(z: Tensor) -> Tensor:
    return z * _hardsigmoid(z)


def _elu(z: Tensor, alpha: Number = 1.0, scale: Number = 1.0, input_scale: Number = 1.0) -> object:
    if alpha * input_scale == 1:
        return NotImplemented  # its derivative does not jump
    return scale * (torch.relu(z) + alpha * torch.expm1(-input_scale * torch.relu(-z)))


def _selu(z: Tensor) -> object:
    return _elu(z, *_SELU)


# Declarations ---------------------------------------------------------------------------------------------------------

_SMOOTH = Operator(symmetry=lawless, regularity=Regularity.SMOOTH, traits=Trait.LAWLESS | Trait.RESTING)
_ELEMENT = replace(_SMOOTH, traits=_SMOOTH.traits | Trait.ELEMENTWISE)
_GATE = replace(_SMOOTH, traits=_SMOOTH.traits | Trait.CHANNELWISE)
_BENT_GATE = replace(_GATE, regularity=Regularity.BENT)
declare("gelu silu tanh sigmoid softplus mish", _GATE)
declare("celu", _ELEMENT)
declare("exp log erf sin cos logsigmoid log_sigmoid_forward log_sigmoid softsign", _SMOOTH)
declare("exp2 expm1 log1p log2 atan", _SMOOTH)
declare("elu", replace(_GATE, decompositions={"default": _elu}))
declare("selu", replace(_ELEMENT, decompositions={"default": _selu}))
declare("hardswish", replace(_BENT_GATE, decompositions={"default": _hardswish}))
declare("hardtanh", replace(_BENT_GATE, decompositions={"default": _hardtanh}))
declare("hardsigmoid", replace(_ELEMENT, regularity=Regularity.BENT, decompositions={"default": _hardsigmoid}))
declare("relu6", replace(_ELEMENT, regularity=Regularity.BENT, decompositions={"default": _relu6}))
declare("softshrink hardshrink", Operator(regularity=Regularity.BENT))
declare("glu", Operator(symmetry=gated, regularity=Regularity.SMOOTH))

_RECTIFIER = Operator(
    symmetry=rectified,
    regularity=Regularity.BENT,
    degree=rules.kept,
    lift=rules.unchanged,
    traits=Trait.HOMOGENEOUS | Trait.CHANNELWISE,
)
declare("relu", replace(_RECTIFIER, piecewise=lambda node: Rectifier(0.0)))
declare("abs", replace(_RECTIFIER, piecewise=lambda node: Rectifier(-1.0)))
declare("leaky_relu", replace(_RECTIFIER, piecewise=_leaky))
declare("rrelu threshold_at_zero", Operator(symmetry=rectified))
declare("rrelu_with_noise", Operator(draws=lambda node: True))
declare(
    "prelu",
    Operator(
        symmetry=prelu, regularity=Regularity.BENT, degree=_with_slope, piecewise=lambda node: ParametricRectifier()
    ),
)
declare(
    "clamp",
    Operator(
        symmetry=clamp,
        regularity=Regularity.BENT,
        piecewise=_clamped,
        decompositions={"default": _clamp, "Tensor": _clamp},
        eps=Eps(1),
        traits=Trait.ELEMENTWISE,
    ),
)
declare(
    "clamp_min",
    Operator(
        symmetry=clamp,
        regularity=Regularity.BENT,
        piecewise=_clamped,
        decompositions={"default": larger_of, "Tensor": larger_of},
        eps=Eps(1),
        traits=Trait.HOMOGENEOUS | Trait.ELEMENTWISE,
    ),
)
declare(
    "clamp_max",
    Operator(regularity=Regularity.BENT, decompositions={"default": smaller_of, "Tensor": smaller_of}),
)

_DROPOUT = Operator(
    symmetry=dropout,
    shift=_idle,
    exchange=rules.passed,
    combination=_idle_elements,
    degree=rules.kept,
    regularity=Regularity.MOVES,
    draws=lambda node: len(node.args) < 3 or node.args[2] is not False,
    traits=Trait.CASTING | Trait.CHANNELWISE,
)
declare("dropout", _DROPOUT)
declare("feature_dropout", replace(_DROPOUT, traits=Trait.CASTING))
declare(
    "alpha_dropout",
    replace(_DROPOUT, symmetry=None, shift=None, exchange=None, combination=None, degree=None, traits=Trait.NONE),
)
declare("native_dropout", replace(_DROPOUT, shift=None, combination=None, draws=lambda node: True))
_DRAWN = Operator(draws=lambda node: True)
declare("rand randn randint normal", _DRAWN)
declare("bernoulli", replace(_DRAWN, symmetry=filled))
_SHAPED = Operator(
    symmetry=filled, exchange=rules.nothing_read, degree=rules.invariant, traits=Trait.SHAPE_ONLY | Trait.RESTING
)
declare("ones_like empty_like full_like new_empty new_ones new_full", _SHAPED)
declare("rand_like randn_like", replace(_SHAPED, draws=lambda node: True))
declare("zeros_like new_zeros", replace(_SHAPED, symmetry=zeros))
declare("sym_size", replace(_SHAPED, regularity=Regularity.MOVES))

_COMPARISON = Operator(symmetry=comparison, regularity=Regularity.FLAT, degree=_of_comparison)
declare("gt lt ge le eq ne", _COMPARISON)
declare("sign isnan isinf logical_not signbit", replace(_COMPARISON, degree=rules.invariant))
declare("sgn round floor ceil trunc frac heaviside argmax argmin argsort one_hot", Operator(regularity=Regularity.FLAT))

_CHOICE = Operator(regularity=Regularity.MOVES, traits=Trait.HOMOGENEOUS)
declare("where", replace(_CHOICE, symmetry=where, shift=_shown(1, 2), degree=rules.terms(1, 2)))
declare("masked_fill", replace(_CHOICE, symmetry=masked_fill, shift=_shown(0, 2), degree=rules.terms(0, 2)))
