"""Costs of a smaller form of some layers: parameters, operations, or measured seconds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from equipoise.compression.data import DataBatches, Inputs, call, outputs
from equipoise.compression.layers import layer, parameter_count
from equipoise.models import copied_model

CostKind: TypeAlias = Literal["parameters", "flops", "latency"]
MEASURED = 7  # sizes of a layer at which its latency is measured; between them it is interpolated
SECONDS = 0.02  # least time of a measurement

Part: TypeAlias = tuple[nn.Module, torch.Size]
"""A layer, and the shape of a batch that goes into it."""


@dataclass(frozen=True)
class Option:
    """A smaller form of a layer: its cost, and its squared error summed over the data."""

    size: int
    cost: float
    error: float


@dataclass(frozen=True, eq=False)
class CostModel:
    """Costs of layers and of models, with the shapes of what goes into each layer in a batch of the data."""

    kind: CostKind
    shapes: dict[str, torch.Size]
    like: Tensor
    _known: dict[tuple[object, ...], float]

    @classmethod
    def of(
        cls, kind: CostKind, model: nn.Module, names: Sequence[str], examples: DataBatches, like: Tensor
    ) -> "CostModel":
        """The shapes are read from one batch; `like` is a parameter in the dtype in which the model is to run."""
        shapes: dict[str, torch.Size] = {}

        def recorder(name: str) -> Callable[..., None]:
            def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                shapes[name] = inputs[0].shape

            return record

        handles = [layer(model, name).register_forward_pre_hook(recorder(name)) for name in names]
        try:
            outputs(model, examples.head(examples.batch_size))
        finally:
            for handle in handles:
                handle.remove()
        return cls(kind, shapes, like, {})

    def curve(self, sizes: Sequence[int], parts: Callable[[int], Sequence[Part]]) -> list[float]:
        """The cost at every size, of the layers that `parts(size)` builds.

        Parameters and operations grow linearly with a rank or a number of channels; latency is measured at a few sizes,
        and made to grow with them.
        """
        if not sizes:
            return []
        count = MEASURED if self.kind == "latency" else 2
        places = np.unique(np.linspace(0, len(sizes) - 1, count).round().astype(int))
        known = np.array(sorted(sizes))[places]
        found = [sum(self._cost(*part) for part in parts(int(size))) for size in known]
        if self.kind == "latency":
            found = np.maximum.accumulate(found).tolist()
        return np.interp(sizes, known, found).tolist()

    def _cost(self, module: nn.Module, shape: torch.Size) -> float:
        if self.kind == "parameters":
            return float(sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1))
        key = (*(tuple(parameter.shape) for parameter in module.parameters()), str(module), tuple(shape))
        if key not in self._known:
            device = self.like.device if self.kind == "latency" else torch.device("meta")
            copy = module.to_empty(device=device).to(self.like.dtype)
            for parameter in copy.parameters():
                nn.init.normal_(parameter.data)
            batch = torch.ones(shape, dtype=self.like.dtype, device=device)
            self._known[key] = operations(copy, batch) if self.kind == "flops" else seconds(copy, batch, SECONDS)
        return self._known[key]

    def model(self, model: nn.Module, examples: DataBatches) -> float:
        """The cost of a whole model."""
        if self.kind == "parameters":
            return float(parameter_count(model))
        made = model if self.kind == "flops" else copied_model(model).to(self.like.dtype)
        batch = next(examples.batches(next(made.parameters())))
        return operations(made, batch) if self.kind == "flops" else seconds(made, batch, 10 * SECONDS)


def operations(model: nn.Module, batch: Inputs) -> float:
    """Floating-point operations of a forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(model, batch)
    return float(counter.get_total_flops())


def seconds(model: nn.Module, batch: Inputs, least: float) -> float:
    """Median seconds of a forward pass on a batch, measured for `least` seconds with the threads that torch has."""
    from torch.utils import benchmark  # slow to import, and needed here only

    with torch.no_grad():
        timer = benchmark.Timer(
            "call(model, batch)",
            globals={"call": call, "model": model, "batch": batch},
            num_threads=torch.get_num_threads(),
        )
        return timer.blocked_autorange(min_run_time=least).median
