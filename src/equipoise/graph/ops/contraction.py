"""Linear maps, convolutions and matrix products: generators of what is summed over cancel, the others pass on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import ascii_lowercase, ascii_uppercase
from typing import TypeAlias

import torch
from torch import fx
from torch.utils import _pytree as pytree

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.shift_groups import LETTERS, Groups, Rows, broadcast_terms, contracted, dense, spread
from equipoise.graph.labels.signal import Role, Signal, is_zero, reshaped
from equipoise.graph.ops import rules
from equipoise.graph.ops.arithmetic import add
from equipoise.graph.ops.operator import (
    Contraction,
    Operator,
    Regularity,
    Shape,
    ShiftRule,
    Site,
    Sources,
    Trait,
    declare,
)

# Symmetries -----------------------------------------------------------------------------------------------------------


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
    out += [_placed(role, (batch, 1, columns), shape) for role in (swapped(role) for role in carried[1])]
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


def swapped(role: Role) -> Role:
    """The role of `(b, i, k)` as that of `(b, k, i)`."""
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
    if fixed and sums[0].varies(2):  # what the fixed matrix carries over would do as well
        algebra.narrowed.add(algebra.place)
    alike = algebra.uniform(sums[0], [2])
    return [_placed(alike, (shape[0], 1, 1), shape)]


def flat(signal: Signal, shape: Sequence[int], *, swap: bool = False) -> Signal:
    """A tensor as `(b, i, k)`, or `(b, k, i)` swapped to it."""
    move = lambda labels: reshaped(labels, shape).transpose(1, 2) if swap else reshaped(labels, shape)  # noqa: E731
    final = (shape[0], shape[2], shape[1]) if swap else tuple(shape)
    value = None if signal.value is None else move(signal.value)
    return Signal(tuple(final), tuple(role.moved(move) for role in signal.roles), value, signal.weights)


def linear(algebra: Algebra, x: Signal, weight: Signal, bias: Signal | None = None) -> Signal:
    """`x Wᵀ + b`."""
    if is_zero(x):
        nothing = torch.zeros(*x.shape[:-1], weight.shape[0])
        out = Signal(tuple(nothing.shape), value=nothing)
        return out if bias is None else add(algebra, out, bias)
    inner = x.shape[-1]
    rows = weight.shape[0] if weight.ndim == 2 else 1
    out = contract(algebra, flat(x, (1, math.prod(x.shape[:-1]), inner)), flat(weight, (1, rows, inner)))
    result = flat_back(out, (*x.shape[:-1], *weight.shape[:-1]))
    return result if bias is None else add(algebra, result, bias)


def flat_back(signal: Signal, shape: Sequence[int]) -> Signal:
    """A product in the shape of the result."""
    roles = tuple(role.moved(lambda labels: reshaped(labels, shape)) for role in signal.roles)
    return Signal(tuple(shape), roles, None, signal.weights)


def matmul(algebra: Algebra, left: Signal, right: Signal) -> Signal:
    """`left @ right`, broadcast over leading axes."""
    like = torch.matmul(torch.empty(left.shape, device="meta"), torch.empty(right.shape, device="meta"))
    if is_zero(left) or is_zero(right):
        return Signal(tuple(like.shape), value=torch.zeros(like.shape))
    inner = left.shape[-1]
    if right.ndim <= 2:
        columns = right.shape[1] if right.ndim == 2 else 1
        a = flat(left, (1, math.prod(left.shape[:-1]), inner))
        b = flat(right, (1, inner, columns), swap=True)
        return flat_back(contract(algebra, a, b), like.shape)
    rows = left.shape[-2] if left.ndim > 1 else 1
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    count = math.prod(batch)
    a = _broadcast(algebra, left, (*batch, rows, inner))
    b = _broadcast(algebra, right, (*batch, inner, right.shape[-1]))
    out = contract(algebra, flat(a, (count, rows, inner)), flat(b, (count, inner, right.shape[-1]), swap=True))
    return flat_back(out, like.shape)


def _broadcast(algebra: Algebra, signal: Signal, shape: tuple[int, ...]) -> Signal:
    return Signal(shape, tuple(algebra.expanded(role, shape) for role in signal.roles), None, signal.weights)


def addmm(algebra: Algebra, bias: Signal, left: Signal, right: Signal, **kwargs: object) -> Signal:
    """`bias + left @ right`."""
    return add(algebra, matmul(algebra, left, right), bias)


def einsum(algebra: Algebra, equation: str, operands: Sequence[Signal], **kwargs: object) -> Signal:
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
    """The axes of each operand and of the output, one letter each; an ellipsis has letters of its own.

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
        flat(_permuted(op, term, [*batch, *own, *inner]), (size(batch), size(own), size(inner)))
        for op, term, own in zip(operands, terms, alone, strict=True)
    ]
    order = [*batch, *alone[0], *alone[1]]
    out = flat_back(contract(algebra, *sides), [sizes[axis] for axis in order])
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
    return flat_back(out, [1 if axis in axes else size for axis, size in enumerate(left.shape)]) if keep else out


