"""`log R` as a function of the weights: margins, the loss, and the weight of each example (T6.3).

A stepper sees nothing but potentials `u` and cotangents of the margins. Potentials lie in one flat vector, one for each
example and other class; `R = mean Σ e^{-u}` exactly, and `-∇ log R = J_uᵀ softmax(-u)` with `J_u = D J`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.data.dataset import check_two_classes
from equipoise.errors import InputError
from equipoise.integrate.margins.protocol import Linearization, MarginEvaluation, Margins, Slopes, Weights
from equipoise.integrate.margins.readout import Rows
from equipoise.losses import Differential, Loss
from equipoise.transform.restoring import LawValues

_BLOCK = 4096  # examples propagated at one time where gradients alone are asked for

ExampleWeights = Tensor | np.ndarray | Sequence[float]
Cotangents = Float[Tensor, " examples *others"]  # of the margins


@dataclass(frozen=True)
class Objective:
    """`log R` on all potentials, or on some `rows` of them: the active set of a step.

    `offsets` are `-log(n w_i)`, for examples that weigh `w_i` in place of `1/n`; `None` where all weigh the same.
    """

    margins: Margins
    loss: Loss
    offsets: Float[Tensor, " examples"] | None = None
    rows: Rows | None = None
    conserved: LawValues | None = None  # the values of the laws at the start of the run, where they can be restored

    @property
    def count(self) -> int:
        """The number of examples."""
        return self.margins.count

    @property
    def operations(self) -> float:
        """Operations of a pass over the examples, forward and backward."""
        return 6.0 * self.margins.layout.size * self.count

    @property
    def per_example(self) -> int:
        """Potentials of one example: 1 for two classes, `C - 1` for `C`."""
        return math.prod(self.margins.readout.others)

    def examples(self, rows: Rows) -> Rows:
        """The examples that these potentials belong to, each once, ascending."""
        return torch.unique(rows // self.per_example)

    def restricted(self, rows: Rows) -> "Objective":
        """The objective on some of the potentials (of an objective on all), and on no other example."""
        examples = self.examples(rows)
        local = torch.searchsorted(examples, rows // self.per_example)
        return replace(
            self,
            margins=self.margins.restricted(examples),
            offsets=None if self.offsets is None else self.offsets[examples],
            rows=local * self.per_example + rows % self.per_example,
        )

    def potential(self, at: MarginEvaluation) -> Float[Tensor, " rows"]:
        """`u`, flat."""
        return self.gather(self._potential(at.margins))

    def log_risk(self, at: MarginEvaluation) -> float:
        """`log R`, from all the examples there are."""
        return float(torch.logsumexp(-self._potential(at.margins).flatten(), 0) - math.log(self.count))

    def cotangents(self, at: MarginEvaluation) -> Cotangents:
        """`-∂ log R/∂m = Dᵀ softmax(-u)`, on all potentials."""
        potential = self._potential(at.margins)
        weights = torch.softmax(-potential.flatten(), 0).view_as(potential)
        return self.loss.differential(at.margins).vjp(weights)

    @cached_property
    def _single_blocks(self) -> tuple["Objective", ...]:
        """The blocks in float32, where their margins can be."""
        blocks = tuple(replace(block, margins=block.margins.in_single()) for block in self._blocks())
        return tuple(
            replace(block, offsets=None if block.offsets is None else block.offsets.to(block.margins.inputs.dtype))
            for block in blocks
        )

    def _blocks(self) -> Iterator["Objective"]:
        """The objective on all potentials over blocks of examples, whose activations fit in a processor's cache."""
        for some in torch.arange(self.count, device=self.margins.inputs.device).split(_BLOCK):
            offsets = None if self.offsets is None else self.offsets[some]
            yield replace(self, margins=self.margins.restricted(some), offsets=offsets, conserved=None)

    def flow(self, weights: Weights, *, single: bool = False) -> tuple[Weights, float]:
        """`-∇ log R` with the network's own slopes, and `log R`, over blocks of examples: no more memory than one's.

        Sums over blocks are in the precision of the weights; `single` propagates in float32 where the margins can.
        """
        total, log_total = torch.zeros_like(weights), -math.inf
        for block in self._single_blocks if single else self._blocks():
            margins, network = block.margins.tangent(weights.to(block.margins.inputs.dtype))
            potential = block._potential(margins)
            log_sum = float(torch.logsumexp(-potential.flatten().to(weights), 0))
            onto = network.vjp(
                self.loss.differential(margins).vjp(torch.softmax(-potential.flatten(), 0).view_as(potential))
            )
            both = float(np.logaddexp(log_total, log_sum))
            total = math.exp(log_total - both) * total + math.exp(log_sum - both) * onto.to(weights)
            log_total = both
        return total, log_total - math.log(self.count)

    def linearize(self, weights: Weights, slopes: Slopes) -> "PotentialLinearization":
        """The network with these slopes, around these weights."""
        return PotentialLinearization(self, self.margins.linearize(weights, slopes))

    def scatter(self, values: Float[Tensor, " rows"]) -> Cotangents:
        """Flat values at these rows, zero elsewhere."""
        shape = (self.count, *self.margins.readout.others)
        if self.rows is None:
            return values.view(shape)
        return values.new_zeros(math.prod(shape)).index_copy(0, self.rows, values).view(shape)

    def gather(self, values: Cotangents) -> Float[Tensor, " rows"]:
        """The flat values of these rows: the adjoint of `scatter`."""
        return values.flatten() if self.rows is None else values.flatten()[self.rows]

    def _potential(self, margins: Cotangents) -> Cotangents:
        potential = self.loss.potential(margins)
        if self.offsets is None:
            return potential
        return potential + self.offsets.view(-1, *[1] * (potential.ndim - 1))


