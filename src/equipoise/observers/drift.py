"""How far each conserved quantity has moved, and whether a step moved it as it should."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from equipoise.laws.check import ALARM, tolerance
from equipoise.laws.evaluate import LawPlan, LawReadings, Rates, sketched
from equipoise.laws.law import Law
from equipoise.observers.protocol import Reading, Requirements, Snapshot, TrainingContext
from equipoise.observers.state import ObserverState


@dataclass(frozen=True, eq=False)
class DriftState(ObserverState):
    """The conserved quantities at the start.

    Attributes:
        start: those of all laws as the plan sees them, flat.
        weights: in a training loop, those of sketched laws, until a full snapshot asks for the whole matrices.
        whole: the whole matrices of these laws at the start, flat, from then on.
    """

    start: Tensor
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    whole: Tensor | None = None


@dataclass(frozen=True)
class Drift:
    """`‖C - C_0‖_F / ‖w‖²` for every law of the network (T2), and the worst of each kind.

    In a training loop, large matrix laws are seen through a small sketch (`relative_drift_estimate`), the whole matrix
    at full snapshots. Where a step is one of plain SGD, with or without weight decay, `mismatch` is the difference
    between the change that T2.2 predicts and the one that is measured, over `‖w‖²`, and `excess` the same in units of
    what rounding explains: above 1 something is wrong.
    """

    name: ClassVar[str] = "drift"
    requires: ClassVar[Requirements] = Requirements(laws=True, step_changes=True)

    def init(self, context: TrainingContext) -> DriftState:
        """The conserved quantities at the start; of sketched laws the weights, for whole matrices take long."""
        plan = context.require("plan")
        members = dict.fromkeys(name for law in plan.seen if sketched(law) for name in law.parameters)
        weights = {name: context.initial[name].clone() for name in members}
        return DriftState(torch.from_numpy(plan(context.initial).values), weights)

    @np.errstate(over="ignore", invalid="ignore")
    def observe(
        self, context: TrainingContext, state: DriftState, snapshot: Snapshot
    ) -> tuple[DriftState, Sequence[Reading]]:
        """One drift for each law, and a mismatch where the change is predicted."""
        readings = snapshot.laws
        if readings is None:
            return state, []
        moved = readings.layout.norms(readings.values - state.start.numpy())
        drifts = dict(zip((law.name for law in readings.laws), moved, strict=True))
        laws = context.require("laws")
        if not context.online:
            return state, list(_whole(drifts, drifts, laws, snapshot))
        found = list(_seen(readings, drifts, snapshot))
        if snapshot.full:
            wide = {law.name for law in readings.laws if sketched(law)}
            state, whole = _moved([law for law in laws if law.name in wide], state, snapshot)
            found += _whole(whole, drifts | whole, laws, snapshot)
        return state, found


def _moved(laws: Sequence[Law], state: DriftState, snapshot: Snapshot) -> tuple[DriftState, dict[str, float]]:
    """`‖C - C_0‖_F` of laws from their whole values; those at the start are computed when they are first needed."""
    plan = LawPlan(laws)
    if state.whole is None:
        state = replace(state, whole=torch.from_numpy(plan(state.weights).values), weights={})
    assert state.whole is not None
    changes = plan(snapshot.parameters).values - state.whole.numpy()
    return state, dict(zip((law.name for law in laws), plan.layout.norms(changes), strict=True))


def _rounding(before: LawReadings, after: LawReadings, rates: Rates, snapshot: Snapshot) -> np.ndarray:
    """Bounds on rounding of a predicted change, from weights, new weights and gradient, by law.

    `Σ |degree| max(‖W‖², ‖W_after‖²) ε` and twice `η Σ |degree| ‖W‖ ‖G‖` times the tolerance of a gradient; the new
    weights are the larger ones where a training diverges.
    """
    assert before.scales is not None
    eta = np.array([rate[0] if rate else 0.0 for rate in rates])
    weights = np.array([ALARM * torch.finfo(dtype).eps for dtype in before.dtypes])
    gradients = np.array(_tolerances(before, snapshot))
    return weights * np.maximum(before.sizes, after.sizes) + 2 * eta * gradients * before.scales


def _tolerances(readings: LawReadings, snapshot: Snapshot) -> list[float]:
    found = zip(readings.laws, readings.dtypes, strict=True)
    return [tolerance(snapshot.precision, dtype, law.precision) for law, dtype in found]


def _seen(readings: LawReadings, drifts: Mapping[str, float], snapshot: Snapshot) -> Iterator[Reading]:
    scale = snapshot.norm**2 or 1.0
    for law, found in zip(readings.laws, _mismatches(readings, snapshot), strict=True):
        if law.count == 0:  # an identity between gradients, and nothing conserved
            continue
        quantity = "relative_drift_estimate" if sketched(law) else "relative_drift"
        yield Reading(law.name, quantity, drifts[law.name] / scale)
        if found is not None:
            mismatch, rounding = found
            yield Reading(law.name, "mismatch", mismatch / scale)
            yield Reading(law.name, "excess", mismatch / (rounding or 1.0))


def _mismatches(readings: LawReadings, snapshot: Snapshot) -> list[tuple[float, float] | None]:
    """By law, measured less predicted change, and what rounding may make of it; None without a prediction."""
    before = readings.before
    if before is None:
        return [None] * len(readings.laws)
    known = zip(readings.laws, before.residuals, _tolerances(before, snapshot), strict=True)  # T2.2 rests on T1
    rates = [snapshot.rate(law) if law.exact and residual <= limit else None for law, residual, limit in known]
    mismatches = readings.layout.lengths(readings.values - before.values - before.predicted(rates))
    found = zip(mismatches, _rounding(before, readings, rates, snapshot).tolist(), rates, strict=True)
    return [None if rate is None else (mismatch, rounding) for mismatch, rounding, rate in found]


def _whole(
    shown: Iterable[str], drifts: Mapping[str, float], laws: Iterable[Law], snapshot: Snapshot
) -> Iterator[Reading]:
    """The drifts of the laws of these names, and the worst of each kind of all `laws`."""
    scale = snapshot.norm**2 or 1.0
    for name in shown:
        yield Reading(name, "relative_drift", drifts[name] / scale)
    for kind in ("linear", "vertex"):
        of_kind = [drifts[law.name] for law in laws if law.kind == kind]
        if of_kind:
            yield Reading(f"worst {kind}", "relative_drift", max(of_kind) / scale)
