"""Margins of any captured network, by its graph, in chunks of examples that keep within a budget of memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from equipoise.graph.capture import Captured
from equipoise.graph.evaluate import Kink, frozen, kinks, recorded
from equipoise.graph.piecewise import Piecewise
from equipoise.integrate.margins import Evaluation, Layout, Slopes, Weights
from equipoise.integrate.readout import Readout, Rows
from equipoise.integrate.taps import Tap, read_taps, tapped

MEMORY = 1 << 30
"""Bytes that one chunk of examples may take for its activations, and one block of per-example gradients."""


class Chunk(NamedTuple):
    """Some examples, with all that belongs to them."""

    inputs: Tensor
    readout: Readout
    slopes: tuple[Tensor, ...]


@dataclass(frozen=True)
class CapturedMargins:
    """Margins of any captured network that is differentiable almost everywhere.

    Kinks take the slopes they are given (T6.2); everything else is differentiated as it is, at the midpoint.
    """

    captured: Captured
    layout: Layout
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
    def taps(self) -> tuple[Tap, ...]:
        """The layers whose share of the tangent kernel needs no per-example gradient of all parameters."""
        return read_taps(self.captured)

    @cached_property
    def chunk(self) -> int:
        """Examples of one chunk: each is charged for all the numbers that the graph reads, and their gradients."""
        read = 0

        def count(node: Any, args: tuple[Any, ...]) -> Any:
            nonlocal read
            read += args[0].numel() if args and isinstance(args[0], Tensor) else 0
            return NotImplemented

        zeros = self.inputs.new_zeros(sum(shape.numel() for shape in self.layout.shapes.values()))
        with torch.no_grad():
            self.captured.run(self.layout.views(zeros), self.inputs[:2], intercept=count)
        each = 2 * read / min(2, len(self.inputs)) * self.inputs.element_size()
        return max(1, int(self.memory / max(each, 1)))

    def restricted(self, examples: Rows) -> "CapturedMargins":
        """The same for some of the examples."""
        other = replace(self, inputs=self.inputs[examples], readout=self.readout.take(examples))
        other.__dict__.update({name: getattr(self, name) for name in ("nodes", "taps", "chunk")})  # read once
        return other

    def evaluate(self, weights: Weights) -> Evaluation:
        """The network itself."""
        views = self.layout.views(weights)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            parts = [recorded(self.captured, self.nodes, views, part.inputs) for part in self.chunks(())]
        scores = _joined([output.reshape(len(output), -1) for output, _ in parts])
        seen = tuple(map(_joined, zip(*(z for _, z in parts), strict=True)))
        return Evaluation(self.readout.margins(scores), seen)

    def linearise(self, weights: Weights, slopes: Slopes) -> "_Linearisation":
        """The frozen network around these weights; its products are formed when asked for."""
        return _Linearisation(self, weights, slopes)

    def chunks(self, slopes: Slopes) -> Iterator[Chunk]:
        """The examples, some at a time."""
        if self.count <= self.chunk:
            yield Chunk(self.inputs, self.readout, tuple(slopes))
            return
        for rows in torch.arange(self.count, device=self.inputs.device).split(self.chunk):
            here = slice(int(rows[0]), int(rows[-1]) + 1)
            yield Chunk(self.inputs[here], self.readout.take(rows), tuple(slope[here] for slope in slopes))

    def scores(self, weights: Weights, inputs: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """Scores of the network with frozen slopes."""
        output = frozen(self.captured, self.nodes, self.layout.views(weights), inputs, slopes)
        return output.reshape(len(inputs), self.readout.scores)


def _joined(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


@dataclass(frozen=True)
class _Linearisation:
    owner: CapturedMargins
    weights: Weights
    slopes: Slopes

    def _frozen(self, part: Chunk, weights: Weights) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the one that forward mode and vmap can differentiate
            return part.readout.margins(self.owner.scores(weights, part.inputs, part.slopes))

    @property
    def margins(self) -> Float[Tensor, " examples *others"]:
        """Margins of the frozen network."""
        return self._margins

    @cached_property
    def _margins(self) -> Tensor:
        with torch.no_grad():
            return _joined([self._frozen(part, self.weights) for part in self.owner.chunks(self.slopes)])

    def _parts(self, forces: Tensor) -> Iterator[tuple[Chunk, Tensor]]:
        """The examples, some at a time, with the forces on them."""
        done = 0
        for part in self.owner.chunks(self.slopes):
            yield part, forces[done : done + part.readout.count]
            done += part.readout.count

    def pullback(self, forces: Float[Tensor, " examples *others"]) -> Weights:
        """`Jᵀ p`, by one backward pass."""
        total = torch.zeros_like(self.weights)
        for part, mine in self._parts(forces):
            total += torch.func.grad(lambda w, part, mine: (mine * self._frozen(part, w)).sum())(
                self.weights, part, mine
            )
        return total

    def pushforward(self, change: Weights) -> Float[Tensor, " examples *others"]:
        """`J δw`, by one forward-mode pass."""
        parts = [
            torch.func.jvp(partial(self._frozen, part), (self.weights,), (change,))[1]
            for part in self.owner.chunks(self.slopes)
        ]
        return _joined(parts)

    def stiffness(self, forces: Float[Tensor, " examples *others"]) -> Slopes:
        """`-∂⟨forces, m⟩/∂h ‖∂z/∂w‖²` at every kink: one backward pass, and one forward along random weights.

        `‖∂z/∂w‖²` is taken as the mean square of `∂z/∂w · v`, `v ~ N(0, 1)`, over all `z` of one example at a kink.
        """
        parts = [self._stiffness(part, mine) for part, mine in self._parts(forces)]
        return tuple(map(_joined, zip(*parts, strict=True)))

    def _stiffness(self, part: Chunk, forces: Tensor) -> Slopes:
        owner, onto = self.owner, part.readout.adjoint(forces)
        if not owner.nodes:
            return ()

        def pushed(offsets: tuple[Tensor, ...]) -> Tensor:
            views = owner.layout.views(self.weights)
            return (
                onto * frozen(owner.captured, owner.nodes, views, part.inputs, part.slopes, offsets).view_as(onto)
            ).sum()

        def read(weights: Tensor) -> tuple[Tensor, ...]:
            return recorded(owner.captured, owner.nodes, owner.layout.views(weights), part.inputs)[1]

        leaving = tuple(
            torch.zeros_like(slope if kink.negative_slope is not None else slope[..., 0])
            for kink, slope in zip(owner.kinks, part.slopes, strict=True)
        )
        probe = torch.randn(len(self.weights), generator=torch.Generator().manual_seed(0)).to(self.weights)
        with sdpa_kernel(SDPBackend.MATH):
            pulled = torch.func.grad(pushed)(leaving)
            moved = torch.func.jvp(read, (self.weights,), (probe,))[1]
        reach = [z.square().flatten(1).mean(1).view(-1, *[1] * (z.ndim - 1)) for z in moved]
        return tuple(-force * each for force, each in zip(pulled, reach, strict=True))

    def kernel(self, examples: Rows, forces: Float[Tensor, " pairs *others"]) -> Float[Tensor, "pairs pairs"]:
        """`G Gᵀ`: layer by layer from what enters and leaves each, and from per-example gradients of the rest."""
        readout = self.owner.readout.take(examples)
        slopes = tuple(slope[examples] for slope in self.slopes)
        pairs = Chunk(self.owner.inputs[examples], readout, slopes)
        onto = readout.adjoint(forces)
        total = self._rest(pairs, onto)
        for tap, entering, leaving in self._tapped(pairs, onto):
            total += tap.gram(entering, leaving, self.owner.memory)
        return total

    def _tapped(self, pairs: Chunk, onto: Tensor) -> Iterator[tuple[Tap, Tensor, Tensor]]:
        """Of every tap what enters it, and the sensitivity to what leaves it."""
        owner, seen = self.owner, []
        views = owner.layout.views(self.weights)
        for rows in torch.arange(len(onto), device=onto.device).split(owner.chunk):
            slopes = [slope[rows] for slope in pairs.slopes]
            output, entering, probes = tapped(
                owner.captured, owner.nodes, views, pairs.inputs[rows], slopes, owner.taps
            )
            scores = output.reshape(onto[rows].shape)
            leaving = torch.autograd.grad((onto[rows] * scores).sum(), probes) if probes else ()
            seen.append(list(zip(entering, leaving, strict=True)))
        for tap, *parts in zip(owner.taps, *seen, strict=True):
            entering, leaving = zip(*parts, strict=True)
            yield tap, _joined(entering, tap.axis), _joined(leaving, tap.axis)

    def _rest(self, pairs: Chunk, onto: Tensor) -> Float[Tensor, "pairs pairs"]:
        """The share of the parameters without a tap, from the gradient of every pair, a block of pairs at a time."""
        owner, views = self.owner, self.owner.layout.views(self.weights)
        covered = {name for tap in owner.taps for name in tap.parameters}
        rest = {name: view for name, view in views.items() if name not in covered}
        total = onto.new_zeros(len(onto), len(onto))
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
            return torch.cat([gradient.flatten(1) for gradient in found.values()], 1)

        size = sum(view.numel() for view in rest.values()) * onto.element_size()
        blocks = torch.arange(len(onto), device=onto.device).split(
            max(1, min(owner.chunk, int(self.owner.memory / size)))
        )
        for index, rows in enumerate(blocks):
            left = gradients(rows)
            for others in blocks[: index + 1]:
                right = left if others is rows else gradients(others)
                total[rows[:, None], others] = left @ right.T
                total[others[:, None], rows] = right @ left.T
        return total
