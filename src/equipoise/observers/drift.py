"""How far each conserved quantity has moved, and whether a step moved it as it should."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from equipoise.laws.audit import ALARM, tolerance
from equipoise.laws.gauge import Dials
from equipoise.laws.law import Law
from equipoise.laws.panel import Panel, Rates, sketched
from equipoise.observers.protocol import Memory, Reading, Scene, Snapshot


@dataclass(frozen=True)
class Drift:
    """`‖C - C_0‖_F / ‖w‖²` for every law of the network (T2), and the worst of each kind.

    In a training loop, large matrix laws are seen through a small sketch (`relative_drift_estimate`), the whole matrix
    at thorough looks. Where a step is one of plain SGD, with or without weight decay, `mismatch` is the difference
    between the change that T2.2 predicts and the one that is measured, over `‖w‖²`, and `excess` the same in units of
    what rounding explains: above 1 something is wrong.
    """

    name: ClassVar[str] = "drift"
    reads_laws: ClassVar[bool] = True

    def init(self, scene: Scene) -> Memory:
        """The conserved quantities at the start; in a training loop the weights instead of large matrix laws.

        Their values take long, and only full snapshots ask for them.
        """
        laws = scene.require("laws")
        if not scene.frugal:
            return {f"start/{name}": value for name, value in laws.value(scene.initial).items()}
        gauge = scene.require("gauge")
        members = dict.fromkeys(name for law in gauge.laws if sketched(law) for name in law.parameters)
        kept = {f"weights/{name}": scene.initial[name].clone() for name in members}
        return kept | {"gauge": torch.from_numpy(gauge.read(scene.initial).values)}

    @np.errstate(over="ignore", invalid="ignore")
    def observe(self, scene: Scene, memory: Memory, snapshot: Snapshot) -> tuple[Memory, list[Reading]]:
        """One drift for each law, and a mismatch where the step can be foretold."""
        laws = scene.require("laws")
        if not scene.frugal:
            return memory, list(_whole(laws, _moved(laws, memory, snapshot), laws, snapshot))
        if not snapshot.dials:
            return memory, []
        start, panel = memory["gauge"].numpy(), snapshot.dials.panel
        readings = list(_seen(snapshot.dials, start, snapshot))
        if snapshot.thorough:
            large = [law for law in laws if law.name in {each.name for each in panel.laws if sketched(each)}]
            memory = _valued(large, memory)
            drifts = dict(zip((law.name for law in panel.laws), panel.layout.norms(panel.values - start), strict=True))
            readings += _whole(large, drifts | _moved(large, memory, snapshot), laws, snapshot)
        return memory, readings


def _valued(laws: Sequence[Law], memory: Memory) -> Memory:
    """The values of laws at the start in place of the weights there."""
    weights = {key.removeprefix("weights/"): memory[key] for key in memory if key.startswith("weights/")}
    if not weights:
        return memory
    kept = {key: value for key, value in memory.items() if not key.startswith("weights/")}
    return kept | {f"start/{law.name}": law.value(weights) for law in laws}


def _rounding(panel: Panel, after: Panel, rates: Rates, snapshot: Snapshot) -> np.ndarray:
    """What rounding of the weights, of the new weights, and of the gradient may make of a predicted change, by law.

    `Σ |degree| max(‖W‖², ‖W_after‖²) ε` and twice `η Σ |degree| ‖W‖ ‖G‖` times the tolerance of a gradient; the new
    weights are the larger ones where a training diverges.
    """
    assert panel.scales is not None
    eta = np.array([rate[0] if rate else 0.0 for rate in rates])
    weights = np.array([ALARM * torch.finfo(dtype).eps for dtype in panel.dtypes])
    gradients = np.array(_tolerances(panel, snapshot))
    return weights * np.maximum(panel.sizes, after.sizes) + 2 * eta * gradients * panel.scales


def _tolerances(panel: Panel, snapshot: Snapshot) -> list[float]:
    found = zip(panel.laws, panel.dtypes, strict=True)
    return [tolerance(snapshot.precision, dtype, law.precision) for law, dtype in found]


def _seen(dials: Dials, start: np.ndarray, snapshot: Snapshot) -> Iterator[Reading]:
    panel, scale = dials.panel, snapshot.norm**2 or 1.0
    drifts = panel.layout.norms(panel.values - start)
    for law, drift, found in zip(panel.laws, drifts, _mismatches(dials, snapshot), strict=True):
        if law.count == 0:  # an identity between gradients, and nothing conserved
            continue
        yield Reading(law.name, "relative_drift_estimate" if sketched(law) else "relative_drift", drift / scale)
        if found is not None:
            mismatch, rounding = found
            yield Reading(law.name, "mismatch", mismatch / scale)
            yield Reading(law.name, "excess", mismatch / (rounding or 1.0))


def _mismatches(dials: Dials, snapshot: Snapshot) -> list[tuple[float, float] | None]:
    """By law, measured less predicted change, and what rounding may make of it; None without a prediction."""
    panel, before = dials.panel, dials.before
    if before is None:
        return [None] * len(panel.laws)
    known = zip(panel.laws, before.residuals, _tolerances(before, snapshot), strict=True)  # T2.2 rests on T1
    rates = [snapshot.rate(law) if law.exact and residual <= limit else None for law, residual, limit in known]
    mismatches = panel.layout.lengths(panel.values - before.values - before.predicted(rates))
    found = zip(mismatches, _rounding(before, panel, rates, snapshot).tolist(), rates, strict=True)
    return [None if rate is None else (mismatch, rounding) for mismatch, rounding, rate in found]


def _moved(laws: Iterable[Law], memory: Memory, snapshot: Snapshot) -> dict[str, float]:
    """`‖C - C_0‖_F` of laws from their whole values."""
    return {law.name: float((law.value(snapshot.parameters) - memory[f"start/{law.name}"]).norm()) for law in laws}


def _whole(
    shown: Iterable[Law], drifts: Mapping[str, float], laws: Iterable[Law], snapshot: Snapshot
) -> Iterator[Reading]:
    """The drifts of the laws `shown`, and the worst of each kind of all `laws`."""
    scale = snapshot.norm**2 or 1.0
    for law in shown:
        yield Reading(law.name, "relative_drift", drifts[law.name] / scale)
    for kind in ("linear", "vertex"):
        of_kind = [drifts[law.name] for law in laws if law.kind == kind]
        if of_kind:
            yield Reading(f"worst {kind}", "relative_drift", max(of_kind) / scale)
