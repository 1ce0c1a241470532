"""What the theorems of T3 assume, each decided from the weights and the data themselves.

An assumption is *verified* (proved from the artefacts, rounding included), *observed* (seen so far, unprovable in
finite time) or *failed*.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from equipoise.graph.capture import Captured
from equipoise.integrate.losses import LOSSES, Loss, log_risk
from equipoise.measure.margins import binary_margins
from equipoise.theorems.tail import Chain, law_drifts

Standing = Literal["verified", "observed", "failed"]

LAW_TOLERANCE = 1e-12
"""Relative drift of a law that rounding alone explains: ten thousand steps, each kept to 1e-16 (T6.2), at the worst.

The drift of gradient descent and of Adam, `η² ‖G‖²` a step (T2.2), lies orders above it unless nothing is learnt.
"""

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Assumption:
    """One hypothesis of a theorem, with what was found.

    `measured` and `tolerance` are the two numbers compared, where there are numbers; `why` says what was compared.
    """

    name: str
    statement: str
    standing: Standing
    measured: float | None
    tolerance: float | None
    why: str


@dataclass(frozen=True)
class Evidence:
    """What a certificate is made from: a feedforward chain, its weights in float64 before and after, and the data."""

    captured: Captured
    chain: Chain
    final: dict[str, Tensor]
    initial: dict[str, Tensor] | None
    X: Tensor
    y: Tensor
    loss: Loss
    snapshots: tuple[dict[str, Tensor], ...] = ()  # of the run, in order of growth

    @cached_property
    def margins(self) -> Tensor:
        """`y_i f(x_i)` at the final weights, recomputed."""
        return binary_margins(self.captured.run(self.final, self.X), self.y)

    @cached_property
    def log_risk(self) -> float:
        """`log R` at the final weights, recomputed."""
        return log_risk(self.loss.potential(self.margins))

    @cached_property
    def rounding(self) -> float:
        """A bound on the rounding of any score, hence of `log R`: `γ_N` times the network of `|W|`, `|b|` on `|X|`.

        `N` is the number of roundings on the longest way through (Higham, *Accuracy and Stability*, §3.5); `log R` is
        1-Lipschitz in the margins, and itself rounded to a few units.
        """
        h, roundings = self.X.flatten(1).abs(), 0
        for layer in self.chain:
            weight = self.final[layer.weight].abs()
            h = h @ weight.mT + (0.0 if layer.bias is None else self.final[layer.bias].abs())
            h = h * max(1.0, abs(layer.negative_slope or 0.0))
            roundings += weight.shape[1] + 2
        return (roundings + 8) * _EPS * max(float(h.max()), 1.0)

    @property
    def has_biases(self) -> bool:
        """Whether any layer has a bias."""
        return any(layer.bias for layer in self.chain)

    @property
    def radius(self) -> float:
        """The largest `‖x_i‖`."""
        return float(self.X.flatten(1).norm(dim=1).max())

    @property
    def certain_margin(self) -> float:
        """The smallest margin, rounding taken off."""
        return float(self.margins.min()) - self.rounding


def homogeneous(evidence: Evidence) -> Assumption:
    """All weights doubled multiply every output by `2^L`, bit for bit: powers of two are exact in floating point."""
    depth = len(evidence.chain)
    scores = evidence.captured.run(evidence.final, evidence.X)
    doubled = evidence.captured.run({name: 2 * w for name, w in evidence.final.items()}, evidence.X)
    largest = float(scores.abs().max())
    error = float((doubled / 2**depth - scores).abs().max()) / largest if largest > 0 else 0.0
    biased = [layer.weight for layer in evidence.chain if layer.bias]
    why = f"doubled weights against outputs times 2^{depth}, largest relative difference; "
    why += f"biases of {', '.join(biased)}" if biased else "a chain of linear maps, homogeneous activations, no biases"
    return Assumption(
        "homogeneous",
        f"f(x; a w) = a^{depth} f(x; w) for a > 0",
        "verified" if error == 0 and not biased else "failed",
        error,
        0.0,
        why,
    )


def exponential_tail(evidence: Evidence) -> Assumption:
    """`-log ℓ(m) - m → 0`: by definition for the losses of Equipoise, at one large margin for a loss of one's own."""
    margin = torch.tensor([40.0], dtype=torch.float64)
    error = float((evidence.loss.potential(margin) - margin).abs())
    known = LOSSES.get(evidence.loss.name) == evidence.loss
    passed: Standing = "verified" if known else "observed"
    return Assumption(
        "exponential tail",
        "ℓ(m) e^m → 1 as m → ∞",
        passed if error <= 1e-12 else "failed",
        error,
        1e-12,
        f"|log ℓ(m) + m| of the {evidence.loss.name} loss at m = 40" + ("" if known else "; a loss of your own"),
    )


