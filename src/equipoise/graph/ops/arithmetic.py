"""Sums, products, powers and interpolation, and sums written by hand that centre a tensor."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor, fx
from torch.fx.node import Argument

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.relations import selection
from equipoise.graph.labels.shift_groups import Groups, Rows, along, broadcast_terms, contracted, dense, spread
from equipoise.graph.labels.signal import ZERO, Signal, blank, is_zero
from equipoise.graph.ops import rules
from equipoise.graph.ops.operator import (
    CombinationRule,
    Eps,
    Operator,
    Regularity,
    Site,
    Sources,
    Summands,
    Trait,
    Unreadable,
    declare,
    element_numbers,
    moving,
    operation_name,
    operator_of,
    rest,
)

Number: TypeAlias = int | float
Term: TypeAlias = Signal | Number

# Symmetries -----------------------------------------------------------------------------------------------------------


def as_signal(term: Term) -> Signal:
    """A number as a tensor without axes."""
    return term if isinstance(term, Signal) else Signal((), value=torch.tensor(term))


def add(algebra: Algebra, left: Term, right: Term, *, alpha: object = 1) -> Signal:
    """Summands must move alike; adding zero demands nothing."""
    left, right = (_as_wildcard(signal) for signal in algebra.broadcast(as_signal(left), as_signal(right)))
    return Signal(left.shape, tuple(algebra.added(left, right)), None, left.weights & right.weights)


def _as_wildcard(signal: Signal) -> Signal:
    """A tensor of zeros moves with anything."""
    return signal.with_roles([blank(signal.shape, ZERO)]) if is_zero(signal) else signal


def multiply(algebra: Algebra, left: Signal, right: Term) -> Signal:
    """Generators add; a number changes nothing."""
    if not isinstance(right, Signal):
        return left.with_roles([algebra.renewed(role) for role in left.roles])
    if is_zero(left) or is_zero(right):
        shape = tuple(torch.broadcast_shapes(left.shape, right.shape))
        return Signal(shape, value=torch.zeros(()).expand(shape))
    return algebra.product(left, right)


def divide(algebra: Algebra, left: Signal, right: Term, **kwargs: object) -> Signal:
    """Generators subtract."""
    if not isinstance(right, Signal):
        return multiply(algebra, left, right)
    if kwargs.get("rounding_mode"):
        return rest(algebra, tuple(torch.broadcast_shapes(left.shape, right.shape)), left, right)
    return algebra.product(left, power(algebra, right, -1))


def power(algebra: Algebra, signal: Term, exponent: Term | Fraction) -> Signal:
    """Homogeneous of the exponent's degree."""
    if not isinstance(signal, Signal) or isinstance(exponent, Signal):
        operands = [side for side in (signal, exponent) if isinstance(side, Signal)]
        return rest(algebra, tuple(torch.broadcast_shapes(*(side.shape for side in operands))), *operands)
    if not moving(signal) or exponent == 0:
        return Signal(signal.shape)
    if exponent == 2:
        algebra.turns(signal, [-1])
    return algebra.scaled(signal, Fraction(exponent))


def _to_the(exponent: int | Fraction) -> Callable[[Algebra, Signal], Signal]:
    return lambda algebra, signal: power(algebra, signal, exponent)


def interpolated(algebra: Algebra, start: Signal, end: Signal, weight: Term) -> Signal:
    """`start + weight (end - start)`: both must move alike."""
    if not isinstance(weight, Signal):
        return add(algebra, start, end)
    algebra.still(weight)
    fixed = weight.with_roles([])
    return add(algebra, algebra.product(start, fixed), algebra.product(end, fixed))


def product_added(algebra: Algebra, signal: Signal, left: Signal, right: Signal, *, value: object = 1) -> Signal:
    """`signal + value · left · right`."""
    return add(algebra, signal, algebra.product(left, right))


def quotient_added(algebra: Algebra, signal: Signal, left: Signal, right: Signal, *, value: object = 1) -> Signal:
    """`signal + value · left / right`."""
    return add(algebra, signal, divide(algebra, left, right))


