"""Variation spaces for multi-output networks (Shenouda, Parhi, Lee & Nowak 2023): outputs share neurons."""

from dataclasses import dataclass

import torch

from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.optim import active_neurons, share_neurons


@dataclass(frozen=True)
class SharedNeurons:
    """Random features of given ranks, and random outputs in their span."""

    neurons: int = 120
    examples: int = 12
    feature_rank: int | None = 4  # of the features; None for as many as there are examples
    outputs: int = 10
    output_rank: int | None = 3
    draws: int = 20
    sizes: tuple[int, ...] = (12,)


PUBLISHED = {10: 34.4, 20: 82.3, 30: 126.8, 40: 167.9}


def measure(case: PaperCase[SharedNeurons]) -> Outcome:
    """The most neurons over the bound, and the worst violation of the constraints."""
    setting, generator = case.setting, case.generator()
    figures, points, worst, violation = [], [], 0.0, 0.0
    for n in setting.sizes:
        counts = []
        for _ in range(setting.draws):
            features, outputs = _drawn(setting, n, generator)
            found = share_neurons(features, outputs)
            violation = max(violation, float((features @ found.T - outputs).norm() / outputs.norm()))
            bound = int(torch.linalg.matrix_rank(features)) * int(torch.linalg.matrix_rank(outputs))
            counts.append(len(active_neurons(found)))
            worst = max(worst, counts[-1] / bound)
            case.log(examples=n, active=counts[-1], bound=bound)
        points.append((float(n), sum(counts) / len(counts)))
        published = PUBLISHED.get(n) if setting.feature_rank is None else None
        figures.append(Comparison(f"active neurons of {setting.neurons}, {n} examples", points[-1][1], published))
    return Outcome((worst, violation), figures, [Curve("active neurons", points)])


def _drawn(setting: SharedNeurons, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    def gaussian(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k, d, rank = setting.neurons, setting.outputs, setting.feature_rank
    features = gaussian(n, k) if rank is None else gaussian(n, rank) @ gaussian(rank, k)
    mixing = (
        gaussian(k, d)
        if setting.output_rank is None
        else gaussian(k, setting.output_rank) @ gaussian(setting.output_rank, d)
    )
    return features, features @ mixing


PAPER = Paper(
    key="shenouda2024variation",
    claim="Among the output weights of least Σ‖v_k‖ that fit the data there are some with at most rank Φ · rank Ψ "
    "active neurons, however many neurons there are.",
    basis="Read in the paper: D = 10 outputs, 500 neurons, 100 draws. The law of its draws was not; ours are Gaussian.",
    quick=SharedNeurons(),
    full=SharedNeurons(500, 10, None, 10, None, 100, (10, 20, 30, 40)),
    criteria=(
        Criterion(
            "active neurons over rank Φ · rank Ψ, the most of all draws",
            "≤",
            1.0,
            "The bound of the theorem itself, with nothing added.",
        ),
        Criterion(
            "relative violation of Φ Vᵀ = Ψ, the worst",
            "≤",
            1e-11,
            "Least squares on the neurons that are kept is right to rounding times their condition number, some "
            "hundreds.",
        ),
    ),
    measure=measure,
    picture=Picture("examples", "active neurons", logarithmic=False),
)