def bilinear(algebra: Algebra, x: Signal, y: Signal, weight: Signal, bias: Signal | None = None) -> Signal:
    """`x A_o y + b_o`: each of the three axes of the form is one side of an interface."""
    outer, rows, columns = weight.shape
    count = math.prod(x.shape[:-1])
    form = _permuted(weight, "oij", "oji")
    half = contract(algebra, flat(x, (1, count, rows)), flat(form, (1, outer * columns, rows)))
    read = Signal((count, outer, columns), flat(half, (count, outer, columns)).roles, None, weight.weights)
    whole = contract(algebra, read, flat(y, (count, 1, columns)))
    result = flat_back(Signal(whole.shape, whole.roles), (*x.shape[:-1], outer))
    return result if bias is None else add(algebra, result, bias)


def tensordot(algebra: Algebra, left: Signal, right: Signal, over: Sequence[int], onto: Sequence[int]) -> Signal:
    """A product summed over these axes of the factors."""
    terms, output = dotted([left.ndim, right.ndim], over, onto)
    return einsum(algebra, f"{','.join(terms)}->{output}", [left, right])


# Shifts ---------------------------------------------------------------------------------------------------------------

Spelled: TypeAlias = tuple[list[str], str]


def _shift_of_product(contraction: Contraction) -> ShiftRule:
    """Rows of a factor may be shifted where every row of the result allows it; a bias moves as the result does."""

    def rule(site: Site, groups: Groups | Rows) -> Sources:
        sources = [each for each in pytree.tree_leaves(site.args[contraction.factors]) if isinstance(each, fx.Node)]
        shapes, labels = [site.shape_of(source) for source in sources], dense(groups, site.shape)
        if labels is None:
            return
        yield from zip(sources, contracted(labels, *contraction.terms(site, shapes), shapes), strict=True)
        summand = None if contraction.bias is None else site.tensor(contraction.bias)
        if summand is not None:
            yield summand, spread(labels, site.shape_of(summand), site.shape)

    return rule


def _linear_terms(site: Site, shapes: list[Shape]) -> Spelled:
    lead = LETTERS[: len(shapes[0]) - 1]
    return [lead + "z", "yz"[2 - len(shapes[1]) :]], lead + ("y" if len(shapes[1]) == 2 else "")


def _matrix_terms(site: Site, shapes: list[Shape]) -> Spelled:
    left, right = shapes
    rows, columns = ("x" if len(left) > 1 else ""), ("y" if len(right) > 1 else "")
    ndim = max(len(left), len(right), 2) - 2
    (one, other), batch = broadcast_terms([left[:-2], right[:-2]], ndim)
    return [one + rows + "z", other + "z" + columns], batch + rows + columns


def _bilinear_terms(site: Site, shapes: list[Shape]) -> Spelled:
    lead = LETTERS[: len(shapes[0]) - 1]
    return [lead + "z", lead + "y", "xzy"], lead + "x"


def _einsum_terms(site: Site, shapes: list[Shape]) -> Spelled:
    return einsum_terms(str(site.args[0]), [len(shape) for shape in shapes])


def _tensordot_terms(site: Site, shapes: list[Shape]) -> Spelled:
    return dotted([len(shape) for shape in shapes], site.integers(2), site.integers(3))


# Degrees --------------------------------------------------------------------------------------------------------------


def _of_einsum(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    return sum(of(operand) for operand in node.args[1])  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]


def _of_bilinear(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    biases = [of(bias) for bias in node.args[3:4] if isinstance(bias, fx.Node)]
    return of.agreed([sum(of(factor) for factor in node.args[:3]), *biases])


# Declarations ---------------------------------------------------------------------------------------------------------


def _contracting(contraction: Contraction) -> Operator:
    return Operator(
        shift=_shift_of_product(contraction),
        contraction=contraction,
        degree=rules.multiplied,
        regularity=Regularity.LINEAR,
        traits=Trait.PRODUCT,
    )


declare(
    "linear",
    replace(
        _contracting(Contraction(_linear_terms)),
        symmetry=linear,
        exchange=rules.added_last(2),
        lift=rules.lifted_map,
    ),
)
_MATRICES = replace(_contracting(Contraction(_matrix_terms, bias=None)), symmetry=matmul)
declare("matmul mm bmm", replace(_MATRICES, lift=rules.lifted_map))
declare("mv dot", _MATRICES)
declare(
    "addmm baddbmm addmv",
    replace(
        _contracting(Contraction(_matrix_terms, slice(1, 3), bias=0)),
        symmetry=addmm,
        exchange=rules.added_first,
        degree=rules.multiplied_and_added,
    ),
)
declare(
    "einsum",
    replace(_contracting(Contraction(_einsum_terms, slice(1, 2), None)), symmetry=einsum, degree=_of_einsum),
)
declare("tensordot", replace(_contracting(Contraction(_tensordot_terms, bias=None)), symmetry=tensordot))
declare(
    "bilinear",
    replace(
        _contracting(Contraction(_bilinear_terms, slice(0, 3), bias=3)),
        symmetry=bilinear,
        exchange=rules.added_last(3),
        degree=_of_bilinear,
    ),
)
