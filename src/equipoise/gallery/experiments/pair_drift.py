"""Pairs that are not co-active drift, by exactly the integral of T2.4."""

import torch
from torch import Tensor

from equipoise.gallery.case import Case, Trail
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.experiments.pair_invariance import HIDDEN, pair_matrices
from equipoise.gallery.recipes import RELU


def impulses(sensitivities: list[Tensor], entering: list[Tensor], moves: list[Tensor]) -> Tensor:
    """`h p̄_i`, the weight of every example in a step that moved the layers by `moves`.

    The step is `Δw = Jᵀ (h p̄)`, so `J Jᵀ (h p̄) = J Δw`; `J Jᵀ = Σ_k (D_k D_kᵀ) ∘ (H_k H_kᵀ)` for a chain.
    """
    layers = list(zip(sensitivities, entering, moves, strict=True))
    kernel = sum((d @ d.T) * (h @ h.T) for d, h, _ in layers)
    moved = sum(((d @ move) * h).sum(1) for d, h, move in layers)
    return torch.linalg.lstsq(kernel, torch.as_tensor(moved)[:, None], driver="gelsd").solution[:, 0]


def frozen_pass(weights: list[Tensor], slopes: list[Tensor], X: Tensor, y: Tensor) -> tuple[list[Tensor], ...]:
    """Of the network with frozen slopes: what enters every layer, its pre-activations, and `∂m/∂z` of every layer."""
    entering, before = [X], []
    for weight, slope in zip(weights, slopes, strict=True):
        before.append(entering[-1] @ weight.T)
        entering.append(slope * before[-1])
    sensitivities = [y[:, None] * slopes[-1]]
    for weight, slope in zip(reversed(weights[1:]), reversed(slopes[:-1]), strict=True):
        sensitivities.insert(0, slope * (sensitivities[0] @ weight))
    return entering[:-1], before, sensitivities


def predicted(trail: Trail, t: int) -> list[Tensor]:
    """T2.4 over step `t`: `Σ_i h p̄_i (α_ui - α_vi)(⟨c_u, δ_i⟩ z_vi - ⟨c_v, δ_i⟩ z_ui)` for `WWᵀ - W₊ᵀW₊`."""
    X, y = trail.run.data
    here, there = ([*s.parameters.values()] for s in trail.moments[t - 1 : t + 1])
    middle, moves = zip(*(((a + b) / 2, b - a) for a, b in zip(here, there, strict=True)), strict=True)
    linear = [torch.ones(len(X), len(weight), dtype=X.dtype) for weight in middle[len(HIDDEN) :]]
    slopes = [*trail.moments[t].slopes, *linear]
    entering, before, sensitivities = frozen_pass(list(middle), slopes, X, y)
    weight = impulses(sensitivities, entering, list(moves))
    drifts = []
    for k in HIDDEN:
        z, a = before[k], slopes[k]
        c = sensitivities[k + 1] @ middle[k + 1]  # ⟨c_u, δ_i⟩
        each = (a[:, :, None] - a[:, None, :]) * (c[:, :, None] * z[:, None, :] - c[:, None, :] * z[:, :, None])
        drifts.append(torch.einsum("i,iuv->uv", weight, each))
    return drifts


def measure(case: Case) -> Measurement:
    """The largest difference between drift and integral over the largest drift, along the whole flow."""
    trail = case.train(RELU)
    total = predicted(trail, 1)
    actual = [pair_matrices(trail, k) for k in HIDDEN]
    curve, wrong, largest = [], 0.0, 0.0
    for t, moment in enumerate(trail.moments[1:], 1):
        total = [a + b for a, b in zip(total, predicted(trail, t), strict=True)] if t > 1 else total
        drifts = [values[0] - values[t] for values in actual]
        wrong = max(wrong, *(float((d - p).abs().max()) for d, p in zip(drifts, total, strict=True)))
        largest = max(float(d.abs().max()) for d in drifts)
        curve.append((moment.growth, largest / moment.norm**2))
    return Measurement(wrong / largest, curve, f"largest drift {curve[-1][1]:.1e} of ‖w‖² at the end", trail.unfinished)


EXPERIMENT = Experiment(
    name="pair-drift",
    title="ReLU networks: pairs that are not co-active drift as predicted",
    statement="⟨a_u, a_v⟩ - ⟨b_u, b_v⟩ of two neurons that are not on for the same examples, a the weights that they "
    "read by and b those that read them, does change: by exactly the integral over the flow of what they do not share.",
    theorem="T2.4",
    sources=("le2022training",),
    statistic="largest difference between drift and integral, over the largest drift; over pairs and time",
    threshold=1e-10,
    why="The integrand is constant over a midpoint step, so there is no error of quadrature: what is left is rounding "
    "of the law, 1e-16 of ‖w‖² a step, over a drift of some 1e-2 of ‖w‖², and of the linear system for the examples' "
    "weights.",
    measure=measure,
    picture=Picture("growth s", "largest drift of a pair / ‖w‖²"),
)
