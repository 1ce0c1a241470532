"""The networks that several claims share, each trained once a case."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from equipoise.data import load
from equipoise.gallery.case import Case, Recipe
from equipoise.integrate.goals import LogLoss, Steps
from equipoise.integrate.steppers import GradientDescent
from equipoise.networks import mlp, residual_mlp
from equipoise.observers import Defect

WIDTH = 12
CLASSES = 3


def _deep_linear(example: Tensor, seed: int) -> nn.Module:
    return mlp([example.numel(), WIDTH, WIDTH, 1], linear_tail=3, seed=seed)


def _relu(example: Tensor, seed: int) -> nn.Module:
    return mlp([example.numel(), WIDTH, WIDTH, WIDTH, 1], linear_tail=2, seed=seed)


DEEP_LINEAR = Recipe(_deep_linear)
"""Three linear layers."""

RELU = Recipe(_relu)
"""Two ReLU layers below two linear ones: the network of most claims."""

DESCENT = Recipe(_relu, until=Steps(400), stepper=GradientDescent(0.02, "normalised"), observe=(Defect(),))
"""The same network by gradient descent: each step moves the weights by 0.02, some two thousandths of their norm."""


def two_layers(example: Tensor, seed: int) -> nn.Module:
    """A hidden ReLU layer and one score."""
    return mlp([example.numel(), WIDTH, 1], seed=seed)


def on_common_ground(case: Case) -> tuple[Tensor, Tensor]:
    """The case's inputs moved to be non-negative, and a constant feature 1, which is a bias."""
    X, y = case.pair()
    return torch.cat([X - X.min(), X.new_ones(len(X), 1)], 1), y


def _positive(example: Tensor, seed: int) -> nn.Module:
    model = mlp([example.numel(), WIDTH, WIDTH, WIDTH, 1], linear_tail=2, seed=seed)
    with torch.no_grad():
        next(model.parameters()).abs_()
    return model


POSITIVE = Recipe(_positive, data=on_common_ground)
"""Non-negative features and first weights: many neurons of the first layer are on for every example, and stay so."""


def _seeded(build: Callable[[Tensor], nn.Module]) -> Callable[[Tensor, int], nn.Module]:
    """Torch's own initialisation in float64, from a seed and without touching the global stream."""

    def network(example: Tensor, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return build(example).double()

    return network


def _skips(example: Tensor, seed: int) -> nn.Module:
    return residual_mlp(example.numel(), WIDTH, WIDTH, linear_tail=2, seed=seed)


def _diagonal(example: Tensor, seed: int) -> nn.Module:
    return residual_mlp(example.numel(), WIDTH, WIDTH, skip="diagonal", linear_tail=1, seed=seed)


def _convolutional(example: Tensor) -> nn.Module:
    height = max(side for side in range(1, 29) if example.numel() % side == 0 and side**2 <= example.numel())
    width, stride = example.numel() // height, 2 if height > 10 else 1
    trunk = [
        nn.Unflatten(1, (1, height, width)),
        nn.Conv2d(1, 4, 3, stride, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
    ]
    features = nn.Sequential(*trunk)(example.float()[None]).shape[1]
    return nn.Sequential(*trunk, nn.Linear(features, WIDTH, bias=False), nn.Linear(WIDTH, 1, bias=False))


def _biased(example: Tensor, seed: int) -> nn.Module:
    trunk = residual_mlp(example.numel(), WIDTH, WIDTH, WIDTH, linear_tail=1, bias=True, seed=seed)
    tail = mlp([WIDTH, WIDTH, 1], linear_tail=2, seed=seed + 1)
    return nn.Sequential(trunk, nn.LeakyReLU(0.2), tail)


def _smooth(example: Tensor) -> nn.Module:
    trunk = [nn.Linear(example.numel(), WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    return nn.Sequential(*trunk, nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 1, bias=False))


def _scores(example: Tensor, seed: int) -> nn.Module:
    return mlp([example.numel(), WIDTH, WIDTH, CLASSES], linear_tail=2, seed=seed)


def several_classes(case: Case) -> tuple[Tensor, Tensor]:
    """Three classes of the data set; of `separable`, those that three random scores linear in the input separate."""
    if case.data != "separable":
        chosen = tuple(sorted({0, 1, 2, 3, 4} - {case.seed % 5}))[:CLASSES]
        return load(case.data, classes=chosen, n=case.examples, seed=case.seed)
    X, _ = case.pair()
    directions = torch.randn(X.shape[1], CLASSES, generator=torch.Generator().manual_seed(case.seed), dtype=X.dtype)
    return X, (X @ directions).argmax(1)


SKIPS = Recipe(_skips, until=LogLoss(-1e6))
"""An identity skip around a ReLU block, below a linear tail."""

DIAGONAL = Recipe(_diagonal, until=LogLoss(-1e4))
"""A trained factor on every coordinate of the skip around a ReLU block, and one layer above."""

CONVOLUTIONAL = Recipe(_seeded(_convolutional), until=LogLoss(-1e4))
"""A convolution, ReLU and average pooling, below a linear tail."""

BIASED = Recipe(_biased, until=LogLoss(-1e8))
"""Biases and an identity skip: nothing about the trunk is homogeneous. The linear tail has no biases."""

SMOOTH = Recipe(_seeded(_smooth), until=LogLoss(-1e4))
"""GELU and tanh: the trunk is smooth and bounded, and has no law at all. Only the tail can grow for ever."""

SEVERAL = Recipe(_scores, data=several_classes, loss="cross_entropy")
"""Three classes under cross-entropy: the tail tends to rank two."""
