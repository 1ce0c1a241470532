"""How far each conserved quantity has moved, and whether a step moved it as it should."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from equipoise.laws.audit import ALARM, tolerance
from equipoise.laws.gauge import Dial, sketched
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot


@dataclass(frozen=True)
class Drift:
    """`‖C - C_0‖_F / ‖w‖²` for every law of the network (THEORY T2), and the worst of each kind.

    In a training loop, large matrix laws are seen through a small sketch (`relative_drift_estimate`), the whole matrix
    at thorough looks. Where a step is one of plain SGD, with or without weight decay, `mismatch` is the difference
    between the change that T2.2 predicts and the one that is measured, over `‖w‖²`, and `excess` the same in units of
    what rounding explains: above 1 something is wrong.
    """

    name: ClassVar[str] = "drift"

    def init(self, scene: Scene) -> Memory:
        """The conserved quantities at the start."""
        start = {f"start/{name}": value for name, value in scene.require("laws").value(scene.initial).items()}
        if not scene.frugal:
            return start
        return start | {f"gauge/{dial.law.name}": dial.value for dial in scene.require("gauge").read(scene.initial)}

    def before(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """The quantities just before a step, and what the step will do to them."""
        after = _lasting(memory)
        for dial in snapshot.dials.read if snapshot.dials else ():
            name, rates = dial.law.name, {snapshot.rates.get(parameter) for parameter in dial.law.parameters}
            rate = rates.pop() if len(rates) == 1 else None
            if rate is not None and dial.law.exact:
                after[f"before/{name}"] = dial.value
                after[f"change/{name}"] = dial.predicted(*rate)
                after[f"round/{name}"] = torch.tensor(_rounding(dial, rate[0], snapshot), dtype=torch.float64)
        return after, []

    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """One drift for each law, and a mismatch where there was a prediction."""
        readings = []
        if scene.frugal:
            for dial in snapshot.dials.read if snapshot.dials else ():
                readings += _seen(dial, memory, snapshot)
        if snapshot.thorough or not scene.frugal:
            readings += _whole(scene, memory, snapshot)
        return _lasting(memory), readings


def _lasting(memory: Memory) -> Memory:
    """Where it started; predictions are for one step only."""
    return {name: value for name, value in memory.items() if name.startswith(("start/", "gauge/"))}


def _rounding(dial: Dial, rate: float, snapshot: Snapshot) -> float:
    """What rounding of the weights, of the new weights, and of the gradient may make of a predicted change."""
    eps = torch.finfo(dial.value.dtype).eps
    gradient = tolerance(snapshot.precision or dial.value.dtype)
    return ALARM * eps * dial.size + 2 * rate * gradient * dial.scale


def _seen(dial: Dial, memory: Memory, snapshot: Snapshot) -> list[Reading]:
    name, scale = dial.law.name, snapshot.norm**2 or 1.0
    if dial.law.count == 0:  # an identity between gradients, and nothing conserved
        return []
    quantity = "relative_drift_estimate" if sketched(dial.law) else "relative_drift"
    readings = [Reading(name, quantity, dial.norm(dial.value - memory[f"gauge/{name}"]) / scale)]
    if f"before/{name}" in memory:
        measured = dial.value - memory[f"before/{name}"]
        mismatch = float(torch.linalg.vector_norm(measured - memory[f"change/{name}"]))
        readings.append(Reading(name, "mismatch", mismatch / scale))
        readings.append(Reading(name, "excess", mismatch / (float(memory[f"round/{name}"]) or 1.0)))
    return readings


def _whole(scene: Scene, memory: Memory, snapshot: Snapshot) -> list[Reading]:
    """Every law from its whole matrix, and the worst of each kind."""
    laws, scale = scene.require("laws"), snapshot.norm**2 or 1.0
    drifts = {law.name: float((law.value(snapshot.parameters) - memory[f"start/{law.name}"]).norm()) for law in laws}
    readings = [Reading(name, "relative_drift", drift / scale) for name, drift in drifts.items()]
    for kind in ("linear", "vertex"):
        of_kind = [drifts[law.name] for law in laws if law.kind == kind]
        if of_kind:
            readings.append(Reading(f"worst {kind}", "relative_drift", max(of_kind) / scale))
    return readings
