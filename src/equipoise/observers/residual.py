"""An exact check of every gradient that a training computes."""

from dataclasses import dataclass
from typing import ClassVar

from equipoise.laws.audit import tolerance
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot


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
    reads_laws: ClassVar[bool] = True

    def init(self, scene: Scene) -> Memory:
        """Nothing to remember; raises `Unavailable` where there are no laws."""
        scene.require("gauge")
        return {}

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """One residual for each law, wherever weights and gradients belong together."""
        panel = None if snapshot.dials is None else snapshot.dials.before
        if snapshot.linearisation is not None:
            panel = scene.require("gauge").read(snapshot.parameters, snapshot.linearisation.gradients())
        if panel is None:
            return memory, []
        readings, judged = [], None if snapshot.judgement is None else snapshot.judgement.excess
        for law, dtype, residual in zip(panel.laws, panel.dtypes, panel.residuals, strict=True):
            readings.append(Reading(law.name, "residual", residual))
            excess = None if judged is None else judged.get(law.name)
            if judged is None and law.exact:
                excess = residual / tolerance(dtype, law.precision, snapshot.precision)
            if excess is not None:
                readings.append(Reading(law.name, "excess", excess))
        return memory, readings