# Shifts ---------------------------------------------------------------------------------------------------------------


def ignored_by_centring(site: Site) -> Sources:
    """`x - mean(x)`, `x - max(x)` or `y + pool(x) - x`, written by hand: both nodes together ignore a shift."""
    own = operator_of(site.node).is_a(Trait.CENTRE)
    for centre in [site.node] if own else _summands(site.tensors()):
        whole = replace(site, node=centre)
        axes = _axes_of_centre(whole) if operator_of(centre).is_a(Trait.CENTRE) else None
        if axes is None:
            continue
        source = whole.source()
        if source in site.node.all_input_nodes and _subtracted(centre, source, site):
            yield source, along(site.shape_of(source), axes)


def _summands(values: Iterable[fx.Node]) -> Counter[fx.Node]:
    """The values, and those that they are the sum of, each as often as it occurs there."""
    found = Counter(map(_undetached, values))
    reached, queue = set(found), list(found)
    while queue:
        fresh = {*_terms(queue.pop())} - reached
        reached |= fresh
        queue += fresh
    for node in sorted(reached, reverse=True):  # after all sums that it occurs in
        for term in _terms(node):
            found[term] += found[node]
    return found


def _terms(node: fx.Node) -> list[fx.Node]:
    """The tensors that a sum adds; none of another value."""
    terms = node.args[:2] if operation_name(node.target) == "add" else ()
    return [_undetached(term) for term in terms if isinstance(term, fx.Node)]


def _subtracted(value: fx.Node, source: fx.Node, site: Site) -> bool:
    """Whether all readers of a value subtract the source from it, or it from the source, some after adding others."""
    queue, seen = [value], {value}
    while queue:
        for reader in [each for user in queue.pop().users for each in _detached_readers(user, site)]:
            name = operation_name(reader.target)
            adds = name == "add" and len(reader.args) == 2 and not reader.kwargs
            if not (adds or (name == "sub" and _subtracts(reader, source))):
                return False
            if adds and reader not in seen:
                seen.add(reader)
                queue.append(reader)
    return True


def _subtracts(node: fx.Node, source: fx.Node) -> bool:
    """Whether a difference is one between a value and a sum in which one mean, maximum or pool of it occurs, once."""
    if len(node.args) != 2 or node.kwargs or source not in node.args:
        return False
    parts = _summands(node.all_input_nodes)
    own = (each for each in parts if operator_of(each).is_a(Trait.CENTRE) and source in each.all_input_nodes[:1])
    return sum(parts[each] for each in own) == 1


def _axes_of_centre(site: Site) -> Sequence[int] | None:
    """The axes along which a common shift moves a mean, a maximum or a pool by as much; None if it does not."""
    if operator_of(site.node).is_a(Trait.POOLING):
        counted, divisor = (*site.args[5:7], *(True, None)[len(site.args[5:7]) :])
        same = site.shape == site.shape_of(site.source()) and divisor is None
        same = same and not (counted and any(site.integers(3)))
        return range(-len(site.integers(1)), 0) if same else None
    return site.integers(1) if len(site.args) > 2 and site.args[2] else None


def _undetached(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0] if operation_name(node.target) == "detach" else node


def _detached_readers(node: fx.Node, site: Site) -> list[fx.Node]:
    """The readers of a `detach`, where gradients pass it; any other node itself."""
    return list(node.users) if site.through_detach and operation_name(node.target) == "detach" else [node]


def shift_of_sum(site: Site, groups: Groups | Rows) -> Sources:
    """A summand moves as the sum does."""
    for source in site.tensors():
        yield source, spread(groups, site.shape_of(source), site.shape)


def shift_of_product(site: Site, groups: Groups | Rows) -> Sources:
    """A factor moves with all that it is multiplied with by the same number."""
    sources = list(site.tensors())
    if site.tensor(1) is None:
        yield sources[0], groups
    elif len(sources) == 2:
        yield from zip(sources, _factors(site, sources, groups), strict=False)


