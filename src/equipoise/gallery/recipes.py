"""The networks that several claims look at, each trained once a case."""

import torch
from torch import Tensor, nn

from equipoise.gallery.case import Case, Recipe
from equipoise.networks import mlp

WIDTH = 12


def _deep_linear(example: Tensor, seed: int) -> nn.Module:
    return mlp([example.numel(), WIDTH, WIDTH, 1], linear_tail=3, seed=seed)


def _relu(example: Tensor, seed: int) -> nn.Module:
    return mlp([example.numel(), WIDTH, WIDTH, WIDTH, 1], linear_tail=2, seed=seed)


DEEP_LINEAR = Recipe(_deep_linear)
"""Three linear layers."""

RELU = Recipe(_relu)
"""Two ReLU layers below two linear ones: the network of most claims."""


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
