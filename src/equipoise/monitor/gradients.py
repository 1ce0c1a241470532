"""Gradients as `backward()` leaves them, whatever is done to them before the step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Pairs = tuple[dict[str, Tensor], dict[str, Tensor]]  # weights and gradients


@dataclass
class BackwardRecord:
    """Weights and gradients as `backward()` leaves them, kept from when it is `armed` until they are taken."""

    handles: list[Any] = field(default_factory=list)
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def armed(self) -> bool:
        """Whether it will keep the gradients of the next backward pass."""
        return bool(self.handles)

    def arm(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Keep what the next backward pass accumulates, until `take`."""
        self.disarm()
        for name, parameter in parameters.items():
            if parameter.requires_grad and parameter.is_leaf:
                self.handles.append(parameter.register_post_accumulate_grad_hook(partial(self._keep, name)))

    def disarm(self) -> None:
        """Take the hooks away, and forget."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.kept.clear()

    def take(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Pairs | None:
        """What was kept, of the same names; None where a parameter has a gradient that no backward pass left there."""
        kept = dict(self.kept)
        self.disarm()
        if any(name not in kept and bool(gradient.any()) for name, gradient in gradients.items()):
            return None
        own = {name: kept[name][0] if name in kept else weight for name, weight in weights.items()}
        left = {name: kept[name][1] if name in kept else gradient for name, gradient in gradients.items()}
        return own, left

    def _keep(self, name: str, parameter: Tensor) -> None:
        try:
            gradient = parameter.grad
            if gradient is not None:
                with torch.no_grad():
                    dense = gradient.to_dense() if gradient.is_sparse else gradient.clone()
                    self.kept[name] = parameter.detach().clone(), dense
        except Exception:  # out of memory: it cannot be told then
            self.kept.pop(name, None)