def shift_of_quotient(site: Site, groups: Groups | Rows) -> Sources:
    """The dividend as a factor."""
    yield from list(shift_of_product(site, groups))[:1] if site.tensor(0) is not None else ()


def _shift_of_first(site: Site, groups: Groups | Rows) -> Sources:
    """A sum with a product or a quotient: the summand moves as the sum does."""
    source = site.source()
    yield source, spread(groups, site.shape_of(source), site.shape)


def _shift_of_interpolation(site: Site, groups: Groups | Rows) -> Sources:
    """Both ends, by a number: each moves the result by its share."""
    if site.tensor(2) is None:
        yield from shift_of_sum(site, groups)


def _factors(site: Site, sources: Sequence[fx.Node], groups: Groups | Rows) -> Iterator[Groups | Rows | None]:
    after = site.shape
    labels, shapes = dense(groups, after), [site.shape_of(source) for source in sources]
    if labels is None:
        return
    factors = contracted(labels, *broadcast_terms(shapes, len(after)), shapes)
    for factor, shape, other in zip(factors, shapes, reversed(sources), strict=True):
        value = site.value(other)
        same = value is not None and value.numel() > 0 and bool((value == value.flatten()[0]).all())
        yield spread(groups, shape, after) if same else dense(factor, shape)


# Combinations ---------------------------------------------------------------------------------------------------------


def broadcast_elements(site: Site, source: fx.Node) -> csr_array:
    """The elements of an argument, by those of the result that it is broadcast to."""
    shape = site.shape_of(source)
    return selection(element_numbers(shape).expand(site.shape).reshape(-1).numpy(), math.prod(shape))


def _summed_elements(sign: float) -> CombinationRule:
    """`a + sign · alpha · b`."""

    def rule(site: Site) -> Summands:
        factors = (1.0, sign * float(site.node.kwargs.get("alpha", 1)))  # pyright: ignore[reportArgumentType]
        for argument, factor in zip(site.args[:2], factors, strict=True):
            if isinstance(argument, fx.Node):
                yield argument, factor * broadcast_elements(site, argument)
            else:
                yield None, csr_array(np.full((math.prod(site.shape), 1), factor * float(argument)))  # pyright: ignore[reportArgumentType]

    return rule


def _scaled_elements(power: int) -> CombinationRule:
    """`a · b^power` for a number, or a tensor that depends on neither inputs nor parameters."""

    def rule(site: Site) -> Summands:
        if len(site.args) != 2 or site.node.kwargs:
            raise Unreadable("rounded")
        source, factor = site.args
        if isinstance(factor, fx.Node) and site.value(factor) is None and power == 1:
            source, factor = factor, source
        value = site.value(factor) if isinstance(factor, fx.Node) else torch.tensor(factor, dtype=torch.float64)  # pyright: ignore[reportArgumentType]
        if value is None or not isinstance(source, fx.Node):
            raise Unreadable("by the data")
        scales = value.detach().double().expand(site.shape).reshape(-1).numpy() ** float(power)
        yield source, csr_array(diags_array(scales) @ broadcast_elements(site, source))

    return rule


# Exchanges of shifts --------------------------------------------------------------------------------------------------


def _interpolated_rates(node: fx.Node, of: Callable[[Argument], rules.Parts]) -> rules.Exchanged:
    """`(1 - t) a + t b` for a number `t`."""
    start, end, share = node.args[:3]
    if not isinstance(share, (int, float)):
        return rules.STILL, node.all_input_nodes
    total = rules.added(rules.added(rules.STILL, of(start), 1 - share), of(end), share)
    return (total, ()) if len(total) <= rules.MOST else (rules.STILL, node.all_input_nodes)


# Degrees --------------------------------------------------------------------------------------------------------------


