"""Linear maps, convolutions and matrix products: generators of what is summed over cancel, the others pass on."""

import math
from collections.abc import Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import torch

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.signal import Role, Signal, is_zero, reshaped
from equipoise.graph.ops.operator import matches
from equipoise.graph.ops.pointwise import add


def contract(algebra: Algebra, left: Signal, right: Signal) -> Signal:
    """`out[b, i, j] = Σ_k left[b, i, k] right[b, j, k]`.

    Roles that live on `i` or `j` are carried over. Those that live on `k` must cancel: `V e^{-tA}` reads `e^{tA} x`.
    """
    sides = [algebra.reduced(side.roles) for side in (left, right)]
    meeting = [any(role.varies(2) or not role.varies(1) for role in roles) for roles in sides]
    parts = [_parted(algebra, *each) for each in zip(sides, reversed(meeting), strict=True)]
    carried, summed = zip(*parts, strict=True)
    batch, rows, _ = left.shape
    columns = right.shape[1]
    shape = (batch, rows, columns)
    out = [_placed(role, (batch, rows, 1), shape) for role in carried[0]]
    out += [_placed(role, (batch, 1, columns), shape) for role in (_swapped(role) for role in carried[1])]
    sums = [*summed[0], *summed[1]]
    if summed[0] and summed[1]:
        algebra.cancel(summed[0], summed[1])
        if not left.weights and not right.weights:  # they might leave a common scale
            algebra.scalable.add(algebra.place)
    elif sums:
        out += _passed_on(algebra, sums, *((left, right) if summed[0] else (right, left)), shape)
    roles = [algebra.distinct(role) for role in out]
    weights = left.weights | right.weights if left.weights and right.weights else frozenset()
    return Signal(shape, tuple(roles), None, weights)


def _parted(algebra: Algebra, roles: Sequence[Role], meets: bool) -> tuple[list[Role], list[Role]]:
    """Roles of a `(b, i, k)` tensor: carried ones at `k = 0`, summed ones at `i = 0`.

    Roles on rows and columns at once are carried by the rows if they meet nothing that could cancel them.
    """
    summed = [role for role in roles if role.varies(2) and (meets or not role.varies(1))]
    if any(role.varies(1) for role in summed):
        algebra.narrowed.add(algebra.place)
    neutral = [role for role in roles if not role.varies(1) and not role.varies(2)]
    if not summed and neutral:
        summed = neutral[-1:]
    carried = [role for role in roles if role not in summed]
    return [_across(algebra, role, 2) for role in carried], [_across(algebra, role, 1) for role in summed]


def _across(algebra: Algebra, role: Role, axis: int) -> Role:
    """The role at index 0 of `axis`, mixing only within one index of it and of the batch."""
    batch, along = role.coordinates.shape[0], role.coordinates.shape[axis]
    if role.coordinates.stride(axis) == 0:
        key = torch.arange(batch).reshape(batch, 1, 1)
    else:
        sizes = (batch, along, 1) if axis == 1 else (batch, 1, along)
        key = torch.arange(batch * along).reshape(sizes)
    algebra.separate(role, key)
    return algebra.uniform(role, [axis])


def _swapped(role: Role) -> Role:
    return role.moved(lambda labels: labels.transpose(1, 2))


def _placed(role: Role, compact: tuple[int, ...], shape: tuple[int, ...]) -> Role:
    return role.moved(lambda labels: labels.expand(compact).expand(shape))


def _passed_on(
    algebra: Algebra, sums: Sequence[Role], source: Signal, other: Signal, shape: tuple[int, ...]
) -> list[Role]:
    """A sum against something at rest: a weight has its rows to move by, so its columns rest; data move on alike."""
    fixed = bool(other.weights) or other.value is not None
    if source.weights:
        algebra.vanish(sums)
        return []
    if len(sums) > 1:
        algebra.vanish(sums)
        return []
    if fixed and sums[0].varies(2):  # whatever the fixed matrix carries over would do as well
        algebra.narrowed.add(algebra.place)
    alike = algebra.uniform(sums[0], [2])
    return [_placed(alike, (shape[0], 1, 1), shape)]


def _flat(signal: Signal, shape: Sequence[int], *, swap: bool = False) -> Signal:
    """A tensor as `(b, i, k)`, or `(b, k, i)` swapped to it."""
    move = lambda labels: reshaped(labels, shape).transpose(1, 2) if swap else reshaped(labels, shape)  # noqa: E731
    final = (shape[0], shape[2], shape[1]) if swap else tuple(shape)
    value = None if signal.value is None else move(signal.value)
    return Signal(tuple(final), tuple(role.moved(move) for role in signal.roles), value, signal.weights)


