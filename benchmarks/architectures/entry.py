"""What the zoo knows of an architecture: how to build it at a width, and what to feed it."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

VOCABULARY, LENGTH, BATCH = 13, 5, 2
Inputs = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """`build(width)` is a model of that width; `inputs(width)` are its arguments, or its keywords.

    `least` is the smallest width that the architecture allows.
    """

    name: str
    family: str
    build: Callable[[int], nn.Module]
    inputs: Callable[[int], Inputs]
    least: int = 4
    training: bool = False

    def model(self, width: int, *, seed: int = 0, spread: float = 0.3) -> nn.Module:
        """Random weights in float64, away from an initialisation that is all zeros or ones; no dropout."""
        torch.manual_seed(seed)
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            model = self.build(max(width, self.least))
        model = model.double().train(self.training)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
        return model

    def arguments(self, width: int, *, seed: int = 0) -> Inputs:
        """Arguments in float64, drawn with this seed."""
        torch.manual_seed(seed)
        double = lambda leaf: leaf.double() if leaf.is_floating_point() else leaf  # noqa: E731
        return pytree.tree_map_only(Tensor, double, self.inputs(max(width, self.least)))


def call(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The outputs that a gradient can flow from, flattened."""
    output = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    plain = dict(output) if isinstance(output, Mapping) else output
    return [leaf for leaf in pytree.tree_leaves(plain) if isinstance(leaf, Tensor) and leaf.requires_grad]