def _of_power(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    """A whole multiple, where the exponent is an integer."""
    exponent = node.args[1]
    if not isinstance(exponent, (int, float)) or exponent != int(exponent):
        raise rules.Mixed("an exponent that is no integer")
    return of(node.args[0]) * int(exponent)


def _of_square(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    return 2 * of(node.args[0])


def _of_reciprocal(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    return -of(node.args[0])


def _of_interpolation(node: fx.Node, of: rules.Degrees) -> rules.Degree:
    """Both ends, by a weight of degree 0."""
    start, end, weight = node.args[:3]
    return of.agreed([of(start), of(end), of(start) + of(weight)])


# Sums over paths ------------------------------------------------------------------------------------------------------


def _lifted_sum(
    algebra: rules.PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    return None if kwargs else algebra.added(args[0], args[1])


def _lifted_difference(
    algebra: rules.PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    return None if kwargs else algebra.added(args[0], algebra.scaled(args[1], -1.0))


def _lifted_product(
    algebra: rules.PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    return algebra.product(node, args[0], args[1]) if len(args) == 2 else None


def _lifted_quotient(
    algebra: rules.PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    return algebra.product(node, args[0], args[1], divided=True) if len(args) == 2 else None


# eps ------------------------------------------------------------------------------------------------------------------


def _eps_times(args: Sequence[object], factor: Tensor) -> Tensor:
    """The `eps` of a normalisation that is written out."""
    return args[0] + args[1] * factor  # pyright: ignore[reportOperatorIssue]


# Declarations ---------------------------------------------------------------------------------------------------------

_SUM = Operator(
    symmetry=add,
    shift=shift_of_sum,
    exchange=rules.added_rates(1.0),
    combination=_summed_elements(1.0),
    degree=rules.terms(0, 1),
    regularity=Regularity.LINEAR,
    lift=_lifted_sum,
)
declare("add", replace(_SUM, eps=Eps(1, compute=_eps_times)))
declare(
    "sub",
    replace(
        _SUM,
        ignores=ignored_by_centring,
        exchange=rules.added_rates(-1.0),
        combination=_summed_elements(-1.0),
        lift=_lifted_difference,
    ),
)
declare("rsub", Operator(symmetry=add, regularity=Regularity.LINEAR, degree=rules.terms(0, 1)))
_PRODUCT = Operator(
    symmetry=multiply,
    shift=shift_of_product,
    exchange=rules.multiplied_rates(1),
    combination=_scaled_elements(1),
    degree=rules.multiplied,
    regularity=Regularity.LINEAR,
    lift=_lifted_product,
)
declare("mul", _PRODUCT)
declare(
    "div",
    replace(
        _PRODUCT,
        symmetry=divide,
        shift=shift_of_quotient,
        exchange=rules.multiplied_rates(-1),
        combination=_scaled_elements(-1),
        degree=rules.divided,
        lift=_lifted_quotient,
    ),
)
declare("true_divide", Operator(symmetry=divide, degree=rules.divided))
declare(
    "lerp",
    Operator(
        symmetry=interpolated,
        shift=_shift_of_interpolation,
        exchange=_interpolated_rates,
        degree=_of_interpolation,
        regularity=Regularity.LINEAR,
    ),
)
_ADDED_TO = Operator(shift=_shift_of_first, exchange=rules.added_first)
declare(
    "addcmul",
    replace(_ADDED_TO, symmetry=product_added, degree=rules.multiplied_and_added, regularity=Regularity.LINEAR),
)
declare(
    "addcdiv",
    replace(_ADDED_TO, symmetry=quotient_added, degree=rules.divided_and_added, regularity=Regularity.SMOOTH),
)

_POWER = Operator(regularity=Regularity.SMOOTH, traits=Trait.ROOT)
declare("reciprocal", replace(_POWER, symmetry=_to_the(-1), degree=_of_reciprocal))
declare("sqrt", replace(_POWER, symmetry=_to_the(Fraction(1, 2)), traits=Trait.ROOT | Trait.HOMOGENEOUS))
declare("rsqrt", replace(_POWER, symmetry=_to_the(Fraction(-1, 2))))
declare("pow", replace(_POWER, symmetry=power, degree=_of_power, traits=Trait.ROOT | Trait.HOMOGENEOUS))
declare("square", Operator(symmetry=_to_the(2), degree=_of_square, regularity=Regularity.SMOOTH))
