"""Deep classifiers with BatchNorm, as the papers on rank and depth train them, and the features of their layers."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def normalised_mlp(widths: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Layers of a linear map without bias, BatchNorm and ReLU, `layer1`, …, and a linear `head`, in float64.

    >>> [name for name, _ in normalised_mlp([4, 8, 3]).named_children()]
    ['layer1', 'head']
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for place, (below, above) in enumerate(pairwise(widths[:-1]), 1):
            layers[f"layer{place}"] = nn.Sequential(
                nn.Linear(below, above, bias=False), nn.BatchNorm1d(above), nn.ReLU()
            )
        layers["head"] = nn.Linear(widths[-2], widths[-1])
        return nn.Sequential(layers).double()


def layer_features(model: nn.Sequential, inputs: Tensor) -> list[Tensor]:
    """The outputs of every layer below the head, in evaluation mode; the mode is left as it was.

    >>> [tuple(each.shape) for each in layer_features(normalised_mlp([4, 8, 5, 3]), torch.ones(2, 4).double())]
    [(2, 8), (2, 5)]
    """
    training, found = model.training, []
    model.eval()
    with torch.no_grad():
        for layer in list(model.children())[:-1]:
            inputs = layer(inputs)
            found.append(inputs)
    model.train(training)
    return found