@matches("linear")
def linear(algebra: Algebra, x: Signal, weight: Signal, bias: Signal | None = None) -> Signal:
    """`x Wᵀ + b`."""
    if is_zero(x):
        nothing = torch.zeros(*x.shape[:-1], weight.shape[0])
        out = Signal(tuple(nothing.shape), value=nothing)
        return out if bias is None else add(algebra, out, bias)
    inner = x.shape[-1]
    rows = weight.shape[0] if weight.ndim == 2 else 1
    out = contract(algebra, _flat(x, (1, math.prod(x.shape[:-1]), inner)), _flat(weight, (1, rows, inner)))
    result = _flat_back(out, (*x.shape[:-1], *weight.shape[:-1]))
    return result if bias is None else add(algebra, result, bias)


def _flat_back(signal: Signal, shape: Sequence[int]) -> Signal:
    roles = tuple(role.moved(lambda labels: reshaped(labels, shape)) for role in signal.roles)
    return Signal(tuple(shape), roles, None, signal.weights)


@matches("matmul", "mm", "bmm", "mv", "dot")
def matmul(algebra: Algebra, left: Signal, right: Signal) -> Signal:
    """`left @ right`, broadcast over leading axes."""
    like = torch.matmul(torch.empty(left.shape, device="meta"), torch.empty(right.shape, device="meta"))
    if is_zero(left) or is_zero(right):
        return Signal(tuple(like.shape), value=torch.zeros(like.shape))
    inner = left.shape[-1]
    if right.ndim <= 2:
        columns = right.shape[1] if right.ndim == 2 else 1
        a = _flat(left, (1, math.prod(left.shape[:-1]), inner))
        b = _flat(right, (1, inner, columns), swap=True)
        return _flat_back(contract(algebra, a, b), like.shape)
    rows = left.shape[-2] if left.ndim > 1 else 1
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    count = math.prod(batch)
    a = _broadcast(algebra, left, (*batch, rows, inner))
    b = _broadcast(algebra, right, (*batch, inner, right.shape[-1]))
    out = contract(algebra, _flat(a, (count, rows, inner)), _flat(b, (count, inner, right.shape[-1]), swap=True))
    return _flat_back(out, like.shape)


def _broadcast(algebra: Algebra, signal: Signal, shape: tuple[int, ...]) -> Signal:
    return Signal(shape, tuple(algebra.expanded(role, shape) for role in signal.roles), None, signal.weights)


@matches("addmm", "baddbmm", "addmv")
def addmm(algebra: Algebra, bias: Signal, left: Signal, right: Signal, **kwargs: Any) -> Signal:
    """`bias + left @ right`."""
    return add(algebra, matmul(algebra, left, right), bias)


@matches("einsum")
def einsum(algebra: Algebra, equation: str, operands: Sequence[Signal], **kwargs: Any) -> Signal:
    """Products of two operands at a time, as batched matrix products; of one, a diagonal, a sum and a permutation."""
    terms, output = einsum_terms(equation, [signal.ndim for signal in operands])
    sizes = _sizes(terms, operands)
    if any(is_zero(signal) for signal in operands):
        shape = tuple(sizes[axis] for axis in output)
        return Signal(shape, value=torch.zeros(()).expand(shape))
    pairs = [_one_of_each(algebra, term, signal, sizes) for term, signal in zip(terms, operands, strict=True)]
    while len(pairs) > 1:
        (left, a), (right, b), *pairs = pairs
        needed = output + "".join(term for term, _ in pairs)
        pairs.insert(0, _einsum_pair(algebra, (left, right), (a, b), needed))
    [(term, signal)] = pairs
    kept = algebra.total(signal, [place for place, axis in enumerate(term) if axis not in output])
    return _permuted(kept, "".join(axis for axis in term if axis in output), list(output))


