"""How near the direction is to a KKT point of the max-margin problem (T7).

The weights of the examples in `-∇ log R`, `p = softmax(-m)`, are multipliers `λ = p ‖w‖/‖Jᵀp‖` in `w ≈ Jᵀλ`. For them
the slackness has a bound that needs no optimisation. The entropy identity gives `Σ p_i (m_i - m_min) ≤ H(p) ≤ log N`,
and Euler's `⟨w, Jᵀp⟩ = L Σ p_i m_i ≥ L m_min` gives `‖w‖/‖Jᵀp‖ ≤ ‖w‖²/(L m_min)`, so that

    `δ = Σ_i λ_i (m_i - m_min) / m_min^{2/L} ≤ log N / (L m_min γ^{2/L})`,   `γ = m_min/‖w‖^L`,

which tends to zero with the margins. By itself that is no news: multipliers on the least margin alone have `δ = 0` in
any network, and large margins are near that. Stationarity has no such bound at one instant: its residual `ε`, from the
multipliers of `measure.kkt`, is compared with what it was a unit of growth before; where a pair is on its kink its
slope is open, and so is `J`: only the run itself knows it (`kkt_epsilon` of its records).
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from equipoise.measure.kkt import kkt_from_jacobian
from equipoise.theorems.claims import LIMIT, Claim, Claimer
from equipoise.theorems.evidence import Evidence, Named, Point
from equipoise.theorems.stability import preactivations_of

_EXAMPLES, _ENTRIES = 100, 20_000_000  # gradients kept for the multipliers, and numbers in all of them
_ON_KINK = 1e-6  # of the largest pre-activation of a layer, below which a pair may be on its kink
_KINK_ROUNDINGS = 100  # of training's arithmetic, likewise


def stationarity_claims(evidence: Evidence, claim: Claimer) -> Iterator[Claim]:
    """The slackness `δ` below its bound; and `ε` below what it was a unit of growth before.

    None unless the network is homogeneous and every margin positive; the second where that point was saved and
    separated, and no pair is on its kink at either.
    """
    degree = evidence.homogeneity.degree
    if not degree or evidence.certain_margin <= 0:
        return
    norm, force, multipliers = _norm(evidence.final), _forces(evidence), _multipliers(evidence)
    smallest = evidence.certain_margin
    excess = (evidence.margins - evidence.margins.min()).flatten()
    size = norm / float(force.norm()) * smallest ** (-2 / degree)
    delta = size * float(multipliers @ excess)
    scale = (norm / smallest ** (1 / degree)) ** 2 / (degree * smallest)
    bound = scale * (math.log(evidence.margins.numel()) + 4 * (evidence.rounding or 0.0))
    rests_on = ("homogeneous", "separated", "weights of the run")
    yield claim("slackness of the margins", "T7", "δ, multipliers softmax(-m)", delta, "≤", bound, 0.0, rests_on)
    since, end = _earlier(evidence.points), evidence.points[-1]
    if since is not end and _separated(evidence, since) and not any(on_kinks(evidence, at) for at in (since, end)):
        before, now = (_epsilon(evidence, point, degree) for point in (since, end))
        quantity = f"ε, of w/‖w‖ and Jᵀλ/‖Jᵀλ‖, against that at s = {since.growth:.2f}"
        rests_on = (*LIMIT, "directional convergence")
        most = math.sqrt(2)  # ⟨w, Jᵀλ⟩ is not negative
        yield claim("residual of stationarity", "T7", quantity, now, "≤", before, most, rests_on)


def _multipliers(evidence: Evidence) -> Tensor:
    return torch.softmax(-evidence.margins.flatten(), 0)


def _forces(evidence: Evidence) -> Tensor:
    """`Jᵀp` as one vector, by one backward pass."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in evidence.final.items()}
    scores = evidence.captured.run(weights, evidence.X).reshape(len(evidence.y), -1)
    total = (_multipliers(evidence) * evidence.margins_of(scores).flatten()).sum()
    return _flat(dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True)))


def _earlier(points: tuple[Point, ...]) -> Point:
    """The saved point nearest to one unit of growth before the end; the end itself where there is no other."""
    return min(points[:-1] or points, key=lambda point: abs(point.growth - points[-1].growth + 1))


def _separated(evidence: Evidence, point: Point) -> bool:
    return bool(evidence.margins_of(evidence.scores_at(point.weights)).min() > 0)


def on_kinks(evidence: Evidence, point: Point) -> bool:
    """Whether some pair of a neuron and an example is on its kink, as far as the weights tell."""
    seen = preactivations_of(evidence)(point.weights).values()
    nearest = max(_ON_KINK, _KINK_ROUNDINGS * evidence.eps)
    return any(bool((z.abs() <= nearest * z.abs().max()).any()) for z in seen)


def _epsilon(evidence: Evidence, point: Point, degree: int) -> float:
    """The residual `ε` over the examples of the least margins, as many as the memory for their gradients allows."""
    flat = evidence.margins_of(evidence.scores_at(point.weights)).flatten()
    weights = _flat(point.weights)
    rows = flat.argsort(stable=True)[: max(1, min(_EXAMPLES, _ENTRIES // len(weights)))]
    jacobian = torch.stack([_gradient(evidence, point.weights, int(row)) for row in rows])
    return kkt_from_jacobian(jacobian, weights, flat[rows], degree).epsilon


def _gradient(evidence: Evidence, weights: Named, row: int) -> Tensor:
    """`∇ m` of one margin, flat; margins of one example stand together."""
    others = evidence.margins.numel() // len(evidence.y)
    one = replace(evidence, X=evidence.X[[row // others]], y=evidence.y[[row // others]])
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    margin = one.margins_of(one.captured.run(leaves, one.X).reshape(1, -1)).flatten()[row % others]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(margin, list(leaves.values()))])


def _flat(weights: Named) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in weights.values()])


def _norm(weights: Named) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in weights.values()))
