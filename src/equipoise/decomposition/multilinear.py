"""`eq.decompose`: a network as a multilinear map of magnitudes and a ReLU tree of signs (T5)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from equipoise.arguments import checked
from equipoise.decomposition import path_lifting
from equipoise.decomposition.tree import Leaves, SignTree, unroll
from equipoise.decomposition.units import UnitGraph, read_units
from equipoise.errors import InputError
from equipoise.graph.capture import Captured, Inputs, capture
from equipoise.modes import default_modes

MAX_PATHS = 100_000
"""Paths that are unrolled unless more are asked for: a tree of these takes a second and some ten megabytes."""

Other = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """`f(x; w) = ρ_{sgn(w)}(μ_{|w|}(x))`: `multilinear` gives the leaves, one for each path, and `tree` is `ρ` (T5.1).

    Explicit only up to `max_paths`. What is summed over all paths (`paths`, `path_norm`, `inner`, `distance`; T5.3)
    takes one pass through the network each, however many there are. Everything is in float64.
    """

    captured: Captured
    weights: dict[str, Tensor]
    max_paths: int = MAX_PATHS

    @cached_property
    def paths(self) -> float:
        """The number of paths from an input, or from the constant that feeds a bias, to an output; exact below 2^53."""
        return path_lifting.path_count(self.captured)

    @cached_property
    def path_norm(self) -> float:
        """`Σ_π |Φ_π(w)|`: a bound on every output, for inputs in [-1, 1] and slopes of at most 1."""
        return path_lifting.path_norm(self.captured, self.weights)

    def inner(self, other: Other) -> float:
        """`⟨Φ(w), Φ(w')⟩` with the same network at other weights."""
        return path_lifting.path_inner(self.captured, self.weights, self._of(other))

    def distance(self, other: Other) -> float:
        """`‖Φ(w) - Φ(w')‖` from the same network at other weights; unchanged by rescaling of neurons in either."""
        return path_lifting.path_distance(self.captured, self.weights, self._of(other))

    @cached_property
    def units(self) -> UnitGraph:
        """The network as single units and edges. Raises `InputError` for more paths than are unrolled."""
        if not self.paths <= self.max_paths:
            raise InputError(
                expected=f"at most {self.max_paths:,} paths to unroll",
                found=f"{self.paths:,.0f}" if self.paths < 1e15 else f"{self.paths:.3g}",
                remedy="pass max_paths= if memory allows, or use paths, path_norm, inner and distance",
            )
        return read_units(self.captured, self.weights)

    @cached_property
    def _unrolled(self) -> tuple[SignTree, Leaves]:
        return unroll(self.units)

    @property
    def tree(self) -> SignTree:
        """`ρ`: the tree whose weights are the signs of `w`. Raises as `units`."""
        return self._unrolled[0]

    def multilinear(self, x: Tensor) -> Tensor:
        """`μ_{|w|}(x)_π = x_{in(π)} Π_{e∈π} |w_e|`, of shape (n, paths). Raises as `units`."""
        return self._unrolled[1](x.double().flatten(1).cpu())

    def __call__(self, x: Tensor) -> Tensor:
        """`ρ(μ(x))`, equal to the model; one row for each example."""
        return self.tree(self.multilinear(x))

    def at(self, other: Other) -> "Decomposition":
        """The same network at other weights."""
        return Decomposition(self.captured, dict(self._of(other)), self.max_paths)

    def draw(self, path: str | PathLike[str]) -> Path:
        """Draw the network and its tree with signs and magnitudes, as SVG, PDF or PNG. Raises as `units`."""
        from equipoise.decomposition.drawing import draw

        return draw(self.units, *self._unrolled, path)

    def _of(self, other: Other) -> Mapping[str, Tensor]:
        given = dict(other.named_parameters()) if isinstance(other, nn.Module) else other
        shapes = {name: tensor.shape for name, tensor in self.weights.items()}
        if {name: given[name].shape for name in shapes if name in given} != shapes:
            raise InputError(
                expected="weights of the same network, by parameter name",
                found="other names or shapes",
                remedy="pass a model of the same architecture",
            )
        return {name: given[name].detach().double().to(self.weights[name].device) for name in shapes}


@checked
@default_modes()
def decompose(model: nn.Module, example_inputs: Inputs | None = None, *, max_paths: int = MAX_PATHS) -> Decomposition:
    """The decomposition of a network of linear maps, ReLUs, maxima and skips; biases are edges from a constant (T5).

    `example_inputs` may be left out where the first layer is an `nn.Linear`; only its shape matters. The model is not
    changed. Raises `InputError` for other operations (where the paths are needed), `CaptureError` for a model that
    cannot be read.

    >>> from equipoise.networks import mlp
    >>> model, x = mlp([5, 4, 3, 1], seed=0), torch.ones(2, 5, dtype=torch.float64)
    >>> parts = decompose(model)
    >>> parts.paths, parts.tree.depth, parts.multilinear(x).shape
    (60.0, 3, torch.Size([2, 60]))
    >>> bool((parts(x) - model(x)).abs().max() < 1e-12)
    True
    """
    own = copy.deepcopy(model).double()
    captured = capture(own, _example(own) if example_inputs is None else _doubled(example_inputs))
    weights = {name: parameter.detach() for name, parameter in own.named_parameters()}
    return Decomposition(captured, {name: weights[name] for name in captured.parameters.values()}, max_paths)


def _example(model: nn.Module) -> Tensor:
    """Two examples of the width that the first layer reads."""
    first = next((layer for layer in model.modules() if list(layer.parameters(recurse=False))), None)
    if not isinstance(first, nn.Linear):
        raise InputError(
            expected="example inputs, as the first layer is not an nn.Linear",
            found="none",
            remedy="call eq.decompose(model, x) with a batch x",
        )
    return torch.ones(2, first.in_features, dtype=torch.float64, device=first.weight.device)


def _doubled(inputs: Inputs) -> Inputs:
    return inputs.double() if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs
