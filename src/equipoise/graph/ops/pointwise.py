"""Operations on each element by itself: piecewise linear, powers, sums, products, and those with no symmetry."""

from fractions import Fraction
from typing import Any

import torch

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.signal import ZERO, Signal, blank, is_zero
from equipoise.graph.ops.operator import MATCHERS, matches, moving, rest

TINY = 1e-2  # constants below this, added under a square root, are read as an `eps`
FLOOR = 1e-6  # a clamp below this guards a division

SHAPE_ONLY = [
    "zeros_like",
    "new_zeros",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "new_empty",
    "new_ones",
    "new_full",
    "sym_size",
]
ZEROS = ["zeros_like", "new_zeros"]
LAWLESS = [
    "gelu",
    "silu",
    "tanh",
    "sigmoid",
    "exp",
    "log",
    "softplus",
    "elu",
    "selu",
    "celu",
    "mish",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "erf",
    "sin",
    "cos",
    "logsigmoid",
    "log_sigmoid_forward",
    "relu6",
    "softsign",
    "exp2",
    "expm1",
    "log1p",
    "log2",
    "atan",
]
SOFTMAX = ["softmax", "_softmax", "log_softmax", "_log_softmax"]  # only a shift, see graph/shifts.py


@matches(*LAWLESS, *SOFTMAX)
def lawless(algebra: Algebra, signal: Signal, *args: Any, **kwargs: Any) -> Signal:
    """A map that commutes with no linear flow."""
    return rest(algebra, signal.shape, signal)


@matches("relu", "leaky_relu", "abs", "rrelu", "threshold_at_zero")
def positively_homogeneous(algebra: Algebra, signal: Signal, *args: Any, **kwargs: Any) -> Signal:
    """`φ(a z) = a φ(z)` for `a > 0`, unit by unit."""
    same = algebra.diagonal(signal)
    return same.with_roles([algebra.renewed(role) for role in same.roles])


@matches("prelu")
def prelu(algebra: Algebra, signal: Signal, slope: Signal) -> Signal:
    """As leaky ReLU; the slope itself belongs to neither side."""
    algebra.still(slope)
    return positively_homogeneous(algebra, signal)


@matches("clamp", "clamp_min")
def clamp(algebra: Algebra, signal: Signal, low: Any = None, high: Any = None) -> Signal:
    """A clamp at zero is a ReLU; one at a tiny positive floor is one up to an `eps`."""
    if high is None and isinstance(low, (int, float)) and 0 <= low <= FLOOR:
        for role in signal.roles if low else ():
            algebra.absorb(role, low)
        return positively_homogeneous(algebra, signal)
    return rest(algebra, signal.shape, signal, *(bound for bound in (low, high) if isinstance(bound, Signal)))


@matches("native_dropout", "dropout", "feature_dropout")
def dropout(algebra: Algebra, signal: Signal, probability: Any = 0.5, training: Any = True) -> Any:
    """In training a mask on each element, exact for the mask drawn; the identity otherwise."""
    result = positively_homogeneous(algebra, signal) if training and probability else signal
    return result


@matches("gt", "lt", "ge", "le", "eq", "ne", "sign", "isnan", "isinf", "logical_not", "signbit")
def comparison(algebra: Algebra, signal: Signal, other: Any = 0) -> Signal:
    """The side of zero does not change under positive scaling; any other comparison pins what it compares."""
    threshold = other if isinstance(other, Signal) else None
    shape = torch.broadcast_shapes(signal.shape, threshold.shape) if threshold else signal.shape
    if other == 0:
        algebra.diagonal(signal)
        return Signal(tuple(shape))
    return rest(algebra, tuple(shape), signal, *([threshold] if threshold else []))


@matches("where")
def where(algebra: Algebra, condition: Signal, left: Any, right: Any) -> Signal:
    """Either of two tensors, element by element."""
    algebra.still(condition)
    sides = [side if isinstance(side, Signal) else _constant(side) for side in (left, right)]
    *sides, chosen = algebra.broadcast(*sides, condition)
    for side in sides:
        for role in side.roles:
            algebra.separate(role, condition.identity().expand(chosen.shape))
    return _sum(algebra, *sides)


@matches("masked_fill")
def masked_fill(algebra: Algebra, signal: Signal, mask: Signal, value: Any) -> Signal:
    """A constant where the mask says so."""
    return where(algebra, mask, value, signal)


def _constant(value: float | int) -> Signal:
    return Signal((), value=torch.tensor(value))


@matches("add", "sub", "rsub")
def add(algebra: Algebra, left: Any, right: Any, *, alpha: Any = 1) -> Signal:
    """Summands must move alike; adding zero demands nothing."""
    left, right = (side if isinstance(side, Signal) else _constant(side) for side in (left, right))
    return _sum(algebra, left, right)


def _sum(algebra: Algebra, left: Signal, right: Signal) -> Signal:
    left, right = (_as_wildcard(signal) for signal in algebra.broadcast(left, right))
    return Signal(left.shape, tuple(algebra.added(left, right)), None, left.weights & right.weights)


def _as_wildcard(signal: Signal) -> Signal:
    """A tensor of zeros moves with anything."""
    return signal.with_roles([blank(signal.shape, ZERO)]) if is_zero(signal) else signal


@matches("mul")
def multiply(algebra: Algebra, left: Signal, right: Any) -> Signal:
    """Generators add; a number changes nothing."""
    if not isinstance(right, Signal):
        return left.with_roles([algebra.renewed(role) for role in left.roles])
    return algebra.product(left, right)


@matches("glu")
def gated(algebra: Algebra, signal: Signal, dim: int = -1) -> Signal:
    """`a · sigmoid(b)` for the two halves `a, b` of an axis."""
    value, gate = MATCHERS["chunk"](algebra, signal, 2, dim)
    algebra.still(gate)
    return algebra.product(value, Signal(gate.shape))


@matches("div", "true_divide")
def divide(algebra: Algebra, left: Signal, right: Any, **kwargs: Any) -> Signal:
    """Generators subtract."""
    if not isinstance(right, Signal):
        return multiply(algebra, left, right)
    if kwargs.get("rounding_mode"):
        return rest(algebra, tuple(torch.broadcast_shapes(left.shape, right.shape)), left, right)
    return algebra.product(left, reciprocal(algebra, right))


@matches("reciprocal")
def reciprocal(algebra: Algebra, signal: Signal) -> Signal:
    """Degree -1."""
    return power(algebra, signal, -1)


@matches("sqrt")
def sqrt(algebra: Algebra, signal: Signal) -> Signal:
    """Degree 1/2."""
    return power(algebra, signal, Fraction(1, 2))


@matches("rsqrt")
def rsqrt(algebra: Algebra, signal: Signal) -> Signal:
    """Degree -1/2."""
    return power(algebra, signal, Fraction(-1, 2))


@matches("square")
def square(algebra: Algebra, signal: Signal) -> Signal:
    """Degree 2."""
    return power(algebra, signal, 2)


@matches("pow")
def power(algebra: Algebra, signal: Any, exponent: Any) -> Signal:
    """Homogeneous of the exponent's degree."""
    if not isinstance(signal, Signal) or isinstance(exponent, Signal):
        operands = [side for side in (signal, exponent) if isinstance(side, Signal)]
        return rest(algebra, tuple(torch.broadcast_shapes(*(side.shape for side in operands))), *operands)
    if not moving(signal) or exponent == 0:
        return Signal(signal.shape)
    if exponent == 2:
        algebra.turns(signal, [-1])
    return algebra.scaled(signal, Fraction(exponent))


@matches(*(name for name in SHAPE_ONLY if name not in ZEROS), "bernoulli")
def filled(algebra: Algebra, signal: Signal, size: Any = None, *args: Any, **kwargs: Any) -> Signal:
    """Only the shape is read."""
    return Signal(tuple(size) if isinstance(size, (list, tuple)) else signal.shape)


@matches(*ZEROS)
def zeros(algebra: Algebra, signal: Signal, size: Any = None, *args: Any, **kwargs: Any) -> Signal:
    """Zeros, which move with anything that is added to them."""
    shape = filled(algebra, signal, size).shape
    return Signal(shape, value=torch.zeros(()).expand(shape))
