"""Spectral dynamics of weights: generalising late goes with low rank, and weight decay brings both (Yunis et al. 2024).

Modular addition: `(a, b) ↦ a + b mod p` from a share of all pairs. With weight decay a network first fits the pairs and
generalises much later ("grokking"); the effective rank of its matrices falls. Without, neither happens.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.data import modular_addition
from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.paper import Comparison, Outcome, Paper, PaperCase
from equipoise.gallery.literature.training import Quantities, Trace, train
from equipoise.measure.spectrum import spectrum
from equipoise.networks import ModularTransformer, mlp
from equipoise.observers import Snapshot


@dataclass(frozen=True)
class ModularAddition:
    """Modular addition, full-batch AdamW; a transformer, or a network of three layers on one-hot pairs."""

    modulus: int = 29
    share: float = 0.5
    architecture: str = "mlp"
    hidden: int = 128
    width: int = 128
    heads: int = 4
    lr: float = 3e-3
    beta2: float = 0.999
    weight_decay: float = 3.0
    steps: int = 6000
    every: int = 100


def measure(case: PaperCase[ModularAddition]) -> Outcome:
    """Test accuracy and rank at the end, with weight decay and without."""
    decayed = modular_run(case, case.setting, "weight decay")
    plain = modular_run(case, replace(case.setting, weight_decay=0.0), "no weight decay")
    traces = {"weight decay": decayed, "no weight decay": plain}
    curves = [
        trace.curve(f"{what}, {name}", quantity)
        for name, trace in traces.items()
        for what, quantity in (("test accuracy", "test accuracy"), ("rank", "middle rank"))
    ]
    ends = [trace.last(name) for trace in (decayed, plain) for name in ("test accuracy", "middle rank")]
    comparisons = [
        Comparison("training accuracy at the end, weight decay", decayed.last("training accuracy")),
        Comparison("training accuracy at the end, no weight decay", plain.last("training accuracy")),
        Comparison("seconds a step", decayed.seconds_a_step),
    ]
    shortfall = "; ".join(f"{name} {trace.shortfall}" for name, trace in traces.items() if trace.shortfall)
    return Outcome(() if shortfall else tuple(ends), comparisons, curves, premise=shortfall)


def modular_run(case: PaperCase[ModularAddition], setting: ModularAddition, name: str) -> Trace:
    """Train one network; accuracies and normalised effective ranks every so often."""
    seen, unseen, model = _problem(setting, case.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=setting.lr, betas=(0.9, setting.beta2), weight_decay=setting.weight_decay
    )
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]

    def figures(_: Snapshot) -> dict[str, float]:
        with torch.no_grad():
            accuracies = [float((model(X).argmax(1) == y).double().mean()) for X, y in (seen, unseen)]
            ranks = [spectrum(weight.detach()).normalised_effective_rank for weight in matrices]
        return {
            "training accuracy": accuracies[0],
            "test accuracy": accuracies[1],
            "middle rank": ranks[len(ranks) // 2],
            "mean rank": math.fsum(ranks) / len(ranks),
        }

    return train(
        case,
        model,
        optimizer,
        F.cross_entropy,
        seen,
        steps=setting.steps,
        every=setting.every,
        observe=[Quantities(figures)],
        name=name,
    )


Examples = tuple[Tensor, Tensor]


def _problem(setting: ModularAddition, seed: int) -> tuple[Examples, Examples, nn.Module]:
    """Pairs to train on, pairs to test on, and the network that reads them, in float32."""
    p, width = setting.modulus, setting.width
    if setting.architecture == "transformer":
        split = modular_addition(p, setting.share, seed, encoding="tokens")
        model = ModularTransformer(p, width, setting.heads, setting.hidden, seed=seed, dtype=torch.float32)
        return split.train, split.test, model
    split = modular_addition(p, setting.share, seed)
    (X, y), (unseen, sums) = split.train, split.test
    network = mlp([2 * p, setting.hidden, setting.hidden, p], init="kaiming", seed=seed)
    return (X.float(), y), (unseen.float(), sums), network.float()


PAPER = Paper(
    key="yunis2024approaching",
    claim="On modular addition weight decay brings late generalisation and matrices of low effective rank; without "
    "it a network fits the pairs it sees, does not generalise, and keeps its rank.",
    basis="Read in the paper, which trains a transformer on p = 113 (the full setting); the quick setting and the "
    "thresholds are ours.",
    quick=ModularAddition(),
    full=ModularAddition(
        modulus=113,
        share=0.3,
        architecture="transformer",
        hidden=512,
        lr=1e-3,
        beta2=0.98,
        weight_decay=1.0,
        steps=40_000,
        every=100,
    ),
    criteria=(
        Criterion(
            "test accuracy at the end, with weight decay",
            "≥",
            0.9,
            "A network that has found the addition gets nearly every unseen pair right; chance is one in p.",
        ),
        Criterion(
            "normalised effective rank of the middle matrix at the end, with weight decay",
            "≤",
            0.4,
            "A Gaussian matrix has 0.87: less than half of it is left, with room between the two trainings.",
        ),
        Criterion(
            "test accuracy at the end, without weight decay",
            "≤",
            0.05,
            "Chance is 1/29 = 0.034, and among 420 unseen pairs its standard deviation is 0.009: within two of them.",
        ),
        Criterion(
            "normalised effective rank of the middle matrix at the end, without weight decay",
            "≥",
            0.5,
            "More than half of a Gaussian matrix's 0.87, and clear of the rank with weight decay.",
        ),
    ),
    measure=measure,
    picture=Picture("step", "test accuracy; normalised effective rank of the middle matrix", logarithmic=False),
    beside=("roy2007effective",),
)
