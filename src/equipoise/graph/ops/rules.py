"""Rules that operations of several families share: degrees, exchanges of shifts, and sums over paths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeAlias, runtime_checkable

from torch import fx
from torch.fx.node import Argument

# Degrees (homogeneity) ------------------------------------------------------------------------------------------------


class Mixed(ValueError):
    """Terms of different degrees, which have none together."""


@dataclass(frozen=True)
class LinearDegree:
    """A degree that depends on those of the parameters: `Σ c_p λ_p`, by the name of the parameter."""

    coefficients: Mapping[str, Fraction]

    def __bool__(self) -> bool:
        return any(self.coefficients.values())

    def __add__(self, other: "Degree") -> "LinearDegree":
        total = dict(self.coefficients)
        if isinstance(other, LinearDegree):  # numbers have degree 0
            for name, value in other.coefficients.items():
                total[name] = total.get(name, Fraction(0)) + value
        return LinearDegree(total)

    __radd__ = __add__

    def __mul__(self, factor: int) -> "LinearDegree":
        return LinearDegree({name: factor * value for name, value in self.coefficients.items()})

    __rmul__ = __mul__

    def __neg__(self) -> "LinearDegree":
        return -1 * self

    def __sub__(self, other: "Degree") -> "LinearDegree":
        return self + (-1 * other)

    def __rsub__(self, other: "Degree") -> "LinearDegree":
        return -self + other


Degree: TypeAlias = "int | LinearDegree"


@runtime_checkable
class Degrees(Protocol):
    """The degrees of what a node reads, and what its rule demands of them."""

    def __call__(self, argument: Argument) -> Degree:
        """That of an argument; 0 of a number."""
        ...

    def agreed(self, degrees: Sequence[Degree], /) -> Degree:
        """The one degree of several terms. Raises `Mixed` where they certainly differ."""
        ...

    def with_eps(self, degree: Degree, eps: object, /) -> None:
        """Demand degree 0 of what a small constant is added to, unless that is zero."""
        ...


DegreeRule: TypeAlias = Callable[[fx.Node, Degrees], Degree]
"""`rule(node, degrees of its arguments)`: the degree of its result. Raises `Mixed`."""


def normalised(gain: int, bias: int | None, eps: int) -> DegreeRule:
    """A normalisation of the first argument, whose scale goes; then a gain and a bias, at these places."""

    def rule(node: fx.Node, of: Degrees) -> Degree:
        of.with_eps(of(node.args[0]), node.args[eps] if len(node.args) > eps else True)
        places = [place for place in (gain, bias) if place is not None and len(node.args) > place]
        learnt = [node.args[place] for place in places if isinstance(node.args[place], fx.Node)]
        return of.agreed([of(each) for each in learnt] or [0])

    return rule


def kept(node: fx.Node, of: Degrees) -> Degree:
    """That of the first argument: linear in it alone, or positively homogeneous."""
    return of(node.args[0])


def invariant(node: fx.Node, of: Degrees) -> Degree:
    """Positive factors of what is read make no difference."""
    return 0


def multiplied(node: fx.Node, of: Degrees) -> Degree:
    """A product of two, and a third argument that is added to it."""
    third = [of(bias) for bias in node.args[2:3] if isinstance(bias, fx.Node)]
    return of.agreed([of(node.args[0]) + of(node.args[1]), *third])


def multiplied_and_added(node: fx.Node, of: Degrees) -> Degree:
    """The first argument, and a product of the next two."""
    return of.agreed([of(node.args[0]), of(node.args[1]) + of(node.args[2])])


def divided_and_added(node: fx.Node, of: Degrees) -> Degree:
    """The first argument, and a quotient of the next two."""
    return of.agreed([of(node.args[0]), of(node.args[1]) - of(node.args[2])])


def divided(node: fx.Node, of: Degrees) -> Degree:
    """A quotient."""
    if node.kwargs.get("rounding_mode"):
        raise Mixed("a quotient that is rounded")
    return of(node.args[0]) - of(node.args[1])


def joined(node: fx.Node, of: Degrees) -> Degree:
    """Tensors side by side."""
    return of.agreed([of(part) for part in node.args[0]])  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]


def terms(*places: int) -> DegreeRule:
    """Terms of a sum, or the sides of a choice, at these places; a number has degree 0, and zero any."""

    def rule(node: fx.Node, of: Degrees) -> Degree:
        found = [node.args[place] for place in places if len(node.args) > place]
        return of.agreed([of(each) for each in found if isinstance(each, fx.Node) or each])

    return rule


# Exchanges of shifts --------------------------------------------------------------------------------------------------

Rates: TypeAlias = Mapping[str, float]
Parts: TypeAlias = tuple[Rates, ...]
"""By how much a tensor moves for each parameter that is shifted; several where its parts move apart."""

STILL: Parts = ({},)
MOST = 16  # parts of a tensor that move apart; with more of them all are held for seen

Exchanged: TypeAlias = tuple[Parts, Sequence[fx.Node]]
ExchangeRule: TypeAlias = Callable[[fx.Node, Callable[[Argument], Parts]], Exchanged]
"""`rule(node, parts of an argument)`: the rates of its result, and the arguments whose shift is seen."""


def passed(node: fx.Node, of: Callable[[Argument], Parts]) -> Exchanged:
    """The first argument moved about, the others seen."""
    return of(node.args[0]), node.all_input_nodes[1:]


def nothing_read(node: fx.Node, of: Callable[[Argument], Parts]) -> Exchanged:
    """Only a shape is read."""
    return STILL, ()


def added_rates(sign: float) -> ExchangeRule:
    """`a + sign · alpha · b`."""

    def rule(node: fx.Node, of: Callable[[Argument], Parts]) -> Exchanged:
        alpha = node.kwargs.get("alpha", 1)
        total = added(of(node.args[0]), of(node.args[1]), sign * float(alpha))  # pyright: ignore[reportArgumentType]
        return (total, ()) if len(total) <= MOST else (STILL, node.all_input_nodes)

    return rule


def multiplied_rates(power: int) -> ExchangeRule:
    """`a · b^power` for a number `b`; a tensor in its place sees `a`, and is seen."""

    def rule(node: fx.Node, of: Callable[[Argument], Parts]) -> Exchanged:
        if isinstance(node.args[1], fx.Node):
            return STILL, node.all_input_nodes
        return added(STILL, of(node.args[0]), float(node.args[1]) ** power), ()  # pyright: ignore[reportArgumentType]

    return rule


def negated_rates(node: fx.Node, of: Callable[[Argument], Parts]) -> Exchanged:
    """`-a`."""
    return added(STILL, of(node.args[0]), -1.0), ()


def joined_rates(node: fx.Node, of: Callable[[Argument], Parts]) -> Exchanged:
    """Tensors side by side."""
    parts = distinct([rates for part in node.args[0] for rates in of(part)])  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
    return (parts, ()) if len(parts) <= MOST else (STILL, node.all_input_nodes)


def added_last(place: int) -> ExchangeRule:
    """The argument at a place, a bias, is added to what is computed from the others."""

    def rule(node: fx.Node, of: Callable[[Argument], Parts]) -> Exchanged:
        bias = node.args[place] if len(node.args) > place else None
        return of(bias), [source for source in node.all_input_nodes if source is not bias]

    return rule


def added_first(node: fx.Node, of: Callable[[Argument], Parts]) -> Exchanged:
    """The first argument is added to a product of the others."""
    if node.args[0] in node.args[1:]:
        return STILL, node.all_input_nodes
    return of(node.args[0]), [source for source in node.all_input_nodes if source is not node.args[0]]


def added(a: Parts, b: Parts, factor: float) -> Parts:
    """Each part of the one with each of the other: too many at most, so that too much is demanded."""
    return distinct([_sum(one, other, factor) for one in a for other in b])


def _sum(a: Rates, b: Rates, factor: float) -> Rates:
    total = dict(a)
    for name, rate in b.items():
        total[name] = total.get(name, 0.0) + factor * rate
    return {name: rate for name, rate in total.items() if rate}


def distinct(parts: Sequence[Rates]) -> Parts:
    """Each of some rates once."""
    found: list[Rates] = []
    for rates in parts:
        found += [] if rates in found else [rates]
    return tuple(found)


# Sums over paths ------------------------------------------------------------------------------------------------------


@runtime_checkable
class PathAlgebra(Protocol):
    """The arithmetic of a path lifting (T5.3); values are sums over paths, or edges."""

    def moved(self, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object], /) -> object:
        """A linear map without weights."""
        ...

    def joined(self, node: fx.Node, args: Sequence[object], /) -> object:
        """Tensors side by side."""
        ...

    def added(self, left: object, right: object, /) -> object:
        """A sum."""
        ...

    def scaled(self, value: object, factor: float, /) -> object:
        """A number times."""
        ...

    def product(self, node: fx.Node, left: object, right: object, /, *, divided: bool = False) -> object:
        """Each element times an edge of its own, or over it."""
        ...

    def contracted(self, node: fx.Node, args: Sequence[object], /) -> object:
        """A linear map by a weight, and a bias."""
        ...

    def window_sums(self, sums: object, args: Sequence[object], /) -> object:
        """Sums over the windows of a pooling operation."""
        ...

    def mean(self, sums: object, args: Sequence[object], /) -> object:
        """A mean over axes."""
        ...


LiftRule: TypeAlias = Callable[[PathAlgebra, fx.Node, Sequence[object], Mapping[str, object]], object]
"""`rule(algebra, node, args, kwargs)`: its sums over paths; None for a form that has none."""


def unchanged(algebra: PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """An activation: its slope is none of the edges."""
    return args[0]


def lifted_moves(algebra: PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """Operations that only move or sum elements."""
    return algebra.moved(node, args, kwargs)


def lifted_join(algebra: PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """Tensors side by side."""
    return algebra.joined(node, args)


def lifted_map(algebra: PathAlgebra, node: fx.Node, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """A linear map by a weight."""
    return algebra.contracted(node, args)
