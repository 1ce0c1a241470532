"""The laws during training: drift of each, the defect of each discrete step, and the residual of each gradient."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from equipoise.laws.check import ALARM, tolerance
from equipoise.laws.evaluate import LawPlan, LawReadings, Rates, sketched
from equipoise.laws.law import Law
from equipoise.observers.protocol import Reading, Requirements, Snapshot, Stateless, TrainingContext
from equipoise.observers.state import ObserverResult, ObserverState


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


# The defect of discrete steps ----------------------------------------------------------------------------------------


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


# The residual of gradients -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Residual(Stateless):
    """The relative T1 residual of every law at the gradient of this step: rounding, where the gradient is right.

    Unchanged by any scale of the loss, by accumulation and by clipping of the whole. `excess` is the residual in units
    of what rounding in the dtype of the backward pass explains: above 1 the gradient is wrong, or the loss depends on
    the weights otherwise than through the outputs (a penalty). In a training loop a law that is broken at the step is
    judged by what `backward()` left, at the next step if need be; one whose weights are not all held by the optimizer
    is not judged.
    """

    name: ClassVar[str] = "residual"
    requires: ClassVar[Requirements] = Requirements(laws=True, gradients=True)

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
