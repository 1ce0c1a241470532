"""The function that a network computes, at points of one's own: the rank of its Jacobian, and activation patterns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from equipoise.arguments import checked_fields
from equipoise.measure.bottleneck import jacobian_spectrum
from equipoise.observers.protocol import Reading, Requirements, Snapshot, Stateless, TrainingContext
from equipoise.observers.state import ObserverState


@checked_fields
@dataclass(frozen=True, eq=False)
class Bottleneck(Stateless):
    """Rank and pseudo-determinant of the Jacobian of the network at points of one's own (Jacot 2023).

    `Bottleneck(X)`: `jacobian_rank` is the largest number of singular values above `tolerance` times the first,
    `mean_jacobian_rank` and `log_pseudo_determinant` are means over the points. `regions` is the number of different
    activation patterns among them. One backward pass for each output.
    """

    X: Tensor
    tolerance: float = 1e-3
    name: ClassVar[str] = "bottleneck"
    requires: ClassVar[Requirements] = Requirements(probe=True)

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """Four readings of the whole network."""
        probe = context.require("probe")
        found = jacobian_spectrum(lambda x: probe(snapshot.parameters, x).output, self.X)
        patterns = [(z > 0).flatten(1) for z in probe(snapshot.parameters, self.X).preactivations.values()]
        figures = {
            "jacobian_rank": float(found.rank(self.tolerance)),
            "mean_jacobian_rank": float(found.ranks(self.tolerance).double().mean()),
            "log_pseudo_determinant": float(found.log_pseudo_determinants(self.tolerance).mean()),
        }
        if patterns and all(len(each) == len(self.X) for each in patterns):
            figures["regions"] = float(len(torch.unique(torch.cat(patterns, 1), dim=0)))
        return state, [Reading("", quantity, value) for quantity, value in figures.items()]
