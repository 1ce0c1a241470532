"""The tangent kernel of a layer from its inputs and output sensitivities, without per-example gradients (T6.1).

For a layer `z_t = W h_t + b` at positions `t` (one of them for a vector, many for a convolution or a sequence), with
`δ_t` the sensitivity of an example to `z_t`, its gradient is `Σ_t δ_t h_tᵀ`. With one position the inner product of two
gradients is `⟨h, h'⟩⟨δ, δ'⟩`; with several, gradients are formed for a block of rows of `W` at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.nn import functional as F

from equipoise.graph.capture import Captured
from equipoise.graph.evaluate import Kink, stand_ins
from equipoise.integrate.margins.readout import Rows

_aten = torch.ops.aten
_CONVOLUTIONS: dict[object, int] = {_aten.conv1d.default: 1, _aten.conv2d.default: 2}


@dataclass(frozen=True)
class GramLayer:
    """A fully connected or convolutional layer whose parameters are used nowhere else."""

    node: fx.Node
    parameters: tuple[str, ...]  # the weight, and the bias if there is one
    axis: int = 0  # of the examples, in input and output

    def gram(
        self, entering: Tensor, leaving: Tensor, columns: Rows | None, memory: int
    ) -> Float[Tensor, "pairs columns"]:
        """`K` of this layer's parameters, or some columns; `memory` bytes at most for gradients at one time."""
        h, delta = self._positions(entering, leaving)
        bias = delta.sum(1)
        across = bias @ _some(bias, columns).T
        total = across if len(self.parameters) > 1 else 0.0
        if h.shape[1] == 1:
            return (h[:, 0] @ _some(h[:, 0], columns).T) * across + total
        rows = max(1, int(memory / (len(h) * h.shape[2] * h.element_size())))
        for some in delta.split(rows, dim=2):
            gradients = (some.mT @ h).flatten(1)
            total = total + gradients @ _some(gradients, columns).T
        return torch.as_tensor(total)

    def _positions(self, entering: Tensor, leaving: Tensor) -> tuple[Tensor, Tensor]:
        """`h` and `δ` of shape (pairs, positions, ·)."""
        if self.node.target not in _CONVOLUTIONS:
            first = (tensor.movedim(self.axis, 0) for tensor in (entering, leaving))
            h, delta = (tensor.reshape(len(tensor), -1, tensor.shape[-1]) for tensor in first)
            return h, delta
        return self._unfolded(entering).mT, leaving.flatten(2).mT

    def _unfolded(self, entering: Tensor) -> Float[Tensor, "pairs window positions"]:
        axes = _CONVOLUTIONS[self.node.target]
        weight = cast(fx.Node, self.node.args[1])
        stride, padding, dilation = (_option(self.node, place, axes) for place in (3, 4, 5))
        kernel = tuple(weight.meta["val"].shape[2:])
        if axes == 1:
            entering, kernel = entering[:, :, None], (1, *kernel)
            stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
        return F.unfold(entering, kernel, dilation, padding, stride)


def _some(tensor: Tensor, rows: Rows | None) -> Tensor:
    return tensor if rows is None else tensor[rows]


def _option(node: fx.Node, place: int, axes: int) -> tuple[int, ...]:
    """Stride, padding or dilation of a convolution, one number an axis."""
    given = node.args[place] if len(node.args) > place else int(place != 4)
    values = tuple(cast(Sequence[int], given)) if isinstance(given, Sequence) else (cast(int, given),)
    return values * axes if len(values) == 1 else values


def read_gram_layers(captured: Captured) -> tuple[GramLayer, ...]:
    """The layers of a network whose Gram matrix is read from inputs and outputs, in execution order.

    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 1, bias=False))
    >>> [layer.parameters for layer in read_gram_layers(capture(model, torch.ones(2, 1, 8, 8)))]
    [('0.weight', '0.bias'), ('3.weight',)]
    """
    found = []
    for node in captured.graph.nodes:
        grouped = len(node.args) > 6 and node.args[6] != 1
        if node.target is not _aten.linear.default and (node.target not in _CONVOLUTIONS or grouped):
            continue
        sources = [argument for argument in node.args[1:3] if isinstance(argument, fx.Node)]
        own = [source.name in captured.parameters and len(source.users) == 1 for source in sources]
        axis = _axis_of_examples(captured, node)
        if own and all(own) and axis is not None and (axis == 0 or node.target not in _CONVOLUTIONS):
            found.append(GramLayer(node, tuple(captured.parameters[source.name] for source in sources), axis))
    return tuple(found)


def _axis_of_examples(captured: Captured, node: fx.Node) -> int | None:
    """The axis of a layer's input along which the examples lie; attention may have moved it."""
    (given,) = (other for other in captured.graph.nodes if other.name == captured.inputs[0])
    examples = str(given.meta["val"].shape[0])  # a symbol
    axes = [axis for axis, size in enumerate(node.args[0].meta["val"].shape[:-1]) if str(size) == examples]  # pyright: ignore
    return axes[0] if len(axes) == 1 else None


def run_with_probes(
    captured: Captured,
    kinks: Sequence[Kink],
    parameters: dict[str, Tensor],
    inputs: Tensor,
    slopes: Sequence[Tensor],
    layers: Sequence[GramLayer],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The frozen network's output, the input of each layer, and a zero added to its output, to differentiate by."""
    replaced, nodes = stand_ins(kinks, slopes), {layer.node for layer in layers}
    entering: dict[fx.Node, Tensor] = {}
    probes: dict[fx.Node, Tensor] = {}

    def intercept(node: fx.Node, args: tuple[Tensor, ...]) -> object:
        if node not in nodes:
            return replaced(node, args)
        value = node.target(*args)  # pyright: ignore[reportCallIssue]
        entering[node], probes[node] = args[0].detach(), torch.zeros_like(value, requires_grad=True)
        return value + probes[node]

    with torch.enable_grad():
        output = captured.run(parameters, inputs, intercept=intercept)
    return output, [entering[layer.node] for layer in layers], [probes[layer.node] for layer in layers]
