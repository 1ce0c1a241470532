"""An exact check of every gradient that a training computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from equipoise.laws.check import tolerance
from equipoise.observers.protocol import Reading, Requirements, Snapshot, TrainingContext
from equipoise.observers.state import ObserverState


@dataclass(frozen=True)
class Residual:
    """The relative T1 residual of every law at the gradient of this step: rounding, where the gradient is right.

    Unchanged by any scale of the loss, by accumulation and by clipping of the whole. `excess` is the residual in units
    of what rounding in the dtype of the backward pass explains: above 1 the gradient is wrong, or the loss depends on
    the weights otherwise than through the outputs (a penalty). In a training loop a law that is broken at the step is
    judged by what `backward()` left, at the next step if need be; one whose weights are not all held by the optimizer
    is not judged.
    """

    name: ClassVar[str] = "residual"
    requires: ClassVar[Requirements] = Requirements(laws=True, gradients=True)

    def init(self, context: TrainingContext) -> ObserverState:
        """Nothing to remember."""
        return ObserverState()

    def observe(
        self, context: TrainingContext, state: ObserverState, snapshot: Snapshot
    ) -> tuple[ObserverState, Sequence[Reading]]:
        """One residual for each law, where weights and gradients belong together."""
        laws = None if snapshot.laws is None else snapshot.laws.at_gradient
        if laws is None:
            return state, []
        readings, judged = [], None if snapshot.judgement is None else snapshot.judgement.excess
        for law, dtype, residual in zip(laws.laws, laws.dtypes, laws.residuals, strict=True):
            readings.append(Reading(law.name, "residual", residual))
            excess = None if judged is None else judged.get(law.name)
            if judged is None and law.exact:
                excess = residual / tolerance(dtype, law.precision, snapshot.precision)
            if excess is not None:
                readings.append(Reading(law.name, "excess", excess))
        return state, readings
