"""What a training loop can offer its observers, read once from the model and the shapes of its inputs."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from equipoise.errors import EquipoiseError
from equipoise.graph.capture import Captured, Inputs, capture
from equipoise.graph.chain import channel_axis, successions
from equipoise.laws import Laws, invariances
from equipoise.laws.collection import kink_names
from equipoise.laws.gauge import Gauge
from equipoise.measure.unfolding import Unfolding
from equipoise.monitor.crew import Crew, any_sharded, whole
from equipoise.monitor.unwrap import own_buffers, own_parameters, shell, unwrapped
from equipoise.observers import Probe, Scene

LOOKS_TO_SETTLE = 10  # looks through which a neuron must keep its state to be called stable


@dataclass(frozen=True)
class Example:
    """The arguments of one forward pass by their shapes, and the dtype of autocast if it was on."""

    inputs: Inputs
    precision: torch.dtype | None = None

    @classmethod
    def of_call(cls, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Example":
        """Of the arguments of a call, none of which is kept."""
        args, kwargs = pytree.tree_map_only(Tensor, _hollow, (args, dict(kwargs)))
        if args and kwargs:  # by name, as far as they have one
            names = inspect.signature(unwrapped(model).forward).parameters
            args, kwargs = (), {**dict(zip(names, args, strict=False)), **kwargs}
        device = "cuda" if torch.is_autocast_enabled("cuda") else "cpu"
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return cls(kwargs or args, precision)


def _hollow(tensor: Tensor) -> Tensor:
    """Zeros of the same shape that take no memory."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


@dataclass
class Scenery:
    """One model in training: its parameters by name, and what reading it on an example gives, or why it gives none."""

    model: nn.Module
    example: Example | None
    crew: Crew = field(default_factory=Crew)

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By the model's own names."""
        return own_parameters(self.model)

    def weights(self) -> dict[str, Tensor]:
        """The parameters as they are now, without history."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def gradients(self, scale: Tensor | None = None) -> dict[str, Tensor] | None:
        """The gradients as they are now, `scale` divided out; zero where others have one, None where none has."""
        found = {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}
        if not found:
            return None
        plain = {name: gradient.to_dense() if gradient.is_sparse else gradient for name, gradient in found.items()}
        if scale is not None:
            plain = {name: gradient / scale.to(gradient) for name, gradient in plain.items()}
        return {
            name: plain[name] if name in plain else torch.zeros_like(parameter)
            for name, parameter in self.parameters.items()
        }

    @cached_property
    def _read(self) -> Laws | str:
        """The laws, or why there are none."""
        if self.example is None:
            return "no forward pass of the model was seen before the first step; pass example_inputs="
        try:
            return invariances(shell(self.model), self.example.inputs)
        except EquipoiseError as error:
            return error.found
        except Exception as error:  # whatever a model does when it is copied or traced must not stop its training
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"

    @cached_property
    def laws(self) -> Laws | None:
        """The laws, where the model can be read."""
        return None if isinstance(self._read, str) else self._read

    def scene(self, held: frozenset[str], every: int, earlier: frozenset[str] = frozenset()) -> Scene:
        """What observers of the parameters in `held` are told: one optimizer's share of the model.

        A law belongs to the first optimizer that holds a parameter of it, so none that `earlier` ones hold is here.
        """
        weights, laws = self.weights(), self.laws
        reason = self._read if isinstance(self._read, str) else "none"
        mine = lambda names: not held.isdisjoint(names) and earlier.isdisjoint(names)  # noqa: E731
        own = None if laws is None else [law for law in laws if mine(law.parameters)]
        gauge = None if own is None else replace(Gauge.sketch(own), beside=_vectors(weights))
        if gauge is not None and any_sharded(weights):
            gauge = replace(gauge, reduce=self.crew.reduce, share=self.crew.summands, together=self.crew.together)
        absent = dict.fromkeys(("laws", "gauge", "probe", "consecutive"), reason)
        absent |= {"kinks": "no data: pass Activity(X)", "examples": "no data: pass Margin((X, y))"}
        return Scene(
            initial=whole(weights),
            matrices=tuple(Unfolding(name) for name, weight in weights.items() if name in held and weight.ndim > 1),
            consecutive=() if laws is None else self._consecutive(laws, held),
            laws=None if own is None or laws is None else _part(laws, own),
            gauge=gauge,
            probe=None if laws is None else _Prober(self),
            window=float(LOOKS_TO_SETTLE * every),
            frugal=True,
            absent=absent,
        )

    def _consecutive(self, laws: Laws, held: frozenset[str]) -> tuple[tuple[Unfolding, Unfolding], ...]:
        assert laws.captured is not None
        found = successions(laws.captured)
        return tuple(
            (Unfolding(lower, bias), Unfolding(upper, reads=True)) for lower, bias, upper in found if lower in held
        )


def _vectors(weights: Mapping[str, Tensor]) -> tuple[tuple[str, int], ...]:
    """Name and length of each."""
    return tuple((name, len(weight)) for name, weight in weights.items() if weight.ndim == 1)


def _part(laws: Laws, own: list[Any]) -> Laws:
    return Laws(tuple(own), laws.coverage, laws.captured, laws.dropped, laws.reading)


@dataclass(frozen=True)
class _Prober:
    """The model in evaluation mode on examples of one's own: its graph is read once for each shape of them."""

    scenery: Scenery
    _graphs: dict[torch.Size, Captured] = field(default_factory=dict)

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Probe:
        captured = self._graphs.get(inputs.shape)
        if captured is None:
            captured = self._graphs[inputs.shape] = capture(shell(self.scenery.model).eval(), _hollow(inputs))
        places, seen = _places(captured), {}

        def record(node: fx.Node, args: tuple[Any, ...]) -> Any:
            if node.name in places:
                seen[places[node.name]] = args[0].movedim(channel_axis(node.all_input_nodes[0]), -1)
            return NotImplemented

        known = {**own_buffers(self.scenery.model), **whole(parameters)}
        with torch.no_grad():
            output = captured.run(known, inputs.to(next(iter(known.values())).device), intercept=record)
        return Probe(output if isinstance(output, Tensor) else output[0], seen)


def _places(captured: Captured) -> dict[str, str]:
    """The node of each kink -> the layer whose activation it is, or the node that it reads."""
    nodes = {node.name: node for node in captured.graph.nodes}
    found = {}
    for name in kink_names(captured):
        source: Any = nodes[name].args[0]
        weight = source.args[1] if len(source.args) > 1 else None
        found[name] = captured.parameters.get(getattr(weight, "name", ""), source.name)
    return found