def separated(evidence: Evidence) -> Assumption:
    """`R < ℓ(0)/n`, so that every margin is positive; margins recomputed from the weights and the data."""
    threshold = evidence.loss.log_at_zero() - math.log(len(evidence.y))
    return Assumption(
        "separated",
        "log R < log(ℓ(0)/n)",
        "verified" if evidence.log_risk + evidence.rounding < threshold else "failed",
        evidence.log_risk,
        threshold,
        f"log R recomputed on {len(evidence.y)} examples, right to {evidence.rounding:.1e}",
    )


def laws_conserved(evidence: Evidence) -> Assumption:
    """Every law of the chain is what it was at initialisation: what gradient flow, and nothing else, keeps."""
    statement = "W₊ᵀW₊ - WWᵀ - bbᵀ is that of initialisation, its diagonal alone below a ReLU"
    if evidence.initial is None:
        return Assumption("laws conserved", statement, "observed", None, None, "not measured: no initial weights given")
    drifts = law_drifts(evidence.chain, evidence.initial, evidence.final)
    worst = max(drifts, key=drifts.__getitem__, default=None)
    drift = 0.0 if worst is None else drifts[worst]
    return Assumption(
        "laws conserved",
        statement,
        "verified" if drift <= LAW_TOLERANCE else "failed",
        drift,
        LAW_TOLERANCE,
        "a single layer has none" if worst is None else f"‖C - C₀‖_F/‖w‖², the worst of {len(drifts)} laws: {worst}",
    )


def weights_of_the_run(evidence: Evidence, recorded: float) -> Assumption:
    """`log R` at the weights is the one on record: catches weights exchanged or tampered with above rounding."""
    error = abs(evidence.log_risk - recorded)
    return Assumption(
        "weights of the run",
        "log R at these weights is the one recorded",
        "verified" if error <= 2 * evidence.rounding else "failed",
        error if math.isfinite(error) else None,
        2 * evidence.rounding,
        f"log R recomputed {evidence.log_risk:.12g}, recorded {recorded:.12g}; each is right to half the tolerance",
    )


def directional_convergence(evidence: Evidence) -> Assumption:
    """`w/‖w‖` converges: a theorem for homogeneous networks (Ji & Telgarsky 2020), seen only so far in any run."""
    rate = _turning_rate(evidence.snapshots)
    return Assumption(
        "directional convergence",
        "w/‖w‖ converges",
        "observed",
        rate,
        None,
        "not measured: no weights saved on the way"
        if rate is None
        else "‖Δ(w/‖w‖)‖ per unit of growth between the last two weights saved",
    )


def _turning_rate(snapshots: tuple[dict[str, Tensor], ...]) -> float | None:
    """`‖Δ(w/‖w‖)‖ / Δ log ‖w‖` between the last two weights saved; None unless there is one before the last."""
    flat = [torch.cat([w.double().flatten() for _, w in sorted(weights.items())]) for weights in snapshots]
    rates = [
        float((after / after.norm() - before / before.norm()).norm() / (after.norm() / before.norm()).log())
        for before, after in pairwise(flat)
        if after.norm() > before.norm()
    ]
    return rates[-1] if len(flat) > 2 and rates else None