def shares(example_weights: ExampleWeights, examples: int, like: Tensor) -> Float[Tensor, " examples"]:
    """`w_i` of `R = Σ w_i ℓ_i`: weights of examples over their sum, in float64, where `like` is.

    Shares that add up to 1 already, to rounding, come back unchanged.

    Raises:
        InputError: unless there is one for each example, finite, none of them negative and some positive.

    >>> shares([1, 0, 3], 3, torch.zeros(3))
    tensor([0.2500, 0.0000, 0.7500], dtype=torch.float64)
    """
    weights = torch.as_tensor(example_weights, dtype=torch.float64, device=like.device)
    total = float(weights.sum())
    if weights.shape != (examples,) or not bool((weights >= 0).all()) or not 0 < total < math.inf:
        raise InputError(
            expected=f"{examples} weights, one for each example, none negative and not all zero",
            found=_range(weights),
            remedy="pass 0 for an example that takes no part, and a positive number for the others",
        )
    exact = abs(total - 1) <= examples * torch.finfo(torch.float64).eps
    return weights if exact else weights / total


def _range(weights: Tensor) -> str:
    shape = f"shape {tuple(weights.shape)}"
    if not weights.numel():
        return shape
    return f"{shape}, from {float(weights.min()):.3g} to {float(weights.max()):.3g}"


def weighted_examples(
    X: Tensor, y: Tensor, shares: Float[Tensor, " examples"]
) -> tuple[Tensor, Tensor, Float[Tensor, " weighted"]]:
    """The examples that weigh anything, with their labels and shares.

    An example of weight zero has no term in `R`: neither its margin nor its activations say anything of the training.

    Raises:
        InputError: where they are of one class.

    >>> weighted_examples(torch.eye(3), torch.tensor([1, 1, -1]), torch.tensor([0.5, 0.0, 0.5]).double())[1]
    tensor([ 1, -1])
    """
    weighted = shares > 0
    check_two_classes(y[weighted])
    return X[weighted], y[weighted], shares[weighted]


def positions_in_data(examples: Tensor, shares: Tensor | None) -> Tensor:
    """The positions in the data set of examples counted among those that weigh anything.

    >>> positions_in_data(torch.tensor([0, 1]), torch.tensor([0.5, 0.0, 0.5]))
    tensor([0, 2])
    """
    return examples if shares is None else shares.to(examples.device).nonzero().flatten()[examples]


@dataclass(frozen=True)
class PotentialLinearization:
    """The potentials of a network with frozen slopes, linearized: products of `J_u = D J`."""

    objective: Objective
    network: Linearization

    @cached_property
    def differential(self) -> Differential:
        """`D` at the margins of the frozen network."""
        return self.objective.loss.differential(self.network.margins)

    def cotangents(self, weights: Float[Tensor, " rows"]) -> Cotangents:
        """`Dᵀ p`: cotangents of the margins from weights of the potentials."""
        return self.differential.vjp(self.objective.scatter(weights))

    def vjp(self, cotangents: Cotangents) -> Weights:
        """`Jᵀ f`; with `f = Dᵀ p` this is `J_uᵀ p`."""
        return self.network.vjp(cotangents)

    def sensitivity(self, cotangents: Cotangents) -> Slopes:
        """`∂⟨cotangents, m⟩/∂h` with respect to the output of every kink."""
        return self.network.sensitivity(cotangents)

    def squared_gradients(self) -> Slopes:
        """`‖∂z/∂w‖²` at every kink, or an estimate of it."""
        return self.network.squared_gradients()

    def jvp(self, change: Weights) -> tuple[Float[Tensor, " rows"], tuple[Tensor, ...]]:
        """`J_u δw`, and the first-order change of every pre-activation."""
        moved = self.network.jvp(change)
        return self.objective.gather(self.differential.jvp(moved.margins)), moved.preactivations

    def kernel(self, columns: Rows | None = None) -> Float[Tensor, "rows columns"]:
        """`K_u = D J Jᵀ Dᵀ` of these rows: all its columns, or those of `columns`, by their places among the rows."""
        objective = self.objective
        total = objective.count * objective.per_example
        rows = torch.arange(total, device=self.network.margins.device) if objective.rows is None else objective.rows
        examples = rows // objective.per_example
        units = torch.zeros(len(rows), *objective.margins.readout.others).to(self.network.margins)
        units.view(len(rows), -1).scatter_(1, (rows % objective.per_example)[:, None], 1.0)
        return self.network.kernel(examples, self.differential.take(examples).vjp(units), columns)
