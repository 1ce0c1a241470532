"""The defect of every step of gradient descent in every law: predicted from the gradient, and measured (T2.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from equipoise.observers.protocol import Reading, Requirements, Snapshot, TrainingContext
from equipoise.observers.state import ObserverResult, ObserverState


@dataclass(frozen=True, eq=False)
class DefectState(ObserverState):
    """The values of all laws at the start, flat, and by law the sum of the changes predicted so far."""

    start: Tensor
    total: Mapping[str, Tensor] = field(default_factory=dict)

    def result(self) -> ObserverResult:
        """The predicted changes of all steps so far, by the name of the law.

        Returns:
            These changes.
        """
        return ObserverResult(predicted_changes=self.total)


@dataclass(frozen=True)
class Defect:
    """Predicted and measured change of each law in a step `w ← (1 - ηλ) w - ηG`, over `‖w‖²` (T2.2).

    `mismatch` is the norm of their difference over `‖w‖²`, for rounding alone some 1e-16; `total_mismatch` that of all
    steps so far, over the change measured so far. Laws that the prediction does not cover (an `eps`, members with
    different rates) and steps of other methods are left out.
    """

    name: ClassVar[str] = "defect"
    requires: ClassVar[Requirements] = Requirements(whole_laws=True, step_changes=True)

    def init(self, context: TrainingContext) -> DefectState:
        """The conserved quantities at the start."""
        return DefectState(torch.from_numpy(context.require("plan")(context.initial).values))

    def observe(
        self, context: TrainingContext, state: DefectState, snapshot: Snapshot
    ) -> tuple[DefectState, Sequence[Reading]]:
        """Prediction and measurement side by side, where there was a prediction."""
        now = snapshot.laws
        if now is None or now.before is None:
            return state, []
        rates = [snapshot.rate(law) if law.exact and law.count else None for law in now.laws]
        predicted, start = now.before.predicted(rates), state.start.numpy()
        total, readings, scale = dict(state.total), [], snapshot.norm**2
        for law, rate, place, shape in zip(now.laws, rates, now.layout.places, now.layout.shapes, strict=True):
            if rate is None:
                continue
            change = torch.from_numpy(predicted[place].reshape(shape))
            total[law.name] = total[law.name] + change if law.name in total else change
            measured, moved = now.values[place] - now.before.values[place], now.values[place] - start[place]
            figures = {
                "predicted_change": _norm(predicted[place]) / scale,
                "measured_change": _norm(measured) / scale,
                "mismatch": _norm(measured - predicted[place]) / scale,
                "total_mismatch": _norm(moved - total[law.name].numpy().reshape(-1)) / (_norm(moved) or 1.0),
            }
            readings += [Reading(law.name, quantity, value) for quantity, value in figures.items()]
        return replace(state, total=total), readings


def _norm(numbers: np.ndarray) -> float:
    return float(np.linalg.norm(numbers))
