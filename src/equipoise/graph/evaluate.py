"""A captured network run with chosen slopes in place of its kinks (THEORY T6.2), or recording its pre-activations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from equipoise.errors import InputError
from equipoise.graph.capture import Captured

_aten = torch.ops.aten

# Operations that commute with positive scaling of their activations and are linear between kinks.
_LINEAR = frozenset(
    {
        _aten.linear.default,
        _aten.matmul.default,
        _aten.mm.default,
        _aten.bmm.default,
        _aten.addmm.default,
        _aten.t.default,
        _aten.transpose.int,
        _aten.permute.default,
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.neg.default,
        _aten.mul.Tensor,
        _aten.mul.Scalar,
        _aten.div.Scalar,
        _aten.div.Tensor,
        _aten.cat.default,
        _aten.stack.default,
        _aten.split.Tensor,
        _aten.chunk.default,
        _aten.slice.Tensor,
        _aten.select.int,
        _aten.view.default,
        _aten.reshape.default,
        _aten._unsafe_view.default,
        _aten.flatten.using_ints,
        _aten.unflatten.int,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.unsqueeze.default,
        _aten.expand.default,
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.alias.default,
        _aten.sum.dim_IntList,
        _aten.mean.dim,
        _aten.conv1d.default,
        _aten.conv2d.default,
        _aten.conv3d.default,
        _aten.avg_pool2d.default,
        _aten.adaptive_avg_pool2d.default,
        _aten.sym_size.int,
    }
)


@dataclass(frozen=True)
class Kink:
    """A piecewise-linear activation `σ(z) = z` for `z > 0`, `negative_slope · z` otherwise, at a node of the graph."""

    node: fx.Node
    negative_slope: float

    @property
    def source(self) -> fx.Node:
        """The node that computes the pre-activation."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source


def activation(preactivation: Tensor, negative_slope: float) -> Tensor:
    """`σ(z)`: the identity above zero, `negative_slope · z` below.

    >>> activation(torch.tensor([-2.0, 3.0]), 0.0)
    tensor([-0., 3.])
    """
    return torch.where(preactivation > 0, preactivation, negative_slope * preactivation)


def secant_slope(
    before: Float[Tensor, "*shape"], after: Float[Tensor, "*shape"], negative_slope: float
) -> Float[Tensor, "*shape"]:
    """`α = (σ(z₁) - σ(z₀)) / (z₁ - z₀)`: a one-sided slope unless the pair crosses its kink (THEORY T6.2).

    >>> secant_slope(torch.tensor([1.0, -1.0, -1.0]), torch.tensor([2.0, -2.0, 3.0]), 0.0)
    tensor([1.0000, 0.0000, 0.7500])
    """
    on = after > 0
    crosses = on != (before > 0)
    width = torch.where(crosses, after - before, 1.0)
    chord = (activation(after, negative_slope) - activation(before, negative_slope)) / width
    one_sided = torch.where(on, torch.ones_like(after), torch.full_like(after, negative_slope))
    return torch.where(crosses, chord, one_sided)


def kinks(captured: Captured) -> tuple[Kink, ...]:
    """The piecewise-linear activations of the network, in execution order.

    Raises `InputError`, naming the operation, when some other operation is not linear between kinks.
    """
    found = []
    for node in captured.graph.nodes:
        if node.op != "call_function" or node.target in _LINEAR or _is_plumbing(node):
            continue
        reader = _KINKS.get(node.target)
        if reader is None:
            raise InputError(
                expected="a network of linear maps and homogeneous activations (ReLU, leaky ReLU, abs)",
                found=f"{_readable(node)}, which is not positively homogeneous",
                remedy="replace it by nn.ReLU(), or use eq.watch, which takes any network",
            )
        found.append(Kink(node, reader(node)))
    return tuple(found)


def is_linear(node: fx.Node) -> bool:
    """Whether a node is one of the linear operations of a piecewise-linear network; sizes are none."""
    return node.target in _LINEAR and node.target is not _aten.sym_size.int


def frozen(
    captured: Captured,
    kinks: Sequence[Kink],
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    slopes: Sequence[Tensor],
    offsets: Sequence[Tensor] | None = None,
) -> Tensor:
    """The network's output with every activation `σ(z)` replaced by `α ∘ z`: multilinear in the weights (T6.2).

    `offsets`, one for each kink, are added to what leaves it.
    """
    chosen = {kink.node: slope for kink, slope in zip(kinks, slopes, strict=True)}
    added = {} if offsets is None else {kink.node: offset for kink, offset in zip(kinks, offsets, strict=True)}

    def intercept(node: fx.Node, args: tuple[Any, ...]) -> Any:
        if node not in chosen:
            return NotImplemented
        leaving = chosen[node] * args[0]
        return leaving + added[node] if node in added else leaving

    return captured.run(parameters, inputs, intercept=intercept)


def recorded(
    captured: Captured, kinks: Sequence[Kink], parameters: Mapping[str, Tensor], inputs: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The network's output and the pre-activation of every kink."""
    slopes = {kink.node: kink.negative_slope for kink in kinks}
    seen: dict[fx.Node, Tensor] = {}

    def intercept(node: fx.Node, args: tuple[Any, ...]) -> Any:
        if node not in slopes:
            return NotImplemented
        seen[node] = args[0]
        return activation(args[0], slopes[node])

    output = captured.run(parameters, inputs, intercept=intercept)
    return output, tuple(seen[kink.node] for kink in kinks)


def _is_plumbing(node: fx.Node) -> bool:
    """Unpacking of tuples and arithmetic on sizes."""
    return getattr(node.target, "__module__", "") in ("_operator", "math")


def _readable(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]


def _leaky(node: fx.Node) -> float:
    slope = node.args[1] if len(node.args) > 1 else 0.01
    assert isinstance(slope, int | float)
    return float(slope)


_KINKS: dict[Any, Callable[[fx.Node], float]] = {
    _aten.relu.default: lambda node: 0.0,
    _aten.abs.default: lambda node: -1.0,
    _aten.leaky_relu.default: _leaky,
}
