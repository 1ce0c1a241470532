"""The assumptions of the theorems, each decided from the weights and the data themselves."""

import math

import torch

from equipoise.losses import LOSSES, adjustment_of
from equipoise.theorems.claims import Assumption, Standing
from equipoise.theorems.direction import LimitDirection
from equipoise.theorems.evidence import Evidence


def of_network(evidence: Evidence) -> tuple[Assumption, ...]:
    """The assumptions on the network, its loss, its margins and its laws."""
    decisions = (homogeneous, exponential_tail, separated, laws_conserved)
    return tuple(decide(evidence) for decide in decisions)


def of_record(evidence: Evidence) -> tuple[Assumption, ...]:
    """The assumption on the artefacts of a run; none without one."""
    recorded = evidence.recorded_log_risk
    return () if recorded is None else (weights_of_the_run(evidence, recorded),)


def start_is_lost(evidence: Evidence) -> bool:
    """Whether the laws are not those of the initial weights, or the weights not those of the run."""
    return any(found.standing == "failed" for found in (laws_conserved(evidence), *of_record(evidence)))


def homogeneous(evidence: Evidence) -> Assumption:
    """Every operation is homogeneous; and all weights doubled multiply every output by `2^L`, bit for bit.

    Powers of two are exact in floating point.
    """
    proved = evidence.homogeneity
    if proved.degree is None:
        why = f"no degree: {proved.obstacle}"
        return Assumption("homogeneous", "f(x; a w) = a^L f(x; w) for a > 0", "failed", None, None, why)
    scores, doubled = evidence.scores, evidence.scores_at({name: 2 * w for name, w in evidence.final.items()})
    largest = float(scores.abs().max())
    error = float((doubled / 2.0**proved.degree - scores).abs().max()) / largest if largest > 0 else 0.0
    return Assumption(
        "homogeneous",
        f"f(x; a w) = a^{proved.degree} f(x; w) for a > 0",
        "verified" if error == 0 else "failed",
        error,
        0.0,
        f"every operation has a degree; doubled weights against outputs times 2^{proved.degree}, the largest "
        "relative difference",
    )


def exponential_tail(evidence: Evidence) -> Assumption:
    """`-log ℓ(m) - m → 0`: by definition for the losses of Equipoise, at one large margin for a loss of one's own."""
    shape = evidence.margins.shape[1:]
    margins = torch.full((1, *shape), 40.0, dtype=torch.float64)
    error = float((evidence.loss.potential(margins) - margins).abs().max())
    known = LOSSES.get(evidence.loss.name) == evidence.loss or adjustment_of(evidence.loss) is not None
    passed: Standing = "verified" if known else "observed"
    return Assumption(
        "exponential tail",
        "ℓ(m) e^m → 1 as m → ∞",
        passed if error <= 1e-12 and evidence.loss.exponential_tail else "failed",
        error,
        1e-12,
        f"|log ℓ(m) + m| of the {evidence.loss.name} loss at m = 40" + ("" if known else "; a loss of your own"),
    )


def separated(evidence: Evidence) -> Assumption:
    """`R < ℓ(0) min_i w_i`, so that every margin is positive; margins recomputed from the weights and the data."""
    threshold, share = evidence.log_separation, "1/n" if evidence.example_weights is None else "min w_i"
    rounding = evidence.rounding
    passed: Standing = "observed" if rounding is None else "verified"
    known = "its rounding unknown: an operation without a bound" if rounding is None else f"right to {rounding:.1e}"
    return Assumption(
        "separated",
        f"log R < log(ℓ(0) · {share})",
        passed if evidence.log_risk + (rounding or 0.0) < threshold else "failed",
        evidence.log_risk,
        threshold,
        f"log R recomputed on {len(evidence.y)} examples, {known}",
    )


def laws_conserved(evidence: Evidence) -> Assumption:
    """Every law of the network is what it was at initialisation, as under gradient flow.

    Where gradient descent kept count of T2.2, the law must be where its defects put it.
    """
    predicted = " but for the defects that gradient descent predicts" if evidence.predicted else ""
    statement = f"every law of the network is what it was at initialisation{predicted}"
    if evidence.initial is None:
        return Assumption("laws conserved", statement, "observed", None, None, "not measured: no initial weights given")
    rounding = evidence.law_tolerance
    allowed = {name: rounding + evidence.slack(name) for name in evidence.drifts}
    worst = max(evidence.drifts, key=lambda name: evidence.drifts[name] / allowed[name], default=None)
    drift, tolerance = (0.0, rounding) if worst is None else (evidence.drifts[worst], allowed[worst])
    formula = "‖C - C₀ - Σ η²(…)‖/‖w‖² (T2.2)" if evidence.predicted else "‖C - C₀‖/‖w‖²"
    return Assumption(
        "laws conserved",
        statement,
        "verified" if drift <= tolerance else "failed",
        drift,
        tolerance,
        "there are none" if worst is None else f"{formula}, the worst of {len(evidence.drifts)} laws: {worst}",
    )


def weights_of_the_run(evidence: Evidence, recorded: float) -> Assumption:
    """`log R` at the weights is the one on record: catches weights exchanged or tampered with above rounding.

    Rounding is that of both: of float64 here, and of what the run computed in there.
    """
    error, rounding = abs(evidence.log_risk - recorded), evidence.rounding
    relative = max(1e-9, 1e3 * evidence.eps)
    tolerance = relative * abs(recorded) if rounding is None else (1 + evidence.coarseness) * rounding
    passed: Standing = "observed" if rounding is None else "verified"
    precision = str(evidence.dtype).removeprefix("torch.")
    return Assumption(
        "weights of the run",
        "log R at these weights is the one recorded",
        passed if error <= tolerance else "failed",
        error if math.isfinite(error) else None,
        tolerance,
        f"log R recomputed {evidence.log_risk:.12g}, recorded {recorded:.12g} in {precision}; the tolerance is what "
        "both may be off by",
    )


def directional_convergence(direction: LimitDirection | None) -> Assumption:
    """`w/‖w‖` converges: a theorem for homogeneous networks (Ji & Telgarsky 2020), seen only so far in any run."""
    statement = "w/‖w‖ converges"
    if direction is None:
        why = "not measured: too few weights saved on the way"
        return Assumption("directional convergence", statement, "observed", None, None, why)
    rate = "no rate seen yet" if direction.rate is None else f"about as e^(-{direction.rate:.3g} s)"
    return Assumption(
        "directional convergence",
        statement,
        "observed",
        direction.turning,
        None,
        f"‖Δ(w/‖w‖)‖ per unit of growth at the end, {rate}; the limit lies within {direction.uncertainty:.2g}",
    )