def einsum_terms(equation: str, ndims: Sequence[int]) -> tuple[list[str], str]:
    """The axes of each operand and of the output, one letter each; an ellipsis stands for letters of its own.

    >>> einsum_terms("...i,oi", [3, 2])
    (['ABi', 'oi'], 'ABo')
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    hidden = [n - len(term.replace("...", "")) for term, n in zip(terms, ndims, strict=True)]
    unused = [letter for letter in ascii_uppercase + ascii_lowercase if letter not in equation]
    letters = "".join(unused[: max((h for h, term in zip(hidden, terms, strict=True) if "..." in term), default=0)])
    terms = [t.replace("...", letters[len(letters) - h :] if h else "") for t, h in zip(terms, hidden, strict=True)]
    if not arrow:
        every = "".join(terms)
        output = letters + "".join(sorted(a for a in set(every) if every.count(a) == 1 and a not in letters))
    return terms, output.replace("...", letters)


def dotted(ndims: Sequence[int], over: Sequence[int], onto: Sequence[int]) -> tuple[list[str], str]:
    """A `tensordot` over these axes of its two factors, as terms and output of an einsum.

    >>> dotted([2, 3], [1], [0])
    (['ab', 'bde'], 'ade')
    """
    one, other = list(ascii_lowercase[: ndims[0]]), list(ascii_lowercase[ndims[0] : sum(ndims)])
    for axis, partner in zip(over, onto, strict=True):
        other[partner] = one[axis]
    output = [axis for axis in (*one, *other) if (axis in one) != (axis in other)]
    return ["".join(one), "".join(other)], "".join(output)


def _sizes(terms: Sequence[str], operands: Sequence[Signal]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for term, signal in zip(terms, operands, strict=True):
        for axis, size in zip(term, signal.shape, strict=True):
            sizes[axis] = max(size, sizes.get(axis, 1))
    return sizes


def _one_of_each(algebra: Algebra, term: str, signal: Signal, sizes: Mapping[str, int]) -> tuple[str, Signal]:
    """An operand broadcast to the common sizes, with the diagonal of axes that bear the same letter."""
    shape = tuple(sizes[axis] for axis in term)
    if shape != signal.shape:
        signal = Signal(shape, tuple(algebra.expanded(role, shape) for role in signal.roles), None, signal.weights)
    while repeated := next((axis for axis in term if term.count(axis) > 1), None):
        first, second = term.index(repeated), term.rindex(repeated)
        move = lambda labels, i=first, j=second: labels.diagonal(0, i, j)  # noqa: E731
        roles = tuple(algebra.close(role.moved(move)) for role in signal.roles)
        term = (
            term.replace(repeated, "") + repeated if term.count(repeated) == 2 else term[:second] + term[second + 1 :]
        )
        signal = Signal(tuple(sizes[axis] for axis in term), roles, None, signal.weights)
    return term, signal


def _einsum_pair(
    algebra: Algebra, terms: tuple[str, str], operands: tuple[Signal, Signal], needed: str
) -> tuple[str, Signal]:
    left, right = terms
    sizes = _sizes(terms, operands)
    batch = [axis for axis in left if axis in right and axis in needed]
    inner = [axis for axis in left if axis in right and axis not in needed]
    alone = [[axis for axis in term if axis not in other] for term, other in ((left, right), (right, left))]
    size = lambda axes: math.prod(sizes[axis] for axis in axes)  # noqa: E731
    sides = [
        _flat(_permuted(op, term, [*batch, *own, *inner]), (size(batch), size(own), size(inner)))
        for op, term, own in zip(operands, terms, alone, strict=True)
    ]
    order = [*batch, *alone[0], *alone[1]]
    out = _flat_back(contract(algebra, *sides), [sizes[axis] for axis in order])
    unneeded = [place for place, axis in enumerate(order) if axis not in needed]
    kept = algebra.total(out, unneeded) if unneeded else out
    return "".join(axis for axis in order if axis in needed), kept


def _permuted(signal: Signal, term: str, order: Sequence[str]) -> Signal:
    places = [term.index(axis) for axis in order]
    roles = tuple(role.moved(lambda labels: labels.permute(places)) for role in signal.roles)
    value = None if signal.value is None else signal.value.permute(places)
    return Signal(tuple(signal.shape[place] for place in places), roles, value, signal.weights)


def dot(algebra: Algebra, left: Signal, right: Signal, axes: Sequence[int], keep: bool) -> Signal:
    """`(left * right).sum(axes)` of two tensors of one shape, as `q · k` is written at times."""
    letters = ascii_lowercase[: left.ndim]
    kept = [axis for axis in range(left.ndim) if axis not in axes]
    out = einsum(algebra, f"{letters},{letters}->{''.join(letters[axis] for axis in kept)}", [left, right])
    return _flat_back(out, [1 if axis in axes else size for axis, size in enumerate(left.shape)]) if keep else out


@matches("bilinear")
def bilinear(algebra: Algebra, x: Signal, y: Signal, weight: Signal, bias: Signal | None = None) -> Signal:
    """`x A_o y + b_o`: each of the three axes of the form is one side of an interface."""
    outer, rows, columns = weight.shape
    count = math.prod(x.shape[:-1])
    form = _permuted(weight, "oij", "oji")
    half = contract(algebra, _flat(x, (1, count, rows)), _flat(form, (1, outer * columns, rows)))
    read = Signal((count, outer, columns), _flat(half, (count, outer, columns)).roles, None, weight.weights)
    whole = contract(algebra, read, _flat(y, (count, 1, columns)))
    result = _flat_back(Signal(whole.shape, whole.roles), (*x.shape[:-1], outer))
    return result if bias is None else add(algebra, result, bias)


@matches("conv1d", "conv2d", "conv3d")
def convolution(
    algebra: Algebra,
    x: Signal,
    weight: Signal,
    bias: Signal | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Signal:
    """A linear map on channels, the same at every position; zero padding moves with anything."""
    settings = stride, padding, dilation, groups
    return _convolution("conv", algebra, x, weight, bias, settings, groups)


@matches("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    algebra: Algebra,
    x: Signal,
    weight: Signal,
    bias: Signal | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
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
    settings: Sequence[Any],
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
        turned = tuple(_swapped(role) for role in signal.roles)
        return Signal((groups, inner, outer // groups), turned, None, weight.weights)
    return signal
