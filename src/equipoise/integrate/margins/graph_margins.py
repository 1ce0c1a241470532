"""Margins of any captured network, by its graph, in chunks of examples that keep within a budget of memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from equipoise.graph.capture import Captured
from equipoise.graph.evaluate import Kink, frozen, kinks, recorded
from equipoise.graph.piecewise import Piecewise
from equipoise.integrate.margins.layer_gram import GramLayer, read_gram_layers, run_with_probes
from equipoise.integrate.margins.protocol import MarginEvaluation, ParameterLayout, Slopes, Weights, local_slopes
from equipoise.integrate.margins.readout import Readout, Rows

MEMORY = 1 << 30
"""Bytes for the activations of one chunk of examples, and for one block of per-example gradients."""


class Chunk(NamedTuple):
    """Some of the examples: inputs, readout and slopes."""

    inputs: Tensor
    readout: Readout
    slopes: tuple[Tensor, ...]


@dataclass(frozen=True)
class GraphMargins:
    """Margins of any captured network that is differentiable almost everywhere.

    Kinks take the slopes they are given (T6.2); everything else is differentiated as it is, at the midpoint.
    """

    captured: Captured
    layout: ParameterLayout
    inputs: Float[Tensor, "n ..."]
    readout: Readout
    memory: int = MEMORY

    @property
    def count(self) -> int:
        """The number of examples."""
        return self.readout.count

    @cached_property
    def nodes(self) -> tuple[Kink, ...]:
        """The kinks with their places in the graph."""
        return kinks(self.captured)

    @property
    def kinks(self) -> tuple[Piecewise, ...]:
        """The piecewise-linear operations, in execution order."""
        return tuple(kink.map for kink in self.nodes)

    @cached_property
    def gram_layers(self) -> tuple[GramLayer, ...]:
        """The layers whose share of the tangent kernel needs no per-example gradient of all parameters."""
        return read_gram_layers(self.captured)

    @cached_property
    def chunk(self) -> int:
        """Examples of one chunk: each is charged for all the numbers that the graph reads, and their gradients."""
        read = 0

        def count(node: Node, args: tuple[object, ...]) -> object:
            nonlocal read
            read += args[0].numel() if args and isinstance(args[0], Tensor) else 0
            return NotImplemented

        zeros = self.inputs.new_zeros(sum(shape.numel() for shape in self.layout.shapes.values()))
        with torch.no_grad():
            self.captured.run(self.layout.views(zeros), self.inputs[:2], intercept=count)
        each = 2 * read / min(2, len(self.inputs)) * self.inputs.element_size()
        return max(1, int(self.memory / max(each, 1)))

    def restricted(self, examples: Rows) -> "GraphMargins":
        """The margins of some of the examples."""
        other = replace(self, inputs=self.inputs[examples], readout=self.readout.take(examples))
        other.__dict__.update({name: getattr(self, name) for name in ("nodes", "gram_layers", "chunk")})  # read once
        return other

    def evaluate(self, weights: Weights) -> MarginEvaluation:
        """Margins and pre-activations of the network itself."""
        views = self.layout.views(weights)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            parts = [recorded(self.captured, self.nodes, views, part.inputs) for part in self.chunks(())]
        scores = _joined([output.reshape(len(output), -1) for output, _ in parts])
        seen = tuple(map(_joined, zip(*(z for _, z in parts), strict=True)))
        return MarginEvaluation(self.readout.margins(scores), seen)

    def linearize(self, weights: Weights, slopes: Slopes) -> "_GraphLinearization":
        """The frozen network around these weights; its products are formed when they are called for."""
        return _GraphLinearization(self, weights, slopes)

    def tangent(self, weights: Weights) -> tuple[Float[Tensor, " examples *others"], "_GraphLinearization"]:
        """The margins at these weights, and the network with its slopes there."""
        at = self.evaluate(weights)
        return at.margins, self.linearize(weights, local_slopes(self, at))

    def in_single(self) -> "GraphMargins":
        """As they are: the constants of a graph have the precision in which it was captured."""
        return self

    def chunks(self, slopes: Slopes) -> Iterator[Chunk]:
        """The examples, in chunks."""
        if self.count <= self.chunk:
            yield Chunk(self.inputs, self.readout, tuple(slopes))
            return
        for rows in torch.arange(self.count, device=self.inputs.device).split(self.chunk):
            here = slice(int(rows[0]), int(rows[-1]) + 1)
            yield Chunk(self.inputs[here], self.readout.take(rows), tuple(slope[here] for slope in slopes))


def _joined(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


class _Frozen(NamedTuple):
    """A recorded forward pass of the frozen network, ready to be differentiated."""

    weights: Tensor
    offsets: tuple[Tensor, ...]  # zeros, added to the output of every kink
    margins: Tensor


@dataclass(frozen=True)
class _GraphLinearization:
    """The frozen network at one point, differentiated by autograd."""

    owner: GraphMargins
    weights: Weights
    slopes: Slopes

    def _margins_of(self, part: Chunk, weights: Weights, offsets: Sequence[Tensor] | None = None) -> Tensor:
        owner, views = self.owner, self.owner.layout.views(weights)
        with sdpa_kernel(SDPBackend.MATH):  # the one that forward mode and vmap can differentiate
            output = frozen(owner.captured, owner.nodes, views, part.inputs, part.slopes, offsets)
        return part.readout.margins(output.reshape(len(part.inputs), part.readout.scores))

    @property
    def margins(self) -> Float[Tensor, " examples *others"]:
        """Margins of the frozen network."""
        return self._margins

    @cached_property
    def _margins(self) -> Tensor:
        if self._at_once is not None:
            return self._at_once.margins.detach()
        with torch.no_grad():
            return _joined([self._margins_of(part, self.weights) for part in self.owner.chunks(self.slopes)])

    @cached_property
    def _at_once(self) -> _Frozen | None:
        """The recorded pass of all examples where they fit in one chunk; it serves every pass backward."""
        parts = self.owner.chunks(self.slopes)
        return self._recorded(next(parts)) if self.owner.count <= self.owner.chunk else None

    def _recorded(self, part: Chunk) -> _Frozen:
        weights = self.weights.detach().clone().requires_grad_()
        offsets = tuple(torch.zeros_like(each).requires_grad_() for each in self._leaving(part.slopes))
        with torch.enable_grad():
            return _Frozen(weights, offsets, self._margins_of(part, weights, offsets))

    def _leaving(self, slopes: Slopes) -> Iterator[Tensor]:
        """Tensors of the shape of each kink's output: a maximum has weights for each place of a window."""
        for kink, slope in zip(self.owner.kinks, slopes, strict=True):
            yield slope if kink.negative_slope is not None else slope[..., 0]

    def _pulled(self, cotangents: Tensor, onto_weights: bool) -> Iterator[tuple[Tensor, ...]]:
        """`∂⟨cotangents, m⟩` with respect to the weights or to the output of every kink, chunk by chunk."""
        done = 0
        for part in self.owner.chunks(self.slopes):
            here, kept = (self._recorded(part), False) if self._at_once is None else (self._at_once, True)
            mine = cotangents[done : done + part.readout.count]
            done += part.readout.count
            sources = (here.weights,) if onto_weights else here.offsets
            yield torch.autograd.grad(here.margins, sources, mine, retain_graph=kept)

    def vjp(self, cotangents: Float[Tensor, " examples *others"]) -> Weights:
        """`Jᵀ p`, by one backward pass."""
        total = torch.zeros_like(self.weights)
        for (gradient,) in self._pulled(cotangents, True):
            total += gradient
        return total

    def jvp(self, change: Weights) -> MarginEvaluation:
        """`J δw`, by one forward-mode pass."""
        owner = self.owner

        def read(part: Chunk, weights: Tensor) -> tuple[Tensor, ...]:
            views = owner.layout.views(weights)
            output, seen = recorded(owner.captured, owner.nodes, views, part.inputs, part.slopes)
            return part.readout.margins(output.reshape(len(part.inputs), part.readout.scores)), *seen

        with sdpa_kernel(SDPBackend.MATH):  # the one that forward mode can differentiate
            moved = [
                torch.func.jvp(partial(read, part), (self.weights,), (change,))[1] for part in owner.chunks(self.slopes)
            ]
        margins, *seen = map(_joined, zip(*moved, strict=True))
        return MarginEvaluation(margins, tuple(seen))

    def sensitivity(self, cotangents: Float[Tensor, " examples *others"]) -> Slopes:
        """`∂⟨cotangents, m⟩/∂h` with respect to the output of every kink, by one backward pass."""
        if not self.owner.nodes:
            return ()
        return tuple(map(_joined, zip(*self._pulled(cotangents, False), strict=True)))

    def squared_gradients(self) -> Slopes:
        """An estimate of `‖∂z/∂w‖²` at every kink, by one forward-mode pass along random weights.

        The mean square of `∂z/∂w · v`, `v ~ N(0, 1)`, over all `z` of one example at a kink.
        """
        owner = self.owner
        if not owner.nodes:
            return ()
        probe = torch.randn(len(self.weights), generator=torch.Generator().manual_seed(0)).to(self.weights)

        def read(part: Chunk, weights: Tensor) -> tuple[Tensor, ...]:
            return recorded(owner.captured, owner.nodes, owner.layout.views(weights), part.inputs)[1]

        with sdpa_kernel(SDPBackend.MATH):
            moved = [
                torch.func.jvp(partial(read, part), (self.weights,), (probe,))[1] for part in owner.chunks(self.slopes)
            ]
        pairs = zip(map(_joined, zip(*moved, strict=True)), self._leaving(self.slopes), strict=True)
        return tuple(z.square().flatten(1).mean(1).view(-1, *[1] * (h.ndim - 1)) for z, h in pairs)

    def kernel(
        self, examples: Rows, cotangents: Float[Tensor, " pairs *others"], columns: Rows | None = None
    ) -> Float[Tensor, "pairs columns"]:
        """`G Gᵀ`: per-layer Gram matrices, and per-example gradients of the remaining parameters."""
        readout = self.owner.readout.take(examples)
        slopes = tuple(slope[examples] for slope in self.slopes)
        pairs = Chunk(self.owner.inputs[examples], readout, slopes)
        onto = readout.adjoint(cotangents)
        total = self._other_parameters(pairs, onto, columns)
        for layer, entering, leaving in self._layer_inputs(pairs, onto):
            total += layer.gram(entering, leaving, columns, self.owner.memory)
        return total

    def _layer_inputs(self, pairs: Chunk, onto: Tensor) -> Iterator[tuple[GramLayer, Tensor, Tensor]]:
        """Each Gram layer with its inputs and the sensitivity to its outputs."""
        owner, seen = self.owner, []
        views = owner.layout.views(self.weights)
        for rows in torch.arange(len(onto), device=onto.device).split(owner.chunk):
            slopes = [slope[rows] for slope in pairs.slopes]
            output, entering, probes = run_with_probes(
                owner.captured, owner.nodes, views, pairs.inputs[rows], slopes, owner.gram_layers
            )
            scores = output.reshape(onto[rows].shape)
            leaving = torch.autograd.grad((onto[rows] * scores).sum(), probes) if probes else ()
            seen.append(list(zip(entering, leaving, strict=True)))
        for layer, *parts in zip(owner.gram_layers, *seen, strict=True):
            entering, leaving = zip(*parts, strict=True)
            yield layer, _joined(entering, layer.axis), _joined(leaving, layer.axis)

    def _other_parameters(self, pairs: Chunk, onto: Tensor, columns: Rows | None) -> Float[Tensor, "pairs columns"]:
        """The share of all other parameters, from the gradient of every pair, in blocks of pairs."""
        owner, views = self.owner, self.owner.layout.views(self.weights)
        covered = {name for layer in owner.gram_layers for name in layer.parameters}
        rest = {name: view for name, view in views.items() if name not in covered}
        every = torch.arange(len(onto), device=onto.device)
        others = every if columns is None else columns
        total = onto.new_zeros(len(every), len(others))
        if not rest:
            return total

        def combined(rest: dict[str, Tensor], example: Tensor, onto: Tensor, slopes: tuple[Tensor, ...]) -> Tensor:
            singles = [slope[None] for slope in slopes]
            output = frozen(owner.captured, owner.nodes, views | rest, example[None], singles)
            return onto @ output.reshape(-1)

        def gradients(rows: Tensor) -> Tensor:
            each = torch.func.vmap(torch.func.grad(combined), in_dims=(None, 0, 0, 0))
            with sdpa_kernel(SDPBackend.MATH):
                found = each(rest, pairs.inputs[rows], onto[rows], tuple(slope[rows] for slope in pairs.slopes))
            flat = [gradient.reshape(len(rows), views[name].numel()) for name, gradient in found.items()]  # or scalars
            return torch.cat(flat, 1)

        size = sum(view.numel() for view in rest.values()) * onto.element_size()
        block = max(1, min(owner.chunk, int(self.owner.memory / size)))
        for rows in every.split(block):
            left = gradients(rows)
            for places in every[: len(others)].split(block):
                if columns is None and places[0] < rows[0]:
                    total[rows[:, None], places] = total[places[:, None], rows].T
                else:
                    right = left if columns is None and places[0] == rows[0] else gradients(others[places])
                    total[rows[:, None], places] = left @ right.T
        return total
