"""What every step of gradient descent does to every law: predicted from the gradient, and measured (T2.2)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from equipoise.laws.law import Law
from equipoise.laws.predict import plain_change
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot


@dataclass(frozen=True)
class Defect:
    """Predicted and measured change of each law in a step `w ← (1 - ηλ) w - ηG`, over `‖w‖²` (T2.2).

    `mismatch` is the norm of their difference over `‖w‖²`, for rounding alone some 1e-16; `total_mismatch` that of all
    steps so far, over the change measured so far. Laws that the prediction does not cover (an `eps`, members with
    different rates) and steps of other methods are left out.
    """

    name: ClassVar[str] = "defect"

    def init(self, scene: Scene) -> Memory:
        """The conserved quantities at the start; raises `Unavailable` where the laws are not known."""
        laws = [law for law in scene.require("laws") if law.exact and law.count]
        return {f"start/{law.name}": law.value(scene.initial) for law in laws}

    def before(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """The quantities just before a step, and what the step will do to them."""
        after = dict(memory)
        for law in _covered(scene, memory):
            rate = snapshot.rate(law)
            if rate is not None and snapshot.gradients is not None:
                value = law.value(snapshot.parameters)
                after[f"before/{law.name}"] = value
                after[f"change/{law.name}"] = plain_change(law, value, law.value(snapshot.gradients), *rate)
        return after, []

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """Prediction and measurement side by side, where there was a prediction."""
        after = {name: value for name, value in memory.items() if name.startswith(("start/", "total/"))}
        readings, scale = [], snapshot.norm**2
        for law in _covered(scene, memory):
            if f"change/{law.name}" not in memory:
                continue
            now, predicted = law.value(snapshot.parameters), memory[f"change/{law.name}"]
            measured = now - memory[f"before/{law.name}"]
            total = memory[f"total/{law.name}"] + predicted if f"total/{law.name}" in memory else predicted
            moved = now - memory[f"start/{law.name}"]
            after[f"total/{law.name}"] = total
            figures = {
                "predicted_change": float(predicted.norm()) / scale,
                "measured_change": float(measured.norm()) / scale,
                "mismatch": float((measured - predicted).norm()) / scale,
                "total_mismatch": float((moved - total).norm()) / (float(moved.norm()) or 1.0),
            }
            readings += [Reading(law.name, quantity, value) for quantity, value in figures.items()]
        return after, readings


def accumulated(memory: Memory) -> dict[str, Tensor]:
    """The predicted changes of all steps so far, by the name of the law, from the memory of this observer."""
    return {name.partition("total/")[2]: total for name, total in memory.items() if "total/" in name}


def _covered(scene: Scene, memory: Memory) -> list[Law]:
    return [law for law in scene.require("laws") if f"start/{law.name}" in memory]
