"""Margins of any captured network, by its graph and `torch.func`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.graph.capture import Captured
from equipoise.graph.evaluate import Kink, frozen, kinks, recorded
from equipoise.integrate.margins import Evaluation, Layout, Slopes, Weights
from equipoise.integrate.readout import Readout, Rows


@dataclass(frozen=True)
class CapturedMargins:
    """Margins of any captured network whose only kinks are piecewise-linear activations."""

    captured: Captured
    layout: Layout
    inputs: Float[Tensor, "n ..."]
    readout: Readout
    kinks: tuple[Kink, ...] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "kinks", kinks(self.captured))

    @property
    def count(self) -> int:
        """The number of examples."""
        return self.readout.count

    @property
    def negative_slopes(self) -> tuple[float, ...]:
        """The slope below zero of every kink."""
        return tuple(kink.negative_slope for kink in self.kinks)

    def restricted(self, examples: Rows) -> "CapturedMargins":
        """The same for some of the examples."""
        return replace(self, inputs=self.inputs[examples], readout=self.readout.take(examples))

    def evaluate(self, weights: Weights) -> Evaluation:
        """The network itself."""
        output, seen = recorded(self.captured, self.kinks, self.layout.views(weights), self.inputs)
        return Evaluation(self.readout.margins(output), seen)

    def linearise(self, weights: Weights, slopes: Slopes) -> "_Linearisation":
        """The frozen network around these weights; its Jacobian is formed when first needed."""
        return _Linearisation(self, weights, slopes)

    def scores(self, weights: Weights, inputs: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """Scores of the network with frozen slopes."""
        output = frozen(self.captured, self.kinks, self.layout.views(weights), inputs, slopes)
        return output.reshape(len(inputs), self.readout.scores)


@dataclass(frozen=True)
class _Linearisation:
    owner: CapturedMargins
    weights: Weights
    slopes: Slopes

    def _frozen(self, weights: Weights) -> Tensor:
        return self.owner.readout.margins(self.owner.scores(weights, self.owner.inputs, self.slopes))

    @cached_property
    def _margins(self) -> Tensor:
        return self._frozen(self.weights)

    @property
    def margins(self) -> Float[Tensor, " examples *others"]:
        """Margins of the frozen network."""
        return self._margins

    def pullback(self, forces: Float[Tensor, " examples *others"]) -> Weights:
        """`Jᵀ p`, by one backward pass."""
        return torch.func.grad(lambda weights: (forces * self._frozen(weights)).sum())(self.weights)

    def pushforward(self, change: Weights) -> Float[Tensor, " examples *others"]:
        """`J δw`, by one forward-mode pass."""
        return torch.func.jvp(self._frozen, (self.weights,), (change,))[1]

    def kernel(self, examples: Rows, forces: Float[Tensor, " pairs *others"]) -> Float[Tensor, "pairs pairs"]:
        """`G Gᵀ` from the gradient of every pair."""

        def combined(weights: Tensor, example: Tensor, forces: Tensor, slopes: tuple[Tensor, ...]) -> Tensor:
            return forces @ self.owner.scores(weights, example[None], [slope[None] for slope in slopes])[0]

        onto = self.owner.readout.take(examples).adjoint(forces)
        slopes = tuple(slope[examples] for slope in self.slopes)
        gradients = torch.func.vmap(torch.func.grad(combined), in_dims=(None, 0, 0, 0))
        jacobian = gradients(self.weights, self.owner.inputs[examples], onto, slopes)
        return jacobian @ jacobian.T

    def stiffness(self, forces: Float[Tensor, " examples *others"]) -> Slopes:
        """`-∂⟨forces, m⟩/∂h ‖∂z/∂w‖²` at every kink: one backward pass, and one forward along random weights.

        `‖∂z/∂w‖²` is taken as the mean square of `∂z/∂w · v`, `v ~ N(0, 1)`, over all `z` of one example at a kink.
        """
        owner = self.owner

        def pushed(offsets: tuple[Tensor, ...]) -> Tensor:
            views = owner.layout.views(self.weights)
            output = frozen(owner.captured, owner.kinks, views, owner.inputs, self.slopes, offsets)
            return (forces * owner.readout.margins(output.reshape(owner.count, owner.readout.scores))).sum()

        onto = torch.func.grad(pushed)(tuple(map(torch.zeros_like, self.slopes)))
        probe = torch.randn(len(self.weights), generator=torch.Generator().manual_seed(0)).to(self.weights)
        moved = torch.func.jvp(lambda weights: owner.evaluate(weights).preactivations, (self.weights,), (probe,))[1]
        reach = [z.square().flatten(1).mean(1).view(-1, *[1] * (z.ndim - 1)) for z in moved]
        return tuple(-force * each for force, each in zip(onto, reach, strict=True))
