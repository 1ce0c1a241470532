"""The implicit bias towards minimal depth (Galanti, Galanti & Ben-Shaul 2022).

The effective depth of a trained classifier is the first layer whose features are classified by their nearest class
centre: it does not grow with the depth of the network, and it does with noise in the labels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.data import load
from equipoise.gallery.experiment import Criterion, Picture
from equipoise.gallery.literature.classifiers import layer_features, normalised_mlp
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.gallery.literature.training import Quantities, train
from equipoise.measure import centre_mismatch, effective_depth
from equipoise.observers import Snapshot


@dataclass(frozen=True)
class LayerDepths:
    """BatchNorm networks of two depths on digits, the deeper one also with noisy labels."""

    shallow: int = 4
    deep: int = 8
    width: int = 64
    examples: int = 600
    noise: float = 0.5
    epsilon: float = 0.01
    batch: int = 100
    lr: float = 0.1
    momentum: float = 0.9
    steps: int = 1500
    every: int = 500


def measure(case: PaperCase[LayerDepths]) -> Outcome:
    """The effective depths of three networks, and the training accuracy that is their premise."""
    setting = case.setting
    X, y = load("digits", n=setting.examples, seed=case.seed)
    runs = {
        f"{setting.shallow} layers": (setting.shallow, y),
        f"{setting.deep} layers": (setting.deep, y),
        f"{setting.deep} layers, {setting.noise:.0%} noise": (setting.deep, with_noise(case, y, setting.noise)),
    }
    depths, curves, figures = [], [], []
    for name, (depth, labels) in runs.items():
        mismatches, accuracy = mismatch_run(case, name, depth, X, labels)
        depths.append(effective_depth(mismatches, setting.epsilon))
        curves.append(Curve(name, [(float(layer), value) for layer, value in enumerate(mismatches, 1)]))
        figures += [
            Comparison(f"effective depth, {name}", float(depths[-1])),
            Comparison(f"accuracy, {name}", accuracy),
        ]
        if accuracy < 1 - setting.epsilon:
            return Outcome((), figures, curves, premise=f"{name}: {accuracy:.3f} of the labels were fitted")
    return Outcome((float(abs(depths[1] - depths[0])), float(depths[2] - depths[1])), figures, curves)


def mismatch_run(
    case: PaperCase[LayerDepths], name: str, depth: int, X: Tensor, labels: Tensor
) -> tuple[list[float], float]:
    """Train one network; the mismatch of each of its layers, and the share of labels that it fits."""
    setting = case.setting
    model = normalised_mlp([X.shape[1], *[setting.width] * depth, 10], seed=case.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr, momentum=setting.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.steps)

    def mismatches() -> list[float]:
        return [centre_mismatch(features, labels) for features in layer_features(model, X)]

    def figures(_: Snapshot) -> dict[str, float]:
        found = {f"mismatch of layer {layer}": value for layer, value in enumerate(mismatches(), 1)}
        scores = model.get_submodule("head")(layer_features(model, X)[-1])
        return found | {"accuracy": float((scores.argmax(1) == labels).double().mean())}

    trace = train(
        case,
        model,
        optimizer,
        F.cross_entropy,
        (X, labels),
        steps=setting.steps,
        every=setting.every,
        batch=setting.batch,
        observe=[Quantities(figures)],
        after_step=schedule.step,
        name=name,
    )
    return mismatches(), trace.last("accuracy")


def with_noise(case: PaperCase[LayerDepths], labels: Tensor, share: float) -> Tensor:
    """Labels of which a share, drawn by the seed, is replaced by random ones."""
    generator = case.generator(2)
    drawn = torch.randint(0, 10, labels.shape, generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < share, drawn, labels)


PAPER = Paper(
    key="galanti2022implicit",
    claim="The first layer that separates the classes by their nearest centres does not depend on the depth of the "
    "network, and moves up with noise in the labels.",
    basis="Read in the paper's abstract (effective depth, its independence of the depth, label noise); data, sizes and "
    "thresholds are ours.",
    quick=LayerDepths(),
    criteria=(
        Criterion(
            "difference of the effective depths of the two networks on clean labels",
            "≤",
            1.0,
            "The claim is no difference. The mismatch falls by a small factor a layer, so that a training may end on "
            "either side of ε: one layer.",
        ),
        Criterion(
            "effective depth with noise minus that without, in the deeper network",
            "≥",
            3.0,
            "Beyond the one layer that two trainings on clean labels may differ by, and twice that again.",
        ),
    ),
    measure=measure,
    picture=Picture("layer", "nearest-class-centre mismatch", logarithmic=False, level=0.01),
)
