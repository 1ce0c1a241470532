"""Homogeneity in the weights, proved by operations: `f(x; a w) = a^L f(x; w)` for `a > 0` (docs/theory.md §0).

And quasi-homogeneity: exponents of the parameters under which the output has degree 1, by linear programmes (T11).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog
from torch import fx
from torch.fx.node import Argument

from equipoise.graph.capture import Captured
from equipoise.graph.ops import operation_name, operator_of
from equipoise.graph.ops.rules import Degree, LinearDegree, Mixed


@dataclass(frozen=True)
class Homogeneity:
    """The degree `L` in all weights together, or the operation that prevents one."""

    degree: int | None
    obstacle: str = ""


class _Obstacle(Exception):
    pass


def homogeneity(captured: Captured) -> Homogeneity:
    """The degree of the output in the parameters, where every operation on the way is homogeneous.

    A proof, not a measurement: parameters have degree 1, inputs and constants 0; products add degrees, sums need equal
    ones. So a bias of the first layer does no harm, one further up does, and so does an identity skip.

    >>> import torch
    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> read = lambda *layers: homogeneity(capture(nn.Sequential(*layers), torch.ones(2, 3)))
    >>> read(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1, bias=False))
    Homogeneity(degree=2, obstacle='')
    >>> read(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).obstacle
    'linear: terms of degrees 2 and 1'
    >>> read(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).obstacle
    'tanh of what has degree 1'
    """
    degrees: dict[fx.Node, int] = {}
    try:
        for node in captured.graph.nodes:
            if node.op == "call_function":
                degrees[node] = _degree(node, degrees)
            else:
                degrees[node] = int(node.name in captured.parameters)
        found = {degrees[node] for node in captured.output}
    except _Obstacle as obstacle:
        return Homogeneity(None, str(obstacle))
    return Homogeneity(found.pop()) if len(found) == 1 else Homogeneity(None, f"outputs of degrees {sorted(found)}")


def _degree(node: fx.Node, degrees: Mapping[fx.Node, int]) -> int:
    """By the rule that the operation declares; what reads nothing that scales does not scale."""
    found = [degrees[source] for source in node.all_input_nodes]
    if not any(found):
        return 0
    name, rule = operation_name(node.target), operator_of(node).degree
    if rule is None:
        raise _Obstacle(f"{name} of what has degree {max(found)}")
    try:
        degree = rule(node, _WholeDegrees(degrees))
    except Mixed as mixed:
        raise _Obstacle(f"{name}: {mixed}") from None
    assert isinstance(degree, int)
    return degree


@dataclass(frozen=True)
class _WholeDegrees:
    """Degrees that are known: terms must have the same."""

    degrees: Mapping[fx.Node, int]

    def __call__(self, argument: Argument) -> Degree:
        return self.degrees[argument] if isinstance(argument, fx.Node) else 0

    def agreed(self, degrees: Sequence[Degree]) -> Degree:
        if len(set(degrees)) > 1:
            raise Mixed(f"terms of degrees {' and '.join(map(str, dict.fromkeys(degrees)))}")
        return degrees[0] if degrees else 0

    def with_eps(self, degree: Degree, eps: object) -> None:
        if degree and eps != 0:
            raise Mixed(f"an eps beside what has degree {degree}")


# Quasi-homogeneity ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuasiHomogeneity:
    """Exponents `λ_p ≥ 0` with `f(ψ_a θ) = e^a f(θ)`, `ψ_a θ_p = e^{a λ_p} θ_p`, or why there are none (T11).

    Of all such exponents those whose largest one is least, then the next largest, and so on: `1/L` throughout for a
    homogeneous network. Along gradient flow of a chain they are those that its laws allow: what writes a neuron, its
    bias included, and what reads it grow alike (T2).

    Attributes:
        exponents: `λ_p` by the name of the parameter; None where there are none.
        obstacle: why there are none.
        ignores_eps: whether the constants in normalisations were taken for zero.
    """

    exponents: Mapping[str, Fraction] | None
    obstacle: str = ""
    ignores_eps: bool = False

    @property
    def largest(self) -> tuple[str, ...]:
        """The parameters of the largest exponent: those whose norm the max-margin problem sees (Kunin et al. 2023)."""
        top = max(self.exponents.values(), default=None) if self.exponents else None
        return tuple(name for name, value in (self.exponents or {}).items() if value == top)

    @property
    def homogeneous(self) -> bool:
        """Whether all exponents are the same."""
        return self.exponents is not None and len(set(self.exponents.values())) == 1


def quasi_homogeneity(captured: Captured, *, ignore_eps: bool = False) -> QuasiHomogeneity:
    """Exponents of the parameters under which the output has degree 1, from the degrees of all operations (T11).

    The degree of each node is a linear form in the exponents; sums demand equal degrees, an operation without a rule
    reads what has degree 0. A proof, as `homogeneity` is, unless constants in normalisations are ignored.

    Args:
        captured: the graph of a model.
        ignore_eps: take the `eps` of a normalisation for zero: what it reads may then have any degree.

    Returns:
        The exponents, or the obstacle.

    >>> import torch
    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> read = lambda *layers: quasi_homogeneity(capture(nn.Sequential(*layers), torch.ones(2, 3)))
    >>> found = read(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> {name: str(value) for name, value in found.exponents.items()}, found.largest
    ({'0.weight': '1/2', '0.bias': '1/2', '2.weight': '1/2', '2.bias': '1'}, ('2.bias',))
    >>> {name: str(value) for name, value in read(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).exponents.items()}
    {'0.weight': '0', '0.bias': '0', '2.weight': '1', '2.bias': '1'}
    >>> read(nn.Linear(3, 1), nn.Tanh()).obstacle
    'the output has degree 0 for all exponents'
    """
    names = list(dict.fromkeys(captured.parameters.values()))
    linear = _LinearDegrees({}, [], ignore_eps)
    for node in captured.graph.nodes:
        if node.op == "call_function":
            linear.degrees[node] = linear.of_operation(node)
        elif node.name in captured.parameters:
            linear.degrees[node] = LinearDegree({captured.parameters[node.name]: Fraction(1)})
        else:
            linear.degrees[node] = 0
    outputs = [linear.degrees[node] for node in captured.output]
    if not all(isinstance(degree, LinearDegree) and degree for degree in outputs):
        return QuasiHomogeneity(None, "the output has degree 0 for all exponents", ignore_eps)
    zero = [_row(degree, names) for degree in linear.zero]
    one = [_row(degree, names) for degree in outputs]
    equations = np.array(zero + one), np.array([0.0] * len(zero) + [1.0] * len(one))
    exponents = _least(*equations)
    if exponents is None:
        return QuasiHomogeneity(None, "the degrees of sums contradict each other", ignore_eps)
    whole = [Fraction(float(value)).limit_denominator(10_000) for value in exponents]
    return QuasiHomogeneity(dict(zip(names, whole, strict=True)), "", ignore_eps)


def _row(degree: Degree, names: Sequence[str]) -> list[float]:
    found = degree.coefficients if isinstance(degree, LinearDegree) else {}
    return [float(found.get(name, 0)) for name in names]


@dataclass(frozen=True)
class _LinearDegrees:
    """Degrees as linear forms in the exponents; `zero` collects the forms that must vanish."""

    degrees: dict[fx.Node, Degree]
    zero: list[Degree] = field(default_factory=list)
    ignore_eps: bool = False

    def __call__(self, argument: Argument) -> Degree:
        return self.degrees[argument] if isinstance(argument, fx.Node) else 0

    def agreed(self, degrees: Sequence[Degree]) -> Degree:
        for other in degrees[1:]:
            self._vanishes(degrees[0] - other)
        return degrees[0] if degrees else 0

    def with_eps(self, degree: Degree, eps: object) -> None:
        if eps != 0 and not self.ignore_eps:
            self._vanishes(degree)

    def of_operation(self, node: fx.Node) -> Degree:
        """By the rule of the operation; without one all that it reads must have degree 0."""
        rule = operator_of(node).degree
        if not any(self.degrees[source] for source in node.all_input_nodes):
            return 0
        try:
            if rule is not None:
                return rule(node, self)
        except Mixed:
            pass
        for source in node.all_input_nodes:
            self._vanishes(self.degrees[source])
        return 0

    def _vanishes(self, degree: Degree) -> None:
        if degree:
            self.zero.append(degree)


def _least(equations: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """`x ≥ 0` with `E x = v` whose sorted entries are least, the largest first; None where there is none.

    Level by level: the least bound `t` of the entries that are not fixed yet, then those that no solution has below it,
    found by a programme in which a solution may be scaled up until every slack that there is reaches 1.
    """
    count = equations.shape[1]
    fixed: dict[int, float] = {}
    while len(fixed) < count:
        free = [i for i in range(count) if i not in fixed]
        bounds = [(fixed.get(i, 0.0), fixed.get(i)) for i in range(count)]
        below = np.zeros((len(free), count + 1))
        below[range(len(free)), free], below[:, -1] = 1, -1
        with_level = np.hstack([equations, np.zeros((len(equations), 1))])
        cost = np.append(np.zeros(count), 1.0)
        found = linprog(cost, below, np.zeros(len(free)), with_level, values, [*bounds, (0, None)])
        if found.status != 0:
            return None
        level = float(found.x[-1])
        fixed |= dict.fromkeys(_tight(equations, values, fixed, free, level), level)
    return np.array([fixed[i] for i in range(count)])


def _tight(
    equations: np.ndarray, values: np.ndarray, fixed: Mapping[int, float], free: Sequence[int], level: float
) -> list[int]:
    """The free entries that equal the level in every solution: variables `k x`, `s` and `k ≥ 1`."""
    count, more = equations.shape[1], len(free)
    same = [np.hstack([equations, np.zeros((len(equations), more)), -values[:, None]])]
    for i, value in fixed.items():
        row = np.zeros((1, count + more + 1))
        row[0, i], row[0, -1] = 1, -value
        same.append(row)
    below = np.zeros((more, count + more + 1))
    below[range(more), free], below[range(more), range(count, count + more)], below[:, -1] = 1, 1, -level
    cost = np.concatenate([np.zeros(count), -np.ones(more), [0.0]])
    bounds = [(0, None)] * count + [(0, 1)] * more + [(1, None)]
    equal = np.vstack(same)
    found = linprog(cost, below, np.zeros(more), equal, np.zeros(len(equal)), bounds)
    slack = found.x[count : count + more] if found.status == 0 else np.zeros(more)
    tight = [i for i, s in zip(free, slack, strict=True) if s < 0.5]
    return tight or list(free)
