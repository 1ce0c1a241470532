"""Norms of the gradients, and whether an orthogonalised update would go further than a plain one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from equipoise.arguments import checked_fields, require_integer
from equipoise.measure.spectrum import spectrum
from equipoise.measure.unfolding import Unfolding
from equipoise.observers.protocol import Reading, Requirements, Snapshot, Stateless, TrainingContext
from equipoise.observers.state import ObserverState


@dataclass(frozen=True)
class GradientNorm(Stateless):
    """`‖G‖` of all parameters together, and of each, before every step that a snapshot is taken of.

    In a training loop the gradient that the optimizer is given; in a flow that of `log R`.
    """

    name: ClassVar[str] = "gradient_norm"
    requires: ClassVar[Requirements] = Requirements(gradients=True, before_step=True)

    def before(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """The norms in a training loop, while gradients and weights belong together."""
        return state, _norms(snapshot)

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """The norms in a flow."""
        return state, [] if context.online else _norms(snapshot)


@checked_fields
@dataclass(frozen=True, eq=False)
class NuclearRatio(Stateless):
    """`‖G‖⁎²/‖G‖_F²` of the gradient of each matrix, beside the stable rank of what the layers pass on.

    A step along the polar factor of `G`, as Muon takes, promises more than one along `G` where the ratio exceeds the
    stable rank `‖A‖_F²/‖A‖²` of the layer's input (Davis & Drusvyatskiy, 2025). It lies between 1 and the rank of `G`.
    With examples `X`, `activation_stable_rank` is that of the rectified pre-activations `max(z, 0)`, one row an
    example, which the next layer reads. Matrices with a shorter side above `full_up_to` are left out.
    """

    X: Tensor | None = None
    full_up_to: int = 1024
    name: ClassVar[str] = "nuclear_ratio"

    def __post_init__(self) -> None:
        require_integer("full_up_to", self.full_up_to, "pass full_up_to=1024, the longest short side", least=1)

    @property
    def requires(self) -> Requirements:
        """Gradients, and with examples a way to compute activations."""
        return Requirements(gradients=True, before_step=True, probe=self.X is not None)

    def before(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """The ratios in a training loop, while gradients and weights belong together."""
        return state, self._ratios(context, snapshot)

    def _ratios(self, context: TrainingContext, snapshot: Snapshot) -> list[Reading]:
        """One ratio for each matrix that has a gradient."""
        gradients = _gradients(snapshot)
        readings = []
        for unfolding in context.matrices:
            gradient = gradients.get(unfolding.weight)
            if gradient is not None and bool(gradient.any()):
                matrix = Unfolding(unfolding.weight).matrix({unfolding.weight: gradient})
                if min(matrix.shape) <= self.full_up_to:
                    readings.append(Reading(unfolding.weight, "nuclear_ratio", spectrum(matrix.double()).nuclear_ratio))
        return readings

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """The ratios in a flow, and the stable rank of the activations, where there are examples."""
        ratios = [] if context.online else self._ratios(context, snapshot)
        if self.X is None:
            return state, ratios
        passed = context.require("probe")(snapshot.parameters, self.X).preactivations
        ranks = {place: spectrum(z.flatten(0, -2).clamp(min=0).double()).stable_rank for place, z in passed.items()}
        return state, ratios + [Reading(place, "activation_stable_rank", rank) for place, rank in ranks.items()]


def _norms(snapshot: Snapshot) -> list[Reading]:
    """The norm of everything under the empty name, then one for each parameter."""
    norms = {place: float(torch.linalg.vector_norm(each.double())) for place, each in _gradients(snapshot).items()}
    total = math.hypot(*norms.values())
    readings = [Reading(place, "gradient_norm", norm) for place, norm in norms.items()]
    return [Reading("", "gradient_norm", total), *readings] if norms else []


def _gradients(snapshot: Snapshot) -> Mapping[str, Tensor]:
    return {} if snapshot.gradients is None else snapshot.gradients
