"""SGD and weight decay secretly minimise the rank (Galanti, Siegel, Gupte & Poggio 2022).

A step of SGD with weight decay is `W ← (1 - ηλ) W - ηG` with `G` of rank at most the batch size `B`, for a layer that
reads one vector an example. So after `s` steps `dist_F(W_T, rank ≤ sB) ≤ (1 - ηλ)^s ‖W_{T-s}‖_F`, exactly.
"""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.data import load
from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Outcome, Paper, PaperCase
from equipoise.gallery.literature.training import Quantities, Trace, train
from equipoise.measure import batch_rank_bound, distance_to_rank
from equipoise.measure.spectrum import spectrum
from equipoise.networks import mlp
from equipoise.observers import Snapshot


@dataclass(frozen=True)
class DecayedSGD:
    """A deep ReLU network on digits by SGD with weight decay; `decays` are compared.

    What is left of the start is `e^{-ηλT}`: at the largest decay `e^{-8}`, below the tolerance of the rank.
    """

    depth: int = 10
    width: int = 64
    batch: int = 8
    lr: float = 0.05  # at 0.1 one of five trainings without decay diverged
    decays: tuple[float, ...] = (0.0, 5e-3, 2e-2)
    steps: int = 8000
    every: int = 500
    tolerance: float = 1e-3
    steps_back: int = 4


def measure(case: PaperCase[DecayedSGD]) -> Outcome:
    """Distance over bound and what is beyond the rank of the last steps, the worst of all; the rank at each decay."""
    setting = case.setting
    traces = {decay: decayed_run(case, decay) for decay in setting.decays}
    bound, beyond = (
        max(value for trace in traces.values() for _, value in trace.series(name)[1:])
        for name in ("distance over bound", "beyond the batches")
    )
    ranks = [trace.last("mean rank") for trace in traces.values()]
    rises = max(later - earlier for earlier, later in pairwise(ranks)) / setting.width
    figures = [
        Comparison(f"{what} at decay {decay:g}", trace.last(what))
        for decay, trace in traces.items()
        for what in ("mean rank", "training accuracy")
    ]
    curves = [trace.curve(f"decay {decay:g}", "mean rank") for decay, trace in traces.items()]
    return Outcome((bound, beyond, rises, ranks[-1] / ranks[0]), figures, curves)


def decayed_run(case: PaperCase[DecayedSGD], decay: float) -> Trace:
    """One training, with the figures of its square matrices."""
    setting = case.setting
    X, y = load("digits")
    model = mlp([64, *[setting.width] * (setting.depth - 1), 10], init="kaiming", seed=case.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr, weight_decay=decay)
    matrices = [weight for weight in model.parameters() if weight.shape == (setting.width, setting.width)]
    past: deque[list[Tensor]] = deque(maxlen=setting.steps_back)

    def remember() -> None:
        past.append([weight.detach().clone() for weight in matrices])

    def figures(_: Snapshot) -> dict[str, float]:
        with torch.no_grad():
            accuracy = float((model(X).argmax(1) == y).double().mean())
        ranks = [spectrum(weight.detach()).numerical_rank(setting.tolerance) for weight in matrices]
        found = [
            memory_of(new.detach(), old, setting, len(past), decay) for new, old in zip(matrices, past[0], strict=True)
        ]
        return {
            "training accuracy": accuracy,
            "mean rank": sum(ranks) / len(ranks),
            "distance over bound": max(over for over, _ in found),
            "beyond the batches": max(beyond for _, beyond in found),
        }

    remember()
    return train(
        case,
        model,
        optimizer,
        F.cross_entropy,
        (X, y),
        steps=setting.steps,
        every=setting.every,
        batch=setting.batch,
        observe=[Quantities(figures)],
        after_step=remember,
        name=f"decay {decay:g}",
    )


def memory_of(new: Tensor, old: Tensor, setting: DecayedSGD, steps: int, decay: float) -> tuple[float, float]:
    """Distance to rank `sB` over its bound; `σ_{sB+1}/σ_1` of what `s` steps have written."""
    bound = batch_rank_bound(float(old.norm()), setting.lr, decay, setting.batch, steps)
    written = torch.linalg.svdvals(new - (1 - setting.lr * decay) ** steps * old)
    return distance_to_rank(new, bound.rank) / bound.distance, float(written[bound.rank] / written[0])


PAPER = Paper(
    key="galanti2022sgd",
    claim="SGD with weight decay keeps only the batches of its last steps: a weight is within (1 - ηλ)^s ‖W_{T-s}‖ of "
    "rank sB, and its rank falls as the decay grows.",
    basis="Read in the paper, whose argument for the bound is a line and is repeated in measure.batch_rank_bound; its "
    "trend with the batch size is not claimed here.",
    quick=DecayedSGD(),
    criteria=(
        Criterion(
            "distance to rank sB over (1 - ηλ)^s ‖W_{T-s}‖, the worst of layers, snapshots and decays",
            "≤",
            1.0,
            "The inequality is exact, and so is the threshold. With η λ s small it is weak: the next figure is not.",
        ),
        Criterion(
            "σ_{sB+1} / σ_1 of W_T - (1 - ηλ)^s W_{T-s}, the worst of the same",
            "≤",
            1e-9,
            "What s steps write has rank sB exactly. Rounding of weights near 1, 1e-16, over steps as small as 1e-5 "
            "makes 1e-11; a layer with gradients of full rank would show about 1.",
        ),
        Criterion(
            "largest rise of the mean rank from one decay to the next larger one, of the width",
            "≤",
            0.05,
            "The claim is that it falls; three neurons of 64 are allowed for the noise of a mean over layers.",
        ),
        Criterion(
            "mean rank at the largest decay over that without",
            "≤",
            0.6,
            "Without decay the layers keep the full rank of their start; a trend worth the name takes away a good "
            "part.",
        ),
    ),
    measure=measure,
    picture=Picture("step", "mean numerical rank of the square matrices", logarithmic=False),
)
