"""A copy of a model in float64, run at given weights: how much a move changes the outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from equipoise.errors import InputError, one_line
from equipoise.graph.capture import Captured, Inputs
from equipoise.models import call_model, copied_model, require_readable, require_values
from equipoise.transform.symmetry_action import Weights

EXACT = 1e-9  # change of an output, relative to its largest entry, that rounding in float64 may make
Outputs = list[Tensor]


@dataclass(frozen=True, eq=False)
class ModelFunction:
    """A model of one's own and the inputs that it is run on; `aliases` maps other names of tied weights to the first.

    Neither buffers nor the state of random numbers change; the same random numbers are drawn in each run.
    """

    model: nn.Module
    inputs: Inputs
    aliases: Mapping[str, str]

    @classmethod
    def in_double(cls, model: nn.Module, inputs: Inputs, aliases: Mapping[str, str]) -> "ModelFunction":
        """One of a copy in float64."""
        return cls(copied_model(model).double(), pytree.tree_map_only(Tensor, _doubled, inputs), aliases)

    def weights(self) -> Weights:
        """A copy of all weights by canonical name."""
        return {
            name: parameter.detach().clone(memory_format=torch.contiguous_format)
            for name, parameter in self.model.named_parameters()
            if name not in self.aliases
        }

    def buffers(self) -> Weights:
        """A copy of all floating buffers by name."""
        buffers = {name: buffer.detach() for name, buffer in self.model.named_buffers()}
        return {name: buffer.clone() for name, buffer in buffers.items() if buffer.is_floating_point()}

    def outputs(self, weights: Mapping[str, Tensor]) -> Outputs:
        """All floating outputs at some weights; those that are not given stay as they were at the last run."""
        self.write(weights)
        buffers = {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}
        try:
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)
                return _floating(call_model(self.model, self.inputs))
        except Exception as error:
            raise InputError(
                expected="a model that runs on example_inputs, in its own dtype and in float64",
                found=one_line(error),
                remedy="pass inputs with which model(...) runs",
            ) from error
        finally:
            for name, buffer in self.model.named_buffers():
                if name in buffers:
                    buffer.detach().copy_(buffers[name])

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Set the weights of the model, tied ones under all their names, and the buffers that are given."""
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                if name in weights:
                    buffer.copy_(weights[name])
            for name, parameter in self.model.named_parameters(remove_duplicate=False):
                canonical = self.aliases.get(name, name)
                if canonical in weights:
                    parameter.copy_(weights[canonical])

    @cached_property
    def reference(self) -> Outputs:
        """The outputs at the weights that the model has at the first use of this."""
        found = self.outputs({})
        if any(bool(output.isnan().any()) for output in found):
            raise InputError(
                expected="outputs that are numbers",
                found="NaN on example_inputs",
                remedy="check the weights and inputs",
            )
        return found

    def change(self, weights: Mapping[str, Tensor]) -> float:
        """The largest change of an output against `reference`, relative to the largest entry of that output."""
        reference = self.reference
        return max(map(_change, reference, self.outputs(weights)), default=0.0)


def require_weights(model: nn.Module) -> None:
    """Raise `InputError` for a model that cannot be read, and parameters without values, no floats, or not finite."""
    require_readable(model)
    require_values(model)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise InputError(
                expected="floating parameters",
                found=f"{name} of dtype {parameter.dtype}",
                remedy="use the model as it was before it was quantised",
            )
        if not bool(parameter.detach().isfinite().all()):
            raise InputError(
                expected="finite weights",
                found=f"NaN or infinity in {name}",
                remedy="load a checkpoint from before training diverged",
            )


def rounding_of(captured: Captured) -> float:
    """The change of outputs that rounding may make: wider where the code casts to a narrower dtype than float64."""
    narrow = (torch.finfo(dtype) for dtype in captured.casts)
    return max([EXACT, *(info.eps**0.5 for info in narrow if info.bits < 64)])


def _doubled(leaf: Tensor) -> Tensor:
    return leaf.detach().double() if leaf.is_floating_point() else leaf


def _floating(output: object) -> Outputs:
    leaves = pytree.tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    return [leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _change(before: Tensor, after: Tensor) -> float:
    """`‖after - before‖∞ / ‖before‖∞` in float64; entries that are the same infinity agree."""
    same = (before == after) | (before.isnan() & after.isnan())
    gap = (after.double() - before.double()).abs().masked_fill(same, 0.0)
    if not before.numel() or bool(same.all()):
        return 0.0
    size = float(before.double().abs().masked_fill(before.isinf(), 0.0).max())
    largest = float(gap.max())
    return float("inf") if largest != largest else largest / size if size else largest
