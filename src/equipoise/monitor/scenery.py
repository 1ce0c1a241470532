"""What a training loop can offer its observers, read once from the model and the shapes of its inputs."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from equipoise.errors import EquipoiseError, one_line
from equipoise.graph.capture import Captured, Inputs, capture
from equipoise.graph.chain import channel_axis, successions
from equipoise.laws import Laws, invariances
from equipoise.laws.collection import kink_names
from equipoise.laws.evaluate import DIRECTIONS, LawPlan
from equipoise.measure.unfolding import Unfolding
from equipoise.monitor.crew import Crew, any_sharded, whole
from equipoise.monitor.forward import Example, hollow
from equipoise.monitor.unwrap import Part, own_buffers, own_parameters, shell, structure
from equipoise.observers import Probe, TrainingContext

LOOKS_TO_SETTLE = 10  # looks through which a neuron must keep its state to be called stable


@dataclass
class Scenery:
    """One model in training: its parameters by name, and what reading it on an example gives, or why it gives none."""

    model: nn.Module
    example: Example | None
    crew: Crew = field(default_factory=Crew)
    given: bool = False  # whether the inputs of the example are the user's

    def __post_init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = own_parameters(self.model)  # by the model's own names
        self.revision = 0  # how often the model has been found to be another one
        self._structure = structure(self.model)
        self._readings: dict[Any, Laws | str] = {}

    def see(self, example: Example) -> None:
        """Take what a forward pass shows; the inputs that the user gave come first."""
        given = self.example
        own = self.given and given is not None
        self.example = replace(given, precision=example.precision) if own and given else example

    def refresh(self) -> str:
        """Compare the model, part by part, with the one that was read; says what is another."""
        now = structure(self.model)
        if now.keys() == self._structure.keys() and all(now[name] == part for name, part in self._structure.items()):
            return ""
        said = _differences(self._structure, now)
        if now.keys() != self._structure.keys() or not all(now[name].is_same(self._structure[name]) for name in now):
            self._readings.clear()
        self._structure, self.parameters = now, own_parameters(self.model)
        self.revision += 1
        return said

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

    @property
    def _read(self) -> Laws | str:
        """The laws, or why there are none; read once for each choice of what is trained."""
        key = tuple(part.trained for part in self._structure.values())
        if key not in self._readings:
            self._readings[key] = self._reading()
        return self._readings[key]

    def _reading(self) -> Laws | str:
        if self.example is None:
            return f"no forward pass of {_called(self.model)} was seen before the first step; pass example_inputs="
        if self.example.inputs is None:
            return self.example.unread
        try:
            return read_laws(self.model, self.example.inputs)
        except EquipoiseError as error:
            return f"{error.found}; {error.remedy}"
        except Exception as error:  # whatever a model does when it is copied or traced must not stop its training
            return one_line(error)

    @property
    def laws(self) -> Laws | None:
        """The laws, where the model can be read."""
        read = self._read
        return None if isinstance(read, str) else read

    def scene(
        self, held: frozenset[str], every: int, earlier: frozenset[str] = frozenset(), sketch: bool = True
    ) -> TrainingContext:
        """The context of observers of the parameters in `held`: one optimizer's share of the model.

        A law belongs to the first optimizer that holds a parameter of it, so none that `earlier` ones hold is here.
        Wide matrix laws are evaluated through a `sketch`, if that is wanted.
        """
        weights, laws = self.weights(), self.laws
        reason = self._read if isinstance(self._read, str) else "no optimizer"
        mine = lambda names: not held.isdisjoint(names) and earlier.isdisjoint(names)  # noqa: E731
        own = None if laws is None else [law for law in laws if mine(law.parameters)]
        plan = None if own is None else LawPlan(own, DIRECTIONS if sketch else None)
        if plan is not None and any_sharded(weights):
            plan = replace(plan, processes=self.crew)
        absent = dict.fromkeys(("laws", "plan", "probe", "consecutive"), reason)
        if laws is not None:
            absent["consecutive"] = "no layer reads another with only activations, dropout or pooling between them"
        absent |= {"kinks": "no data: pass Activity(X)", "examples": "no data: pass Margin((X, y))"}
        return TrainingContext(
            initial=whole(weights),
            matrices=tuple(Unfolding(name) for name, weight in weights.items() if name in held and weight.ndim > 1),
            consecutive=None if laws is None else self._consecutive(laws, held) or None,
            laws=None if own is None or laws is None else _part(laws, own),
            plan=plan,
            probe=None if laws is None else _Prober(self),
            window=float(LOOKS_TO_SETTLE * every),
            online=True,
            absent=absent,
        )

    def _consecutive(self, laws: Laws, held: frozenset[str]) -> tuple[tuple[Unfolding, Unfolding], ...]:
        assert laws.captured is not None
        found = successions(laws.captured)
        return tuple(
            (Unfolding(lower, bias), Unfolding(upper, reads=True)) for lower, bias, upper in found if lower in held
        )


def read_laws(model: nn.Module, inputs: Inputs) -> Laws:
    """The laws of a model, read from a copy."""
    return invariances(shell(model), inputs)


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Whatever draws random numbers inside leaves the global generators of torch, NumPy and Python as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one is meant)
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _called(model: nn.Module) -> str:
    return f"{type(model).__name__}, called as a whole,"


def _differences(before: Mapping[str, Part], now: Mapping[str, Part]) -> str:
    """What a user did to a model, by the names of its parts."""
    both = [name for name in now if name in before]
    replaced = [name for name in both if not now[name].is_same(before[name])]
    modules = [name for name in replaced if not now[name].is_parameter]
    inside = lambda name: any(name.startswith(f"{each}.") or not each for each in modules)  # noqa: E731
    frozen = [name for name in both if before[name].trained and not now[name].trained and name not in replaced]
    unfrozen = [name for name in both if now[name].trained and not before[name].trained and name not in replaced]
    told = {
        "replaced": [name or "the model" for name in replaced if not inside(name)],
        "added": [name for name in now if name not in before and not inside(name)],
        "removed": [name for name in before if name not in now and not inside(name)],
        "frozen": frozen,
        "trained from now on": unfrozen,
    }
    return "; ".join(f"{_some(names)} {verb}" for verb, names in told.items() if names)


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, …, {names[-1]} ({len(names)})"


def _part(laws: Laws, own: list[Any]) -> Laws:
    return Laws(tuple(own), laws.coverage, laws.captured, laws.dropped, laws.options)


@dataclass(frozen=True)
class _Prober:
    """The model in evaluation mode on examples of one's own: its graph is read once for each shape of them."""

    scenery: Scenery
    _graphs: dict[torch.Size, Captured] = field(default_factory=dict)

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Probe:
        captured = self._graphs.get(inputs.shape)
        if captured is None:
            captured = self._graphs[inputs.shape] = capture(shell(self.scenery.model).eval(), hollow(inputs))
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
