"""T7: the direction tends to a KKT point of the max-margin problem.

The weights of the examples in `-∇ log R`, `p = softmax(-m)`, are multipliers `λ = p ‖w‖/‖Jᵀp‖` in `w ≈ Jᵀλ`. For them
the slackness has a bound that needs no optimisation. The entropy identity gives `Σ p_i (m_i - m_min) ≤ H(p) ≤ log N`,
and Euler's `⟨w, Jᵀp⟩ = L Σ p_i m_i ≥ L m_min` gives `‖w‖/‖Jᵀp‖ ≤ ‖w‖²/(L m_min)`, so that

    `δ = Σ_i λ_i (m_i - m_min) / m_min^{2/L} ≤ log N / (L m_min γ^{2/L})`,   `γ = m_min/‖w‖^L`,

which tends to zero with the margins. By itself that is no news: multipliers on the least margin alone have `δ = 0` in
any network, and large margins are near that. Stationarity has no such bound at one instant: its residual `ε`, from the
multipliers of `measure.kkt`, is compared with its value a unit of growth before; where a pair is on its kink its
slope is open, and so is `J`: only the run itself knows it (`kkt_epsilon` of its records).
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from equipoise.measure.kkt import kkt_from_jacobian
from equipoise.theorems.claims import LIMIT, CheckResult, Statement
from equipoise.theorems.evidence import Evidence
from equipoise.theorems.weights import Point, Weights, flattened, weight_norm

_EXAMPLES, _ENTRIES = 100, 20_000_000  # gradients kept for the multipliers, and numbers in all of them
_ON_KINK = 1e-6  # of the largest pre-activation of a layer, below which a pair may be on its kink
_KINK_ROUNDINGS = 100  # of training's arithmetic, likewise


def check(evidence: Evidence) -> CheckResult:
    """The slackness `δ` below its bound; and `ε` below its value a unit of growth before.

    None unless the network is homogeneous and every margin positive; the second where that point was saved and
    separated, and no pair is on its kink at either.
    """
    degree = evidence.homogeneity.degree
    if not degree or evidence.certain_margin <= 0:
        return CheckResult(())
    since, end = _earlier(evidence.points), evidence.points[-1]
    comparable = since is not end and _separated(evidence, since)
    residual = comparable and not any(on_kinks(evidence, point) for point in (since, end))
    return CheckResult((_slackness(evidence, degree), *([_residual(evidence, degree, since)] if residual else [])))


def _slackness(evidence: Evidence, degree: int) -> Statement:
    norm, smallest = weight_norm(evidence.final), evidence.certain_margin
    excess = (evidence.margins - evidence.margins.min()).flatten()
    size = norm / float(_cotangent(evidence).norm()) * smallest ** (-2 / degree)
    scale = (norm / smallest ** (1 / degree)) ** 2 / (degree * smallest)
    return Statement(
        name="slackness of the margins",
        theorem="T7",
        quantity="δ, multipliers softmax(-m)",
        measured=size * float(_multipliers(evidence) @ excess),
        relation="≤",
        bound=scale * (math.log(evidence.margins.numel()) + 4 * (evidence.rounding or 0.0)),
        trivial=0.0,
        rests_on=("homogeneous", "separated", "weights of the run"),
    )


def _residual(evidence: Evidence, degree: int, since: Point) -> Statement:
    return Statement(
        name="residual of stationarity",
        theorem="T7",
        quantity=f"ε, of w/‖w‖ and Jᵀλ/‖Jᵀλ‖, against that at s = {since.growth:.2f}",
        measured=_epsilon(evidence, evidence.points[-1], degree),
        relation="≤",
        bound=_epsilon(evidence, since, degree),
        trivial=math.sqrt(2),  # ⟨w, Jᵀλ⟩ is not negative
        rests_on=(*LIMIT, "directional convergence"),
    )


def _multipliers(evidence: Evidence) -> Tensor:
    return torch.softmax(-evidence.margins.flatten(), 0)


def _cotangent(evidence: Evidence) -> Tensor:
    """`Jᵀp` as one vector, by one backward pass."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in evidence.final.items()}
    scores = evidence.captured.run(weights, evidence.X).reshape(len(evidence.y), -1)
    total = (_multipliers(evidence) * evidence.margins_of(scores).flatten()).sum()
    return flattened(dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True)))


def _earlier(points: tuple[Point, ...]) -> Point:
    """The saved point nearest to one unit of growth before the end; the end itself where there is no other."""
    return min(points[:-1] or points, key=lambda point: abs(point.growth - points[-1].growth + 1))


def _separated(evidence: Evidence, point: Point) -> bool:
    return bool(evidence.margins_of(evidence.scores_at(point.weights)).min() > 0)


def on_kinks(evidence: Evidence, point: Point) -> bool:
    """Whether some pair of a neuron and an example is on its kink, to rounding."""
    seen = evidence.preactivations_by_layer(point.weights).values()
    nearest = max(_ON_KINK, _KINK_ROUNDINGS * evidence.eps)
    return any(bool((z.abs() <= nearest * z.abs().max()).any()) for z in seen)


def _epsilon(evidence: Evidence, point: Point, degree: int) -> float:
    """The residual `ε` over the examples of the least margins, as many as the memory for their gradients allows."""
    flat = evidence.margins_of(evidence.scores_at(point.weights)).flatten()
    weights = flattened(point.weights)
    rows = flat.argsort(stable=True)[: max(1, min(_EXAMPLES, _ENTRIES // len(weights)))]
    jacobian = torch.stack([_gradient(evidence, point.weights, int(row)) for row in rows])
    return kkt_from_jacobian(jacobian, weights, flat[rows], degree).epsilon


def _gradient(evidence: Evidence, weights: Weights, row: int) -> Tensor:
    """`∇ m` of one margin, flat; margins of one example are adjacent."""
    others = evidence.margins.numel() // len(evidence.y)
    one = replace(evidence, X=evidence.X[[row // others]], y=evidence.y[[row // others]])
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    margin = one.margins_of(one.captured.run(leaves, one.X).reshape(1, -1)).flatten()[row % others]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(margin, list(leaves.values()))])
