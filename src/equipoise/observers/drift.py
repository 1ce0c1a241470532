"""How far each conserved quantity has moved."""

from dataclasses import dataclass
from typing import ClassVar

from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot


@dataclass(frozen=True)
class Drift:
    """`‖C - C_0‖_F / ‖w‖²` for every law of the network (THEORY T2), and the worst of each kind."""

    name: ClassVar[str] = "drift"

    def init(self, scene: Scene) -> Memory:
        """The conserved quantities at the start."""
        return scene.laws.value(scene.initial)

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """One number for each law."""
        now = scene.laws.value(snapshot.parameters)
        drifts = {name: float((now[name] - start).norm()) / snapshot.norm**2 for name, start in memory.items()}
        readings = [Reading(name, "relative_drift", drift) for name, drift in drifts.items()]
        for kind in ("linear", "vertex"):
            of_kind = [drifts[law.name] for law in scene.laws if law.kind == kind]
            if of_kind:
                readings.append(Reading(f"worst {kind}", "relative_drift", max(of_kind)))
        return memory, readings
